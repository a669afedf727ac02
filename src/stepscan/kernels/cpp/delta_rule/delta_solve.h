// Triangular systems of the small matrices inside a chunk of the delta rule: as `matmul.h`, whose blocks
// they are made of.

#pragma once

#include <cstdint>

#include "matmul.h"

namespace stepscan::delta {

template <int Rows, int Vecs>
STEPSCAN_INLINE void solve_rows(Strided l, float* x, int64_t x_row, int64_t first, int64_t rows) {
  int64_t i = first;
  for (; i + Rows <= rows; i += Rows) {
    Vec sums[Rows][Vecs];
    start_block(sums, x + i * x_row, x_row, kAdd);
    add_product(sums, l.from(i), x, x_row, 0, i, -1.0f);
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
[[gnu::noinline]] static void solve(Strided l, float* x, int64_t x_row, int64_t rows, int64_t columns) {
  int64_t j = 0;
  for (; j + kBlockVecs * kLanes <= padded(columns); j += kBlockVecs * kLanes)
    solve_rows<4, kBlockVecs>(l, x + j, x_row, 0, rows);
  for (; j < columns; j += kLanes) solve_rows<4, 1>(l, x + j, x_row, 0, rows);
}

// x = (I + l)^-T x: the same from the last row to the first.
STEPSCAN_INLINE void solve_transposed(Strided l, float* x, int64_t x_row, int64_t rows, int64_t columns) {
  const float* last = l.data + (rows - 1) * (l.row + l.column);
  solve({last, -l.column, -l.row}, x + (rows - 1) * x_row, -x_row, rows, columns);
}

}  // namespace stepscan::delta
