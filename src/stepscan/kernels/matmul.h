// Products of small matrices that lie in the cache: the inside of a chunk. Row-major; the columns of B
// and C are padded to whole vectors, so a row is `padded(columns)` floats apart or more.

#pragma once

#include <cstdint>

#include "vector.h"

namespace stepscan {

// Accumulators of one block stay in registers: 16 of 32 with AVX-512, 8 of 16 below.
constexpr int kBlockRows = 4;
constexpr int kBlockVecs = kLanes == 16 ? 4 : 2;

// A matrix whose element (i, j) is data[i * row + j * column]: a transpose is a swap of the two.
struct Strided {
  const float* data;
  int64_t row;
  int64_t column;
};

template <int Rows, int Vecs>
STEPSCAN_INLINE void multiply_block(Strided a, const float* b, int64_t b_row, float* c, int64_t c_row,
                                    int64_t inner, float keep) {
  Vec sums[Rows][Vecs];
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < Vecs; ++j)
      sums[i][j] = keep == 0.0f ? Vec{} : load(c + i * c_row + j * kLanes) * keep;
  for (int64_t k = 0; k < inner; ++k) {
    Vec row[Vecs];
    for (int j = 0; j < Vecs; ++j) row[j] = load(b + k * b_row + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      const Vec factor = splat(a.data[i * a.row + k * a.column]);
#pragma GCC unroll 8
      for (int j = 0; j < Vecs; ++j) sums[i][j] += factor * row[j];
    }
  }
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < Vecs; ++j) store(c + i * c_row + j * kLanes, sums[i][j]);
}

template <int Vecs>
STEPSCAN_INLINE void multiply_columns(Strided a, const float* b, int64_t b_row, float* c, int64_t c_row,
                                      int64_t rows, int64_t inner, float keep) {
  int64_t i = 0;
  for (; i + kBlockRows <= rows; i += kBlockRows)
    multiply_block<kBlockRows, Vecs>({a.data + i * a.row, a.row, a.column}, b, b_row, c + i * c_row, c_row,
                                     inner, keep);
  for (; i < rows; ++i)
    multiply_block<1, Vecs>({a.data + i * a.row, a.row, a.column}, b, b_row, c + i * c_row, c_row, inner,
                            keep);
}

// c = keep * c + a b, with a [rows, inner], b [inner, columns], c [rows, columns]; where keep is 0, c
// need not hold numbers. Columns are rounded up to whole vectors.
STEPSCAN_INLINE void multiply(Strided a, const float* b, int64_t b_row, float* c, int64_t c_row,
                              int64_t rows, int64_t inner, int64_t columns, float keep = 0.0f) {
  int64_t j = 0;
  for (; j + kBlockVecs * kLanes <= padded(columns); j += kBlockVecs * kLanes)
    multiply_columns<kBlockVecs>(a, b + j, b_row, c + j, c_row, rows, inner, keep);
  for (; j < columns; j += kLanes)
    multiply_columns<1>(a, b + j, b_row, c + j, c_row, rows, inner, keep);
}

// b[j, i] = a[i, j], a [rows, columns].
STEPSCAN_INLINE void transpose(const float* a, int64_t a_row, float* b, int64_t b_row, int64_t rows,
                               int64_t columns) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) b[j * b_row + i] = a[i * a_row + j];
}

}  // namespace stepscan
