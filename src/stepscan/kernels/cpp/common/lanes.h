// From rows to lanes and back: where a kernel gives each channel a lane of its own, while memory holds
// each channel's numbers side by side.

#pragma once

#include <algorithm>
#include <cstdint>

#include "vector.h"

namespace stepscan {

// Where the lanes of two vectors go when they are interleaved: a0 b0 a1 b1 ..., in two halves.
struct Interleaving {
  int32_t low[kLanes]{};
  int32_t high[kLanes]{};
  constexpr Interleaving() {
    for (int i = 0; i < kLanes; ++i) {
      low[i] = i / 2 + i % 2 * kLanes;
      high[i] = low[i] + kLanes / 2;
    }
  }
};
constexpr Interleaving kInterleaving;

STEPSCAN_INLINE Vec interleave(Vec a, Vec b, const int32_t* places) {
  IntVec mask;
  std::memcpy(&mask, places, sizeof mask);
  return __builtin_shuffle(a, b, mask);
}

// tile[i][j] becomes tile[j][i]: each pass turns the bits of the place i * kLanes + j by one.
STEPSCAN_INLINE void transpose(Vec (&tile)[kLanes]) {
  for (int pass = 1; pass < kLanes; pass *= 2) {
    Vec turned[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) {
      turned[2 * i] = interleave(tile[i], tile[i + kLanes / 2], kInterleaving.low);
      turned[2 * i + 1] = interleave(tile[i], tile[i + kLanes / 2], kInterleaving.high);
    }
    for (int i = 0; i < kLanes; ++i) tile[i] = turned[i];
  }
}

// Lane i of the result is the sum over all lanes of tile[i]: a transpose that adds on the way.
STEPSCAN_INLINE Vec sums(Vec (&tile)[kLanes]) {
#pragma GCC unroll 4
  for (int half = kLanes / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i)
      tile[i] = interleave(tile[i], tile[i + half], kInterleaving.low) +
                interleave(tile[i], tile[i + half], kInterleaving.high);
  return tile[0];
}

// to[j * kLanes + i] = from[i * columns + j]: a lane per row; lanes without a row are zero.
STEPSCAN_INLINE void rows_to_lanes(const float* from, int64_t rows, int64_t columns, float* to) {
  for (int64_t j = 0; j < columns; j += kLanes) {
    const int64_t some = std::min<int64_t>(kLanes, columns - j);
    Vec tile[kLanes]{};
    for (int64_t i = 0; i < rows; ++i) tile[i] = load(from + i * columns + j, some);
    transpose(tile);
    for (int64_t k = 0; k < some; ++k) store(to + (j + k) * kLanes, tile[k]);
  }
}

// to[i * columns + j] = from[j * kLanes + i].
STEPSCAN_INLINE void lanes_to_rows(const float* from, int64_t rows, int64_t columns, float* to) {
  for (int64_t j = 0; j < columns; j += kLanes) {
    const int64_t some = std::min<int64_t>(kLanes, columns - j);
    Vec tile[kLanes]{};
    for (int64_t k = 0; k < some; ++k) tile[k] = load(from + (j + k) * kLanes);
    transpose(tile);
    for (int64_t i = 0; i < rows; ++i) store(to + i * columns + j, tile[i], some);
  }
}

// to[j] = sum over lanes of from[j * kLanes + i].
STEPSCAN_INLINE void sum_lanes(const float* from, int64_t columns, float* to) {
  for (int64_t j = 0; j < columns; j += kLanes) {
    const int64_t some = std::min<int64_t>(kLanes, columns - j);
    Vec tile[kLanes]{};
    for (int64_t k = 0; k < some; ++k) tile[k] = load(from + (j + k) * kLanes);
    store(to + j, sums(tile), some);
  }
}

}  // namespace stepscan
