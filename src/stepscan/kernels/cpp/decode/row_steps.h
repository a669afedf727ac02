// Steps over whole rows, and those that only move or multiply numbers.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "attention_step.h"
#include "tape.h"
#include "team.h"
#include "vector.h"

namespace stepscan {

enum RowStep : int64_t { kSoftmax = 0, kLogSoftmax = 1, kLayerNorm = 2, kCumulate = 3 };

inline void run_row(RowStep step, const float* x, float* y, int64_t n, float epsilon, const float* weight,
                    const float* bias) {
  if (step == kCumulate) {
    double total = 0;
    for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(total += x[i]);
  }
  if (step == kSoftmax) {
    std::copy(x, x + n, y);
    const float scale = 1.0f / exponentials(y, n, nullptr);
    for (int64_t i = 0; i < n; ++i) y[i] *= scale;
  }
  if (step == kLogSoftmax) {
    const float most = *std::max_element(x, x + n);
    double total = 0;
    for (int64_t i = 0; i < n; ++i) total += std::exp(x[i] - most);
    const float log_total = static_cast<float>(std::log(total)) + most;
    for (int64_t i = 0; i < n; ++i) y[i] = x[i] - log_total;
  }
  if (step == kLayerNorm) {
    double total = 0, squares = 0;
    for (int64_t i = 0; i < n; ++i) total += x[i];
    const float mean = static_cast<float>(total / n);
    for (int64_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
    const float scale = static_cast<float>(1.0 / std::sqrt(squares / n + epsilon));
    for (int64_t i = 0; i < n; ++i)
      y[i] = (x[i] - mean) * scale * (weight ? weight[i] : 1.0f) + (bias ? bias[i] : 0.0f);
  }
}

inline void run_rows(Tape tape, int64_t part, int64_t parts) {
  const auto step = static_cast<RowStep>(tape.whole());
  const int64_t rows = tape.whole(), columns = tape.whole();
  const float epsilon = static_cast<float>(tape.number());
  const float *x = tape.address<const float>(), *weight = tape.address<const float>();
  const float* bias = tape.address<const float>();
  float* y = tape.address<float>();
  const auto [first, end] = part_of(rows, part, parts);
  for (int64_t r = first; r < end; ++r)
    run_row(step, x + r * columns, y + r * columns, columns, epsilon, weight, bias);
}

// Rows of a table, by number.
inline void run_lookup(Tape tape, int64_t part, int64_t parts) {
  const int64_t rows = tape.whole(), columns = tape.whole(), table_row = tape.whole();
  const int64_t* numbers = tape.address<const int64_t>();
  const float* table = tape.address<const float>();
  float* y = tape.address<float>();
  const auto [first, end] = part_of(rows, part, parts);
  for (int64_t r = first; r < end; ++r) {
    const float* row = table + numbers[r] * table_row;
    std::copy(row, row + columns, y + r * columns);
  }
}

// y[b] = a[b] m[b] for small matrices m [inner, columns] with neighbouring columns, a [rows, inner].
inline void run_small_products(Tape tape, int64_t part, int64_t parts) {
  const int64_t batch = tape.whole(), rows = tape.whole(), inner = tape.whole(), columns = tape.whole();
  const float* a = tape.address<const float>();
  const int64_t a_batch = tape.whole(), a_row = tape.whole(), a_inner = tape.whole();
  const float* m = tape.address<const float>();
  const int64_t m_batch = tape.whole(), m_row = tape.whole();
  float* y = tape.address<float>();
  const auto [first, end] = part_of(batch * rows, part, parts);
  for (int64_t i = first; i < end; ++i) {
    const int64_t b = i / rows, r = i % rows;
    const float* factors = a + b * a_batch + r * a_row;
    for (int64_t j = 0; j < columns; j += kLanes) {
      const int64_t lanes = std::min<int64_t>(kLanes, columns - j);
      Vec sums{};
      for (int64_t k = 0; k < inner; ++k)
        sums += splat(factors[k * a_inner]) * load(m + b * m_batch + k * m_row + j, lanes);
      store(y + i * columns + j, sums, lanes);
    }
  }
}

}  // namespace stepscan
