// The product of a step: a few rows of hidden state times a recurrent weight that stays in the cache.
// The weight is packed once per call, so that it is then read from front to back, lanes along units.

#pragma once

#include <cstdint>
#include <type_traits>

#include "parallel.h"
#include "vector.h"

namespace stepscan {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

// As many rows as leave all sums in registers, beside one vector per column and the row's factor.
constexpr int most_rows(int columns) {
  const int rows = (kRegisters - columns - 2) / columns;
  return rows > 8 ? 8 : rows;
}

// Ask for a line that will be wanted, where the hardware does not foresee it: the tokens of many rows lie
// far apart, so a step asks for its lines before its product, which hides the wait.
STEPSCAN_INLINE void expect(const float* p) { __builtin_prefetch(p); }

// f with n, 1 <= n <= Max, as a constant of the compiler.
template <int Max, typename F>
STEPSCAN_INLINE void with_constant(int64_t n, F f) {
  if constexpr (Max > 1)
    if (n < Max) return with_constant<Max - 1>(n, f);
  f(std::integral_constant<int, Max>{});
}

// Where element (i, gate, unit) of one head lies.
struct WeightStrides {
  int64_t head;
  int64_t inner;
  int64_t gate;
  int64_t unit;
};

// [heads, vectors of units, inner, gates, lanes]; what is beyond the units is zero.
inline void pack(const float* weight, WeightStrides at, float* packed, int64_t heads, int64_t inner,
                 int64_t gates, int64_t units) {
  const int64_t vectors = padded(units) / kLanes;
  parallel_for(heads * vectors, heads * inner * gates * units, [=](int64_t item) {
    const int64_t first = item % vectors * kLanes;
    const float* source = weight + item / vectors * at.head + first * at.unit;
    float* to = packed + item * inner * gates * kLanes;
    for (int64_t i = 0; i < inner; ++i)
      for (int64_t g = 0; g < gates; ++g, to += kLanes)
        for (int64_t lane = 0; lane < kLanes; ++lane)
          to[lane] = first + lane < units ? source[i * at.inner + g * at.gate + lane * at.unit] : 0.0f;
  });
}

constexpr int64_t kAhead = 1536;  // floats between what is read of a weight and what is asked for

// sums[row][column] += sum over i of x[row][i] * w[column][i]; w steps by `w_inner` from i to i.
template <int Rows, int Columns>
STEPSCAN_INLINE void accumulate(Vec (&sums)[Rows][Columns], const float* x, int64_t x_row,
                                const float* w, int64_t w_column, int64_t w_inner, int64_t inner) {
  // A processor works on some eight multiply-adds at once: fewer sums than that are split.
  constexpr int kChains = Rows * Columns >= 8 ? 1 : Rows * Columns >= 3 ? 2 : 4;
  Vec parts[kChains][Rows][Columns];
#pragma GCC unroll 4
  for (int c = 0; c < kChains; ++c)
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < Columns; ++j) parts[c][i][j] = c == 0 ? sums[i][j] : Vec{};

  const auto add = [&](Vec (&to)[Rows][Columns], int64_t k) __attribute__((always_inline)) {
    Vec column[Columns];
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) {
      const float* from = w + j * w_column + k * w_inner;
      column[j] = load(from);
      expect(from + kAhead);  // hardware looks ahead within a page; a large weight spans many
    }
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      const Vec factor = splat(x[i * x_row + k]);
#pragma GCC unroll 4
      for (int j = 0; j < Columns; ++j) to[i][j] += factor * column[j];
    }
  };
  int64_t k = 0;
  for (; k + kChains <= inner; k += kChains)
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) add(parts[c], k + c);
  for (; k < inner; ++k) add(parts[0], k);

#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) {
      sums[i][j] = parts[0][i][j];
#pragma GCC unroll 4
      for (int c = 1; c < kChains; ++c) sums[i][j] += parts[c][i][j];
    }
}

}  // namespace stepscan
