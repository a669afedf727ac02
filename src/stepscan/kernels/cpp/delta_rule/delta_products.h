// Products and triangular systems of the small matrices inside a chunk of the delta rule. Row-major,
// columns padded to whole vectors; every block keeps its sums in registers.

#pragma once

#include <cstdint>

#include "vector.h"

namespace stepscan::delta {

// Blocks of sums that fill about half the registers: 16 of 32 with AVX-512 and aarch64, 8 of 16 below.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kWideVecs = 4, kNarrowRows = 8;
#else
constexpr int kWideVecs = 2, kNarrowRows = 4;
#endif
constexpr int kWideRows = 4;

// A matrix whose element (i, j) is data[i * row + j * column]: a transpose is a swap of the two.
struct Matrix {
  const float* data;
  int64_t row;
  int64_t column;
  Matrix from(int64_t i) const { return {data + i * row, row, column}; }
};

// What becomes of the numbers in the place of a result: row i is multiplied by factor[i * step] and the
// result added to it. Without a factor they are overwritten, and need not be numbers.
struct Keep {
  const float* factor;
  int64_t step;
  Keep from(int64_t i) const { return {factor + i * step, step}; }
};
constexpr float kOne = 1.0f;
constexpr Keep kReplace{nullptr, 0};
constexpr Keep kAdd{&kOne, 0};

template <int Rows, int Vecs>
STEPSCAN_INLINE void start_block(Vec (&sums)[Rows][Vecs], const float* c, int64_t c_row, Keep keep) {
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < Vecs; ++j)
      sums[i][j] = keep.factor ? load(c + i * c_row + j * kLanes) * keep.factor[i * keep.step] : Vec{};
}

template <int Rows, int Vecs>
STEPSCAN_INLINE void add_product(Vec (&sums)[Rows][Vecs], Matrix a, const float* b, int64_t b_row,
                                 int64_t inner, float sign = 1.0f) {
  for (int64_t k = 0; k < inner; ++k) {
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

template <int Rows, int Vecs>
STEPSCAN_INLINE void product_rows(Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row,
                                  int64_t first, int64_t rows, int64_t inner, Keep keep) {
  int64_t i = first;
  for (; i + Rows <= rows; i += Rows) {
    Vec sums[Rows][Vecs];
    start_block(sums, c + i * c_row, c_row, keep.from(i));
    add_product(sums, a.from(i), b, b_row, inner);
    store_block(sums, c + i * c_row, c_row);
  }
  if constexpr (Rows > 1) product_rows<Rows / 2, Vecs>(a, b, b_row, c, c_row, i, rows, inner, keep);
}

// c = keep c + a b, with a [rows, inner], b [inner, columns], c [rows, columns].
[[gnu::noinline]] static void product(Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row,
                                      int64_t rows, int64_t inner, int64_t columns, Keep keep) {
  int64_t j = 0;
  for (; j + kWideVecs * kLanes <= padded(columns); j += kWideVecs * kLanes)
    product_rows<kWideRows, kWideVecs>(a, b + j, b_row, c + j, c_row, 0, rows, inner, keep);
  if constexpr (kWideVecs > 2)
    for (; j + 2 * kLanes <= padded(columns); j += 2 * kLanes)
      product_rows<kNarrowRows, 2>(a, b + j, b_row, c + j, c_row, 0, rows, inner, keep);
  for (; j < columns; j += kLanes)
    product_rows<8, 1>(a, b + j, b_row, c + j, c_row, 0, rows, inner, keep);
}

template <int Rows, int Vecs>
STEPSCAN_INLINE void solve_rows(Matrix l, float* x, int64_t x_row, int64_t first, int64_t rows) {
  int64_t i = first;
  for (; i + Rows <= rows; i += Rows) {
    Vec sums[Rows][Vecs];
    start_block(sums, x + i * x_row, x_row, kAdd);
    add_product(sums, l.from(i), x, x_row, i, -1.0f);
#pragma GCC unroll 8
    for (int r = 1; r < Rows; ++r)
#pragma GCC unroll 8
      for (int s = 0; s < r; ++s) {
        const Vec factor = splat(l.data[(i + r) * l.row + (i + s) * l.column]);
#pragma GCC unroll 8
        for (int j = 0; j < Vecs; ++j) sums[r][j] -= factor * sums[s][j];
      }
    store_block(sums, x + i * x_row, x_row);
  }
  if constexpr (Rows > 1) solve_rows<Rows / 2, Vecs>(l, x, x_row, i, rows);
}

// x = (I + l)^-1 x, with l [rows, rows] read below its diagonal only, x [rows, columns]. By substitution
// in blocks of rows, so that most of it is products; an inverse would lose digits where keys repeat.
[[gnu::noinline]] static void solve(Matrix l, float* x, int64_t x_row, int64_t rows, int64_t columns) {
  int64_t j = 0;
  for (; j + kWideVecs * kLanes <= padded(columns); j += kWideVecs * kLanes)
    solve_rows<kWideRows, kWideVecs>(l, x + j, x_row, 0, rows);
  for (; j < columns; j += kLanes) solve_rows<4, 1>(l, x + j, x_row, 0, rows);
}

// x = (I + l)^-T x: the same from the last row to the first.
STEPSCAN_INLINE void solve_transposed(Matrix l, float* x, int64_t x_row, int64_t rows, int64_t columns) {
  const float* last = l.data + (rows - 1) * (l.row + l.column);
  solve({last, -l.column, -l.row}, x + (rows - 1) * x_row, -x_row, rows, columns);
}

// A square of kLanes x kLanes: in each round rows `apart` from one another swap the halves that lie on
// the wrong side of the diagonal.
template <int Apart>
STEPSCAN_INLINE void transpose_round(Vec (&x)[kLanes]) {
  IntVec low, high;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    const bool second = i & Apart;
    low[i] = second ? kLanes + i - Apart : i;
    high[i] = second ? kLanes + i : i + Apart;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & Apart) continue;
    const Vec a = x[i], b = x[i + Apart];
    x[i] = __builtin_shuffle(a, b, low);
    x[i + Apart] = __builtin_shuffle(a, b, high);
  }
}

STEPSCAN_INLINE void transpose_square(Vec (&x)[kLanes]) {
  transpose_round<1>(x);
  transpose_round<2>(x);
  if constexpr (kLanes > 4) transpose_round<4>(x);
  if constexpr (kLanes > 8) transpose_round<8>(x);
}

// b[j, i] = a[i, j], with a [rows, columns] in rows of whole vectors. The rows of b end in zeros, up to
// a whole vector.
[[gnu::noinline]] static void transpose(const float* a, int64_t a_row, float* b, int64_t b_row,
                                        int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; i += kLanes)
    for (int64_t j = 0; j < columns; j += kLanes) {
      Vec square[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) square[r] = i + r < rows ? load(a + (i + r) * a_row + j) : Vec{};
      transpose_square(square);
      for (int r = 0; r < kLanes && j + r < columns; ++r) store(b + (j + r) * b_row + i, square[r]);
    }
}

// The rows of a product of two matrices, element by element, summed: a row's share of a trace.
STEPSCAN_INLINE float dot(const float* a, const float* b, int64_t width) {
  Vec total{};
  for (int64_t i = 0; i < width; i += kLanes) total += load(a + i) * load(b + i);
  return sum(total);
}

}  // namespace stepscan::delta
