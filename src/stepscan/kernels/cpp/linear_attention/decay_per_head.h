// One chunk of one head whose memory decays by one number per step:
//
//   S_t = a_t S_{t-1} + k_t v_t^T,   y_t = S_t^T q_t
//
// With since_i = a_0 .. a_i, kept_j = a_{j+1} .. a_last and between_ij = a_{j+1} .. a_i the chunk reads
//
//   Y = since (Q S) + (between * Q K^T) V      and leaves      S' = since_last S + K^T (kept V).
//
// Every decay is a product of the a's, never the exponential of a difference: a = 0, from a reset or from
// a log decay of any size, is as good as any other, and nothing overflows.

#pragma once

#include "attention_chunk.h"

namespace stepscan {

struct HeadDecay {
  alignas(64) float a[kChunk], since[kChunk], kept[kChunk];
  float whole;  // over all of the chunk
};

STEPSCAN_INLINE void load_decay(const AttentionSizes& s, const Chunk& c, int64_t head,
                                const float* log_decay, const uint8_t* resets, HeadDecay& d) {
  const float* g = log_decay + at(s, s.heads, 1, c.row, c.first, head);
  for (int64_t i = 0; i < c.length; ++i) d.a[i] = g[i * s.heads];
  for (int64_t i = c.length; i < kChunk; ++i) d.a[i] = 0.0f;
  for (int64_t i = 0; i < kChunk; i += kLanes) store(d.a + i, exp(load(d.a + i)));
  const uint8_t* reset = resets + c.row * s.steps + c.first;
  float product = 1.0f;
  for (int64_t i = 0; i < c.length; ++i) {
    if (reset[i]) d.a[i] = 0.0f;
    d.since[i] = product *= d.a[i];
  }
  d.whole = product;
  product = 1.0f;
  for (int64_t j = c.length - 1; j >= 0; --j) {
    d.kept[j] = product;
    product *= d.a[j];
  }
}

// row(i, vec, between): the decays from the steps of each vector to step i, 1 at step i itself; lanes
// beyond i are 1 as well.
template <typename Row>
STEPSCAN_INLINE void for_each_between(const Chunk& c, const HeadDecay& d, Row row) {
  constexpr int kVecs = kChunk / kLanes;
  Vec between[kVecs];
  for (int n = 0; n < kVecs; ++n) between[n] = splat(1.0f);
  for (int64_t i = 0; i < c.length; ++i) {
#pragma GCC unroll 8
    for (int n = 0; n < kVecs; ++n) {
      between[n] = lanes_from(n * kLanes) < static_cast<int32_t>(i) ? between[n] * d.a[i] : between[n];
      row(i, n * kLanes, between[n]);
    }
  }
}

// S' from S; the values are spoilt.
STEPSCAN_INLINE void write_per_head(const AttentionSizes& s, const Chunk& c, const HeadDecay& d,
                                    float* values, float* memory) {
  const int64_t row = s.value_row();
  for (int64_t j = 0; j < c.length; ++j) scale(values + j * row, d.kept[j], row);
  multiply({c.k, 1, s.key_row()}, values, row, memory, row, s.keys, c.length, row, Keep{&d.whole, 0});
}

// Y from the memory before the chunk, and the memory after it.
STEPSCAN_INLINE void attend_per_head(const AttentionSizes& s, const Chunk& c, const HeadDecay& d,
                                     float* values, float* memory, float* weights, float* y) {
  const int64_t row = s.value_row();
  for_each_between(c, d, [&](int64_t i, int64_t j, Vec between) {
    const Vec score = load(c.scores + i * kChunk + j) * between;
    store(weights + i * kChunk + j, lanes_from(j) <= static_cast<int32_t>(i) ? score : Vec{});
  });
  multiply({c.q, s.key_row(), 1}, memory, row, y, row, c.length, s.keys, row);
  multiply<Part::kLower>({weights, kChunk, 1}, values, row, y, row, c.length, c.length, row,
                         Keep{d.since, 1});
  write_per_head(s, c, d, values, memory);
}

struct HeadGradients {
  float* memory;        // in: of the memory after the chunk; out: of the one before it
  float *q, *k;         // [length, key_row], summed over the heads
  float* scores;        // [length, kChunk], summed over the heads
  float* values;        // [length, value_row]
  float log_decay[kChunk];
};

struct HeadWork {
  explicit HeadWork(const AttentionSizes& s)
      : weights(kChunk * kChunk),
        paired(kChunk * kChunk),
        turned(kChunk * s.value_row()),
        memory_turned(s.value_row() * s.key_row()),
        read(kChunk * s.key_row()) {
    // Its padding is never written again, and is multiplied with that of q and k.
    std::fill_n(static_cast<float*>(memory_turned), s.value_row() * s.key_row(), 0.0f);
  }
  Scratch weights, paired, turned, memory_turned, read;
};

// dg_t is the sum of everything that passes the decay of step t: of the pairs i >= t > j, of the reads
// of the chunk's first memory at i >= t, of the writes to its last one at j < t, and of the memory that
// passes it all. Only sums of such parts: none is the difference of two larger ones.
STEPSCAN_INLINE void add_up_log_decay(const Chunk& c, const float* paired, const float* reads,
                                      const float* writes, float through, float* log_decay) {
  constexpr int kVecs = kChunk / kLanes;
  Vec below[kVecs] = {};  // over i >= t
  float read = 0.0f, written = 0.0f;
  for (int64_t t = c.length - 1; t >= 0; --t) {
    Vec total{};
    for (int n = 0; n < kVecs; ++n) {
      below[n] += load(paired + t * kChunk + n * kLanes);
      total += lanes_from(n * kLanes) < static_cast<int32_t>(t) ? below[n] : Vec{};
    }
    read += reads[t];
    log_decay[t] = sum(total) + read + through;
  }
  for (int64_t t = 0; t < c.length; ++t) {
    log_decay[t] += written;
    written += writes[t];
  }
}

// All gradients of `attend_per_head`; `memory` is the one before the chunk. `values` and `grad_y` are
// spoilt.
STEPSCAN_INLINE void attend_per_head_backward(const AttentionSizes& s, const Chunk& c, const HeadDecay& d,
                                              float* values, const float* memory, float* grad_y,
                                              const HeadWork& work, HeadGradients& grad) {
  const int64_t row = s.value_row(), key_row = s.key_row();
  alignas(64) float reads[kChunk], writes[kChunk];

  // The pairs: dL/dweights is dY V^T.
  transpose(values, row, work.turned, kChunk, c.length, row);
  multiply<Part::kLowerResult>({grad_y, row, 1}, work.turned, kChunk, work.paired, kChunk, c.length, row,
                               c.length);
  for_each_between(c, d, [&](int64_t i, int64_t j, Vec between) {
    const IntVec lane = lanes_from(j);
    const int32_t step = static_cast<int32_t>(i);
    const int64_t here = i * kChunk + j;
    const Vec score = load(c.scores + here), grad_weight = load(work.paired + here);
    const Vec weight = lane <= step ? score * between : Vec{};
    store(work.weights + here, weight);
    store(grad.scores + here, load(grad.scores + here) + (lane <= step ? grad_weight * between : Vec{}));
    store(work.paired + here, lane < step ? grad_weight * weight : Vec{});
  });

  // Values: what the pairs read of them, and what the memory after the chunk holds of them.
  multiply({c.k, key_row, 1}, grad.memory, row, grad.values, row, c.length, s.keys, row);
  for (int64_t j = 0; j < c.length; ++j)
    writes[j] = d.kept[j] * dot(grad.values + j * row, values + j * row, row);
  multiply<Part::kUpper>({work.weights, 1, kChunk}, grad_y, row, grad.values, row, c.length, c.length, row,
                         Keep{d.kept, 1});

  // Queries, through the memory before the chunk.
  transpose(memory, row, work.memory_turned, key_row, s.keys, row);
  multiply({grad_y, row, 1}, work.memory_turned, key_row, work.read, key_row, c.length, row, key_row);
  for (int64_t i = 0; i < c.length; ++i) {
    scale(work.read + i * key_row, d.since[i], key_row);
    reads[i] = dot(work.read + i * key_row, c.q + i * key_row, key_row);
    add(grad.q + i * key_row, work.read + i * key_row, key_row);
  }

  // Keys, through the memory after it.
  transpose(grad.memory, row, work.memory_turned, key_row, s.keys, row);
  for (int64_t j = 0; j < c.length; ++j) scale(values + j * row, d.kept[j], row);
  multiply({values, row, 1}, work.memory_turned, key_row, grad.k, key_row, c.length, row, key_row, 1.0f);

  const float through = d.whole * dot(memory, grad.memory, s.keys * row);
  add_up_log_decay(c, work.paired, reads, writes, through, grad.log_decay);
  for (int64_t i = 0; i < c.length; ++i) scale(grad_y + i * row, d.since[i], row);
  multiply({c.q, 1, key_row}, grad_y, row, grad.memory, row, s.keys, c.length, row, Keep{&d.whole, 0});
}

// The scores' part of dq and dk, once for all heads of the group.
STEPSCAN_INLINE void scores_backward(const AttentionSizes& s, const Chunk& c, const HeadGradients& grad) {
  const int64_t row = s.key_row();
  multiply<Part::kLower>({grad.scores, kChunk, 1}, c.k, row, grad.q, row, c.length, c.length, row, 1.0f);
  multiply<Part::kUpper>({grad.scores, 1, kChunk}, c.q, row, grad.k, row, c.length, c.length, row, 1.0f);
}

}  // namespace stepscan
