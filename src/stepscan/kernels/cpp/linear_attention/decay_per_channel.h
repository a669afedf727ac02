// One chunk of one head whose memory decays by one number per step and key channel:
//
//   S_t = diag(a_t) S_{t-1} + k_t v_t^T,   y_t = S_t^T q_t
//
// As with one decay per head, but that queries and keys carry the decays: with since_i = a_0 * .. * a_i
// and kept_j = a_{j+1} * .. * a_last, of each channel, the chunk reads
//
//   Y = (Q since) S + W V,   W_ij = sum over channels of q_i k_j a_{j+1} .. a_i for j <= i,
//
// and leaves S' = diag(since_last) S + (K kept)^T V. W is no product of two matrices unless a decay is
// divided by, which strong ones do not survive. So each channel's keys are decayed step by step, those of
// all earlier steps in the lanes of one vector. Only products of decays: see decay_per_head.h.

#pragma once

#include "attention_chunk.h"

namespace stepscan {

struct ChannelDecay {
  explicit ChannelDecay(const AttentionSizes& s)
      : a(kChannelChunk * s.key_row()),
        since(kChannelChunk * s.key_row()),
        kept(kChannelChunk * s.key_row()),
        q(kChannelChunk * s.key_row()),
        k(kChannelChunk * s.key_row()),
        keys_now(kLanes * s.key_row()),
        weights(kChannelChunk * kChannelChunk) {}
  Scratch a, since, kept;  // [length, key_row]
  Scratch q, k;            // [length, key_row], times since and times kept
  Scratch keys_now;        // [keys, kLanes]
  Scratch weights;         // [length, kChannelChunk]

  // Over all of the chunk.
  const float* whole(const AttentionSizes& s, const Chunk& c) const {
    return since + (c.length - 1) * s.key_row();
  }
};

STEPSCAN_INLINE void load_decay(const AttentionSizes& s, const Chunk& c, int64_t head,
                                const float* log_decay, const uint8_t* resets, const ChannelDecay& d) {
  const int64_t row = s.key_row();
  copy_in(d.a, row, log_decay + at(s, s.heads, s.keys, c.row, c.first, head), s.heads * s.keys, c.length,
          s.keys);
  const uint8_t* reset = resets + c.row * s.steps + c.first;
  for (int64_t n = 0; n < row; n += kLanes) {
    Vec product = splat(1.0f);
    for (int64_t i = 0, here = n; i < c.length; ++i, here += row) {
      const Vec a = reset[i] ? Vec{} : exp(load(d.a + here));
      product *= a;
      store(d.a + here, a);
      store(d.since + here, product);
      store(d.q + here, load(c.q + here) * product);
    }
    product = splat(1.0f);
    for (int64_t j = c.length - 1, here = n + j * row; j >= 0; --j, here -= row) {
      store(d.kept + here, product);
      store(d.k + here, load(c.k + here) * product);
      product *= load(d.a + here);
    }
  }
}

// W for kLanes steps from `first` on, of the keys of the kLanes steps from `from` on: `first` is `from`,
// and then the keys begin as they are, or later, and they have been decayed up to there.
template <bool kBegin>
STEPSCAN_INLINE void weights_block(const AttentionSizes& s, const Chunk& c, const ChannelDecay& d,
                                   int64_t first, int64_t from) {
  const int64_t row = s.key_row();
  const float *q = c.q + first * row, *a = d.a + first * row;
  Vec weights[kLanes] = {};
  for (int64_t k = 0; k < s.keys; ++k) {
    Vec key = load(kBegin ? c.k_turned + k * kChunk + from : d.keys_now + k * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      const Vec decayed = key * a[i * row + k];
      key = kBegin ? (lanes_from(0) < i ? decayed : key) : decayed;
      weights[i] += key * q[i * row + k];
    }
    store(d.keys_now + k * kLanes, key);
  }
  for (int i = 0; i < kLanes; ++i)
    store(d.weights + (first + i) * kChannelChunk + from,
          kBegin ? (lanes_from(0) <= i ? weights[i] : Vec{}) : weights[i]);
}

STEPSCAN_INLINE void weights_per_channel(const AttentionSizes& s, const Chunk& c, const ChannelDecay& d) {
  for (int64_t from = 0; from < c.length; from += kLanes) {
    for (int64_t first = 0; first < from; ++first) store(d.weights + first * kChannelChunk + from, Vec{});
    weights_block<true>(s, c, d, from, from);
    for (int64_t first = from + kLanes; first < c.length; first += kLanes)
      weights_block<false>(s, c, d, first, from);
  }
}

// S' from S.
STEPSCAN_INLINE void write_per_channel(const AttentionSizes& s, const Chunk& c, const ChannelDecay& d,
                                       const float* values, float* memory) {
  const int64_t row = s.value_row();
  multiply({d.k, 1, s.key_row()}, values, row, memory, row, s.keys, c.length, row, Keep{d.whole(s, c), 1});
}

// Y from the memory before the chunk, and the memory after it.
STEPSCAN_INLINE void attend_per_channel(const AttentionSizes& s, const Chunk& c, const ChannelDecay& d,
                                        const float* values, float* memory, float* y) {
  const int64_t row = s.value_row();
  weights_per_channel(s, c, d);
  multiply({d.q, s.key_row(), 1}, memory, row, y, row, c.length, s.keys, row);
  multiply<Part::kLower>({d.weights, kChannelChunk, 1}, values, row, y, row, c.length, c.length, row, 1.0f);
  write_per_channel(s, c, d, values, memory);
}

struct ChannelGradients {
  float* memory;     // in: of the memory after the chunk; out: of the one before it
  float *q, *k;      // [length, key_row], summed over the heads
  float* values;     // [length, value_row]
  float* log_decay;  // [length, key_row]
};

struct ChannelWork {
  explicit ChannelWork(const AttentionSizes& s)
      : paired(kChannelChunk * kChannelChunk),
        turned(kChannelChunk * s.value_row()),
        memory_turned(s.value_row() * s.key_row()),
        read(kChannelChunk * s.key_row()),
        written(kChannelChunk * s.key_row()),
        below(kChannelChunk * kLanes) {
    // Its padding is never written again, and is multiplied with that of q and k.
    std::fill_n(static_cast<float*>(memory_turned), s.value_row() * s.key_row(), 0.0f);
  }
  Scratch paired, turned, memory_turned, read, written, below;
};

// The gradients of W, of kLanes channels from n on: the pairs i > j, their decay growing as j goes back.
// The log decay of step t receives every pair i >= t > j: `below` sums over i, for each j.
STEPSCAN_INLINE void pairs_backward(const AttentionSizes& s, const Chunk& c, const ChannelDecay& d,
                                    const ChannelWork& work, const ChannelGradients& grad, int64_t n) {
  const int64_t row = s.key_row();
  for (int64_t j = 0; j < c.length; ++j) store(work.below + j * kLanes, Vec{});
  for (int64_t i = c.length - 1; i >= 0; --i) {
    const float* grad_weight = work.paired + i * kChannelChunk;
    const int64_t here = i * row + n;
    const Vec q = load(c.q + here);
    Vec between = load(d.a + here), total{};
    Vec grad_q = load(c.k + here) * grad_weight[i];
    store(grad.k + here, load(grad.k + here) + q * grad_weight[i]);
    for (int64_t j = i - 1, there = here - row; j >= 0; --j, there -= row) {
      const Vec factor = between * grad_weight[j], key = load(c.k + there) * factor;
      grad_q += key;
      store(grad.k + there, load(grad.k + there) + q * factor);
      const Vec below = load(work.below + j * kLanes) + q * key;
      store(work.below + j * kLanes, below);
      total += below;
      between *= load(d.a + there);
    }
    store(grad.q + here, load(grad.q + here) + grad_q);
    store(grad.log_decay + here, total);
  }
}

// What reads of the chunk's first memory, writes to its last one and what passes it all add to the
// gradients of kLanes channels from n on. See `add_up_log_decay` for why the log decay's is a sum.
STEPSCAN_INLINE void memory_backward(const AttentionSizes& s, const Chunk& c, const ChannelDecay& d,
                                     const ChannelWork& work, const ChannelGradients& grad, Vec through,
                                     int64_t n) {
  const int64_t row = s.key_row();
  Vec read{}, written{};
  for (int64_t t = c.length - 1, here = n + t * row; t >= 0; --t, here -= row) {
    const Vec grad_q = load(work.read + here) * load(d.since + here);
    store(grad.q + here, load(grad.q + here) + grad_q);
    read += grad_q * load(c.q + here);
    store(grad.log_decay + here, load(grad.log_decay + here) + read + through);
  }
  for (int64_t t = 0, here = n; t < c.length; ++t, here += row) {
    const Vec grad_k = load(work.written + here) * load(d.kept + here);
    store(grad.k + here, load(grad.k + here) + grad_k);
    store(grad.log_decay + here, load(grad.log_decay + here) + written);
    written += grad_k * load(c.k + here);
  }
}

// All gradients of `attend_per_channel`; `memory` is the one before the chunk.
STEPSCAN_INLINE void attend_per_channel_backward(const AttentionSizes& s, const Chunk& c,
                                                 const ChannelDecay& d, const float* values,
                                                 const float* memory, const float* grad_y,
                                                 const ChannelWork& work, const ChannelGradients& grad) {
  const int64_t row = s.value_row(), key_row = s.key_row();
  weights_per_channel(s, c, d);
  transpose(values, row, work.turned, kChannelChunk, c.length, row);
  multiply<Part::kLowerResult>({grad_y, row, 1}, work.turned, kChannelChunk, work.paired, kChannelChunk,
                               c.length, row, c.length);

  multiply({d.k, key_row, 1}, grad.memory, row, grad.values, row, c.length, s.keys, row);
  multiply<Part::kUpper>({d.weights, 1, kChannelChunk}, grad_y, row, grad.values, row, c.length, c.length,
                         row, 1.0f);

  transpose(memory, row, work.memory_turned, key_row, s.keys, row);
  multiply({grad_y, row, 1}, work.memory_turned, key_row, work.read, key_row, c.length, row, key_row);
  transpose(grad.memory, row, work.memory_turned, key_row, s.keys, row);
  multiply({values, row, 1}, work.memory_turned, key_row, work.written, key_row, c.length, row, key_row);

  for (int64_t n = 0; n < key_row; n += kLanes) {
    Vec through{};
    for (int64_t k = n; k < std::min(n + kLanes, s.keys); ++k)
      through[k - n] = dot(memory + k * row, grad.memory + k * row, row);
    through *= load(d.whole(s, c) + n);
    pairs_backward(s, c, d, work, grad, n);
    memory_backward(s, c, d, work, grad, through, n);
  }
  multiply({d.q, 1, key_row}, grad_y, row, grad.memory, row, s.keys, c.length, row, Keep{d.whole(s, c), 1});
}

}  // namespace stepscan
