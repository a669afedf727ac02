// A chunk of tokens of the delta rule, as a triangular system for the errors of all its writes.
//
// A token decays the memory, then erases and writes n times, then reads once. With e_r and w_r = beta_r
// k_r the rows of all writes, in order, the errors u_r = v_r - e_r^T S solve
//     (I + L) u = v - (e decayed from the chunk's start) S0,    L_rs = e_r . (w_s decayed from s to r),
// and y and the next state are products with S0 and u. The n erasing rows of all tokens and then their
// q are one matrix of `reads` here, so that L and the scores of q are one product.
//
// Decays stay products of exp(g) <= 1 over tokens, never exponentials of differences of sums, so none
// of them overflows and a decay of 0 is exact. Where channels decay on their own, they do not leave the
// sum over channels: pairs of near tokens, in one block, are worked out one by one; pairs of different
// blocks are a product of reads decayed from the start of the reader's block and writes decayed to it.

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "delta_solve.h"
#include "parallel.h"
#include "vector.h"

namespace stepscan::delta {

struct Shape {
  int64_t rows, steps, heads, keys, values, writes, channels;  // channels of the decay: keys or 1
};

// Rows of one head, in a [B, T, H, width] tensor.
template <typename Float>
struct Rows {
  Float* data;
  int64_t stride;
  Float* operator[](int64_t i) const { return data + i * stride; }
};

// The rows of head `head` (of all rows of the batch: row * heads + head), `steps` of them.
template <typename Float>
Rows<Float> rows_of(Float* x, const Shape& s, int64_t head, int64_t steps, int64_t width) {
  return {x + (head / s.heads * steps * s.heads + head % s.heads) * width, s.heads * width};
}

struct Head {
  Head(const Shape& s, int64_t head, const float* q, const float* k, const float* v, const float* beta,
       const float* log_decay, const float* erase, const uint8_t* resets)
      : q(rows_of(q, s, head, s.steps, s.keys)),
        k(rows_of(k, s, head, s.steps * s.writes, s.keys)),
        v(rows_of(v, s, head, s.steps * s.writes, s.values)),
        beta(rows_of(beta, s, head, s.steps * s.writes, 1)),
        log_decay(rows_of(log_decay, s, head, s.steps, s.channels)),
        erase(rows_of(erase ? erase : k, s, head, s.steps * s.writes, s.keys)),
        resets(resets + head / s.heads * s.steps) {}
  Rows<const float> q, k, v, beta, log_decay, erase;
  const uint8_t* resets;
};

// c[i] = a[i] * b[i], whole vectors.
STEPSCAN_INLINE void scale(float* c, const float* a, const float* b, int64_t width) {
  for (int64_t i = 0; i < width; i += kLanes) store(c + i, load(a + i) * load(b + i));
}

STEPSCAN_INLINE void scale(float* c, const float* a, float b, int64_t width) {
  for (int64_t i = 0; i < width; i += kLanes) store(c + i, load(a + i) * b);
}

STEPSCAN_INLINE void add_scaled(float* c, const float* a, float b, int64_t width) {
  for (int64_t i = 0; i < width; i += kLanes) store(c + i, load(c + i) + load(a + i) * b);
}

// Unpadded to padded rows and back; what is beyond the row becomes zero.
STEPSCAN_INLINE void read_row(float* to, const float* from, int64_t width) {
  for (int64_t i = 0; i < width; i += kLanes) store(to + i, load(from + i, width - i));
}

STEPSCAN_INLINE void write_row(float* to, const float* from, int64_t width) {
  for (int64_t i = 0; i < width; i += kLanes) store(to + i, load(from + i), width - i);
}

// Tokens whose pairs are taken one by one where channels decay on their own.
constexpr int64_t kBlock = 8;
// Tokens whose scores end at the same column: later columns are zero and left out of products.
constexpr int64_t kStair = 8;

// About `rows` writes, tokens by powers of two; not much longer than the sequence.
inline int64_t chunk_tokens(const Shape& s, int64_t rows) {
  int64_t tokens = rows;
  while (tokens > 1 && (tokens * s.writes > rows || tokens >= 2 * std::max(s.steps, kBlock))) tokens /= 2;
  return tokens;
}

// Everything of a chunk that does not depend on the state; views into one piece of memory.
class Chunk {
 public:
  Chunk(const Shape& shape, int64_t tokens)
      : s(shape),
        tokens(tokens),
        write_rows(tokens * s.writes),
        read_rows(write_rows + tokens),
        width(padded(s.keys)),
        columns(padded(write_rows)),
        by_channel(s.channels > 1),
        block(by_channel ? std::min(kBlock, tokens) : tokens),
        memory_(size()) {
    float* next = memory_;
    std::fill(next, next + size(), 0.0f);
    const auto take = [&next](int64_t n) { return std::exchange(next, next + n); };
    reads = take(read_rows * width);
    seen = take(read_rows * width);
    near = by_channel ? take(read_rows * width) : seen;
    writes = take(write_rows * width);
    ends = take(write_rows * width);
    ends_transposed = take(s.keys * columns);
    decay = take(tokens * width);
    inside = take(tokens * width);
    kept = take(width);
    pairs = take(tokens * columns);
    scores = take(read_rows * columns);
    decayed = take(s.writes * width);
  }

  // The chunk that starts at token `first`: rows beyond the sequence are zero and do not decay.
  void read(const Head& head, int64_t first) {
    read_decays(head, first);
    for (int64_t i = 0; i < tokens; ++i) {
      const bool there = first + i < s.steps;
      for (int64_t r = i * s.writes; r < (i + 1) * s.writes; ++r) {
        const int64_t at = first * s.writes + r;
        read_or_clear(reads + r * width, there ? head.erase[at] : nullptr);
        read_or_clear(writes + r * width, there ? head.k[at] : nullptr);
        if (there) scale(writes + r * width, writes + r * width, *head.beta[at], width);
      }
      read_or_clear(query(i), there ? head.q[first + i] : nullptr);
    }
    decay_reads();
    score();
  }

  // Has the rows of the chunk that starts at `first` fetched meanwhile: rows of one head lie a token
  // apart, too far for the processor to foresee. A little at a time, as few can be on their way at once.
  template <typename Float>
  void fetch(Rows<Float> rows, int64_t first, int64_t each, int64_t width) const {
    const int64_t end = std::min(first + tokens, s.steps) * each;
    for (int64_t r = std::max<int64_t>(0, first) * each; r < end; ++r)
      for (int64_t i = 0; i < width; i += 16) __builtin_prefetch(rows[r] + i, !std::is_const_v<Float>);
  }

  float* query(int64_t token) const { return reads + (write_rows + token) * width; }

  // Of the rows of token i: one past the last column whose score is not zero.
  int64_t stairs(int64_t token) const {
    return std::min(write_rows, (token / kStair + 1) * kStair * s.writes);
  }

  // f(row, first token, tokens): the rows of consecutive tokens of one stair, erasing ones, then q.
  template <typename Task>
  void for_each_stair(Task task) const {
    for (int64_t i = 0; i < tokens; i += kStair) {
      const int64_t n = std::min(kStair, tokens - i);
      task(i * s.writes, i, n * s.writes);
      task(write_rows + i, i, n);
    }
  }

  template <typename Task>
  void for_each_read(int64_t token, Task task) const {
    for (int64_t r = token * s.writes; r < (token + 1) * s.writes; ++r) task(r);
    task(write_rows + token);
  }

  // A write meets the earlier ones of its token, not itself or later ones.
  void clear_later_writes(int64_t token, float* x) const {
    for (int64_t r = token * s.writes; r < (token + 1) * s.writes; ++r)
      std::fill(x + r * columns + r, x + r * columns + (token + 1) * s.writes, 0.0f);
  }

  // `ends`, the writes of the blocks before `start` decayed to there, gains that block.
  void carry_writes(int64_t start) {
    const float* over = inside + (std::min(start + block, tokens) - 1) * width;
    for (int64_t r = 0; r < start * s.writes; ++r) scale(ends + r * width, ends + r * width, over, width);
    float* after = decayed;  // the decay from a token to the block's end
    std::fill(after, after + width, 1.0f);
    for (int64_t i = std::min(start + block, tokens) - 1; i >= start; --i) {
      for (int64_t r = i * s.writes; r < (i + 1) * s.writes; ++r)
        scale(ends + r * width, writes + r * width, after, width);
      scale(after, after, decay + i * width, width);
    }
  }

  const Shape s;
  const int64_t tokens, write_rows, read_rows, width, columns;
  const bool by_channel;
  const int64_t block;
  float *reads, *writes;           // e and q; beta k
  float *near, *seen, *ends;       // reads decayed from their block's, the chunk's start; writes to its end
  float *decay, *inside, *kept;    // exp(g); its product from the block's start; over the whole chunk
  float *pairs, *scores;           // [token, write] decays, if by one number; [read, write] scores
  float *ends_transposed, *decayed;  // room to work in

 private:
  int64_t size() const {
    return (by_channel ? 3 : 2) * read_rows * width + 2 * write_rows * width + s.keys * columns +
           2 * tokens * width + width + (tokens + read_rows) * columns + s.writes * width;
  }

  void read_or_clear(float* to, const float* from) const {
    if (from)
      read_row(to, from, s.keys);
    else
      std::fill(to, to + width, 0.0f);
  }

  void read_decays(const Head& head, int64_t first) {
    for (int64_t i = 0; i < tokens; ++i) {
      float* to = decay + i * width;
      const bool there = first + i < s.steps;
      if (there && head.resets[first + i]) {
        std::fill(to, to + width, 0.0f);
      } else if (!there) {
        std::fill(to, to + width, 1.0f);
      } else if (s.channels == 1) {
        const Vec one = exp(splat(*head.log_decay[first + i]));
        for (int64_t c = 0; c < width; c += kLanes) store(to + c, one);
      } else {
        const float* g = head.log_decay[first + i];
        for (int64_t c = 0; c < width; c += kLanes) store(to + c, exp(load(g + c, s.keys - c)));
      }
      if (i % block)
        scale(inside + i * width, inside + (i - 1) * width, to, width);
      else
        std::copy(to, to + width, inside + i * width);
    }
  }

  void decay_reads() {
    float* before = decayed;  // the decay from the chunk's to the block's start
    std::fill(before, before + width, 1.0f);
    for (int64_t i = 0; i < tokens; ++i) {
      const float* own = inside + i * width;
      const auto decay_row = [&](int64_t r) {
        scale(near + r * width, reads + r * width, own, width);
        if (by_channel) scale(seen + r * width, near + r * width, before, width);
      };
      for (int64_t r = i * s.writes; r < (i + 1) * s.writes; ++r) decay_row(r);
      decay_row(write_rows + i);
      if (i % block == block - 1) scale(before, before, own, width);
    }
  }

  void score() {
    for (int64_t start = 0; start < tokens; start += block) {
      if (by_channel) {
        score_far(start);
        score_near(start);
      }
      carry_writes(start);
    }
    if (!by_channel) score_all();
    total_decay();
  }

  void total_decay() {
    std::fill(kept, kept + width, 1.0f);
    for (int64_t i = block - 1; i < tokens; i += block) scale(kept, kept, inside + i * width, width);
  }

  // One decay for all channels: the product of all reads and writes, times the decays of the pairs.
  void score_all() {
    transpose(writes, width, ends_transposed, columns, write_rows, s.keys);
    for_each_stair([&](int64_t row, int64_t token, int64_t rows) {
      multiply({reads + row * width, width, 1}, ends_transposed, columns, scores + row * columns, columns,
              rows, s.keys, stairs(token), kReplace);
    });
    for (int64_t i = 0; i < tokens; ++i) {
      float* pair = pairs + i * columns;
      if (i) scale(pair, pair - columns, decay[i * width], columns);
      std::fill(pair + i * s.writes, pair + (i + 1) * s.writes, 1.0f);
      for_each_read(i, [&](int64_t r) { scale(scores + r * columns, scores + r * columns, pair, columns); });
      clear_later_writes(i, scores);
    }
  }

  // Of the block at `start`, the pairs with writes of earlier blocks, which `ends` holds decayed to here.
  void score_far(int64_t start) {
    const int64_t n = std::min(block, tokens - start), before = start * s.writes;
    for (int64_t i = start; i < start + n; ++i)
      for_each_read(i, [&](int64_t r) { std::fill(scores + r * columns, scores + (r + 1) * columns, 0.0f); });
    if (!start) return;
    transpose(ends, width, ends_transposed, columns, before, s.keys);
    const auto meet = [&](int64_t row, int64_t rows) {
      multiply({near + row * width, width, 1}, ends_transposed, columns, scores + row * columns, columns,
              rows, s.keys, before, kReplace);
    };
    meet(before, n * s.writes);
    meet(write_rows + start, n);
  }

  // Of the block at `start`, the pairs inside: each write meets the reads of its and later tokens.
  void score_near(int64_t start) {
    const int64_t end = std::min(start + block, tokens);
    for (int64_t j = start; j < end; ++j) {
      std::copy(writes + j * s.writes * width, writes + (j + 1) * s.writes * width, decayed);
      for (int64_t i = j; i < end; ++i) {
        for (int64_t p = 0; p < s.writes; ++p) {
          float* write = decayed + p * width;
          if (i > j) scale(write, write, decay + i * width, width);
          for_each_read(i, [&](int64_t r) {
            scores[r * columns + j * s.writes + p] = dot(reads + r * width, write, width);
          });
        }
      }
      clear_later_writes(j, scores);
    }
  }

  Scratch memory_;
};

}  // namespace stepscan::delta
