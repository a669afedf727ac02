// Products of small matrices that lie in the cache: the inside of a chunk. Row-major; the columns of B
// and C are padded to whole vectors, so a row is `padded(columns)` floats apart or more.

#pragma once

#include <algorithm>
#include <cstdint>

#include "lanes.h"
#include "vector.h"

namespace stepscan {

// A block's accumulators stay in registers: 16 of 32 with AVX-512, 8 of 16 below. Narrow blocks have
// more rows, so that enough sums are under way to hide the latency of each.
constexpr int kBlockVecs = kLanes == 16 ? 4 : 2;
constexpr int block_rows(int vecs) { return vecs == kBlockVecs ? 4 : 8; }

// A matrix whose element (i, j) is data[i * row + j * column]: a transpose is a swap of the two.
struct Strided {
  const float* data;
  int64_t row;
  int64_t column;
  Strided from(int64_t i) const { return {data + i * row, row, column}; }
};

// What is kept of c under a product: row i times factor[i * step]; without a factor nothing, and c need
// not hold numbers.
struct Keep {
  const float* factor = nullptr;
  int64_t step = 0;
  Keep from(int64_t i) const { return {factor ? factor + i * step : nullptr, step}; }
};
constexpr float kOne = 1.0f;
constexpr Keep kReplace{};
constexpr Keep kAdd{&kOne, 0};

// The products that a triangle makes unnecessary are left out block by block: what lies in the blocks on
// the diagonal is computed, so there the other triangle of `a` must hold zeros.
enum class Part {
  kWhole,
  kLower,        // a[i, k] = 0 for k > i
  kUpper,        // a[i, k] = 0 for k < i
  kLowerResult,  // only c[i, j] for j <= i is wanted; the rest is left as it is or overwritten
};

template <int Rows, int Vecs>
STEPSCAN_INLINE void start_block(Vec (&sums)[Rows][Vecs], const float* c, int64_t c_row, Keep keep) {
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < Vecs; ++j)
      sums[i][j] = keep.factor ? load(c + i * c_row + j * kLanes) * keep.factor[i * keep.step] : Vec{};
}

template <int Rows, int Vecs>
STEPSCAN_INLINE void add_product(Vec (&sums)[Rows][Vecs], Strided a, const float* b, int64_t b_row,
                                 int64_t first, int64_t last, float sign = 1.0f) {
  for (int64_t k = first; k < last; ++k) {
    Vec row[Vecs];
#pragma GCC unroll 8
    for (int j = 0; j < Vecs; ++j) row[j] = sign * load(b + k * b_row + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      const Vec factor = splat(a.data[i * a.row + k * a.column]);
#pragma GCC unroll 8
      for (int j = 0; j < Vecs; ++j) sums[i][j] += factor * row[j];
    }
  }
}

template <int Rows, int Vecs>
STEPSCAN_INLINE void store_block(const Vec (&sums)[Rows][Vecs], float* c, int64_t c_row) {
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < Vecs; ++j) store(c + i * c_row + j * kLanes, sums[i][j]);
}

// The rows from `i` on, in blocks of so many, the rest in blocks of half as many.
template <int Rows, int Vecs, Part part>
STEPSCAN_INLINE void multiply_rows(int64_t i, Strided a, const float* b, int64_t b_row, float* c,
                                   int64_t c_row, int64_t rows, int64_t inner, int64_t column, Keep keep) {
  for (; i + Rows <= rows; i += Rows) {
    if (part == Part::kLowerResult && column >= i + Rows) continue;
    const int64_t first = part == Part::kUpper ? i : 0;
    const int64_t last = part == Part::kLower ? std::min(inner, i + Rows) : inner;
    Vec sums[Rows][Vecs];
    start_block(sums, c + i * c_row, c_row, keep.from(i));
    add_product(sums, a.from(i), b, b_row, first, last);
    store_block(sums, c + i * c_row, c_row);
  }
  if constexpr (Rows > 1)
    multiply_rows<Rows / 2, Vecs, part>(i, a, b, b_row, c, c_row, rows, inner, column, keep);
}

template <int Vecs, Part part>
static void multiply_columns(Strided a, const float* b, int64_t b_row, float* c, int64_t c_row,
                             int64_t rows, int64_t inner, int64_t column, Keep keep) {
  multiply_rows<block_rows(Vecs), Vecs, part>(0, a, b + column, b_row, c + column, c_row, rows, inner, column,
                                              keep);
}

// c = keep c + a b, with a [rows, inner], b [inner, columns], c [rows, columns]. Columns are rounded up
// to whole vectors.
template <Part part = Part::kWhole>
STEPSCAN_INLINE void multiply(Strided a, const float* b, int64_t b_row, float* c, int64_t c_row,
                              int64_t rows, int64_t inner, int64_t columns, Keep keep) {
  int64_t j = 0;
  for (; j + kBlockVecs * kLanes <= padded(columns); j += kBlockVecs * kLanes)
    multiply_columns<kBlockVecs, part>(a, b, b_row, c, c_row, rows, inner, j, keep);
  if (kBlockVecs > 2 && j + 2 * kLanes <= padded(columns)) {
    multiply_columns<2, part>(a, b, b_row, c, c_row, rows, inner, j, keep);
    j += 2 * kLanes;
  }
  if (j < columns) multiply_columns<1, part>(a, b, b_row, c, c_row, rows, inner, j, keep);
}

// The same with one factor for all of c; where it is 0, c need not hold numbers.
template <Part part = Part::kWhole>
STEPSCAN_INLINE void multiply(Strided a, const float* b, int64_t b_row, float* c, int64_t c_row,
                              int64_t rows, int64_t inner, int64_t columns, float keep = 0.0f) {
  const Keep kept = keep == 0.0f ? Keep{} : Keep{&keep, 0};
  multiply<part>(a, b, b_row, c, c_row, rows, inner, columns, kept);
}

// b[j, i] = a[i, j], a [rows, columns]. The rows of b end in zeros, up to a whole vector.
static inline void transpose(const float* a, int64_t a_row, float* b, int64_t b_row, int64_t rows,
                             int64_t columns) {
  for (int64_t i = 0; i < rows; i += kLanes)
    for (int64_t j = 0; j < columns; j += kLanes) {
      const int64_t width = std::min<int64_t>(kLanes, columns - j);
      Vec tile[kLanes];
#pragma GCC unroll 16
      for (int l = 0; l < kLanes; ++l) tile[l] = i + l < rows ? load(a + (i + l) * a_row + j, width) : Vec{};
      transpose(tile);
      for (int l = 0; l < width; ++l) store(b + (j + l) * b_row + i, tile[l]);
    }
}

STEPSCAN_INLINE float dot(const float* x, const float* y, int64_t n) {
  Vec total{};
  for (int64_t j = 0; j < n; j += kLanes) total += load(x + j) * load(y + j);
  return sum(total);
}

}  // namespace stepscan
