// What the chunks of linear attention are made of: sizes, the shared part of a chunk, and rows on their
// way between a tensor and the cache.

#pragma once

#include <algorithm>
#include <cstdint>

#include "matmul.h"
#include "parallel.h"
#include "vector.h"

namespace stepscan {

// With a decay per head a chunk is two vectors of steps wide; per channel the scores inside a chunk cost
// more the longer it is. Both are short: with the memory in the cache, what a longer chunk saves in
// products with the memory it loses in scores.
constexpr int64_t kChunk = 32;
constexpr int64_t kChannelChunk = 16;
constexpr int64_t kSpan = 64;  // steps between the states that are kept for the gradient

struct AttentionSizes {
  int64_t rows, steps, groups, heads, keys, values;
  int64_t channels;  // of a decay: 1, or `keys`
  bool sums;         // the memory has one more column, whose values are all 1

  int64_t columns() const { return values + sums; }
  int64_t shared_by() const { return heads / groups; }
  int64_t chunk() const { return channels == 1 ? kChunk : kChannelChunk; }
  int64_t spans() const { return (steps + kSpan - 1) / kSpan; }
  // Floats from a row to the next in the cache.
  int64_t key_row() const { return padded(keys); }
  int64_t value_row() const { return padded(columns()); }
  int64_t memory() const { return keys * value_row(); }
};

// Where the token at `step` begins in a tensor [B, T, heads, size].
STEPSCAN_INLINE int64_t at(const AttentionSizes& s, int64_t heads, int64_t size, int64_t row, int64_t step,
                           int64_t head) {
  return ((row * s.steps + step) * heads + head) * size;
}

// Rows of `n` floats into rows of whole vectors; what is beyond n becomes zero. The rows of a head lie far
// apart, which no hardware foresees: those that follow `ahead` rows later are asked for now.
STEPSCAN_INLINE void copy_in(float* to, int64_t to_row, const float* from, int64_t from_row, int64_t rows,
                             int64_t n, int64_t ahead = 0) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < n; j += kLanes) {
      store(to + i * to_row + j, load(from + i * from_row + j, n - j));
      if (ahead) __builtin_prefetch(from + (i + ahead) * from_row + j);
    }
}

STEPSCAN_INLINE void copy_out(float* to, int64_t to_row, const float* from, int64_t from_row, int64_t rows,
                              int64_t n) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < n; j += kLanes)
      store(to + i * to_row + j, load(from + i * from_row + j), n - j);
}

// x += y over whole vectors, or x = x * factor.
STEPSCAN_INLINE void add(float* x, const float* y, int64_t n) {
  for (int64_t j = 0; j < n; j += kLanes) store(x + j, load(x + j) + load(y + j));
}

STEPSCAN_INLINE void scale(float* x, float factor, int64_t n) {
  for (int64_t j = 0; j < n; j += kLanes) store(x + j, load(x + j) * factor);
}

// The lanes' numbers, counted from `first`: to be compared with a step.
STEPSCAN_INLINE IntVec lanes_from(int64_t first) {
  IntVec lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return lane + static_cast<int32_t>(first);
}

// The part of a chunk that all heads of a group share.
struct Chunk {
  int64_t row, group, first, length;
  int64_t ahead;    // rows to the chunk after this one, 0 for none
  float *q, *k;     // [length, key_row]
  float* k_turned;  // [keys, kChunk]: steps are the columns
  float* scores;    // [length, kChunk], q_i . k_j for j <= i; with a decay per head only
};

struct ChunkMemory {
  explicit ChunkMemory(const AttentionSizes& s)
      : q(kChunk * s.key_row()),
        k(kChunk * s.key_row()),
        k_turned(kChunk * s.key_row()),
        scores(kChunk * kChunk) {}
  Scratch q, k, k_turned, scores;
};

STEPSCAN_INLINE Chunk load_chunk(const AttentionSizes& s, const ChunkMemory& memory, const float* q,
                                 const float* k, int64_t row, int64_t group, int64_t first,
                                 int64_t next) {
  const int64_t length = std::min(s.chunk(), s.steps - first);
  const int64_t ahead = next >= 0 && next + length <= s.steps ? next - first : 0;
  const Chunk c{row, group, first, length, ahead, memory.q, memory.k, memory.k_turned, memory.scores};
  const int64_t from = at(s, s.groups, s.keys, row, first, group), from_row = s.groups * s.keys;
  copy_in(c.q, s.key_row(), q + from, from_row, c.length, s.keys, ahead);
  copy_in(c.k, s.key_row(), k + from, from_row, c.length, s.keys, ahead);
  transpose(c.k, s.key_row(), c.k_turned, kChunk, c.length, s.keys);
  if (s.channels == 1)
    multiply<Part::kLowerResult>({c.q, s.key_row(), 1}, c.k_turned, kChunk, c.scores, kChunk, c.length,
                                 s.keys, c.length);
  return c;
}

// The values of a head and, with `sums`, the column of ones: all times the gain.
STEPSCAN_INLINE void load_values(const AttentionSizes& s, const Chunk& c, int64_t head, const float* v,
                                 const float* gain, float* values) {
  const int64_t row = s.value_row();
  if (s.values % kLanes || s.sums) // the last vector of a row is not written whole by the copy
    for (int64_t i = 0; i < c.length; ++i) store(values + i * row + row - kLanes, Vec{});
  copy_in(values, row, v + at(s, s.heads, s.values, c.row, c.first, head), s.heads * s.values, c.length,
          s.values, c.ahead);
  if (s.sums)
    for (int64_t i = 0; i < c.length; ++i) values[i * row + s.values] = 1.0f;
  if (gain)
    for (int64_t i = 0; i < c.length; ++i)
      scale(values + i * row, gain[at(s, s.heads, 1, c.row, c.first + i, head)], row);
}

// What is read, or a gradient of the values, to where it belongs: the column of ones is apart.
STEPSCAN_INLINE void store_values(const AttentionSizes& s, const Chunk& c, int64_t head, const float* values,
                                  float* v, float* ones) {
  copy_out(v + at(s, s.heads, s.values, c.row, c.first, head), s.heads * s.values, values, s.value_row(),
           c.length, s.values);
  if (ones)
    for (int64_t i = 0; i < c.length; ++i)
      ones[at(s, s.heads, 1, c.row, c.first + i, head)] = values[i * s.value_row() + s.values];
}

}  // namespace stepscan
