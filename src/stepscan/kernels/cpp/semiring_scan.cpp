// h[t] = plus(times(a[t], h[t-1]), b[t]) over contiguous float32 [B, T, D]; h[-1] is the incoming state
// [B, D]. Where resets[t] is set, h[t-1] counts as `initial`. Channels are independent: a task is one
// row and one strip of channels, whose vectors hide each other's waiting for the step before.

#include <algorithm>

#include "parallel.h"
#include "vector.h"

namespace {

using stepscan::kLanes;
using stepscan::load;
using stepscan::splat;
using stepscan::store;
using stepscan::Vec;

constexpr int64_t kStrip = 64;

// Unlike stepscan::max and min, these pass on a NaN of either side.
STEPSCAN_INLINE Vec larger(Vec x, Vec y) { return x != x ? x : x > y ? x : y; }
STEPSCAN_INLINE Vec smaller(Vec x, Vec y) { return x != x ? x : x < y ? x : y; }

// log(e^x + e^y). Equal numbers apart: the difference of infinities is none.
STEPSCAN_INLINE Vec log_add_exp(Vec x, Vec y) {
  const Vec unequal = larger(x, y) + stepscan::log1p(stepscan::exp(-stepscan::abs(x - y)));
  return x == y ? x + 0.69314718056f : unequal;
}

// A gradient, divided among the two operands of an operation.
struct Split {
  Vec first;
  Vec second;
};

// All to one; equal numbers share it.
STEPSCAN_INLINE Split to_larger(Vec grad, Vec x, Vec y) {
  const Vec half = 0.5f * grad, none{};
  return {x > y ? grad : x == y ? half : none, y > x ? grad : x == y ? half : none};
}

// The weights e^x and e^y: each from an exponential that is no larger than 1, so that the smaller keeps
// its digits.
STEPSCAN_INLINE Split by_weight(Vec grad, Vec x, Vec y) {
  const Vec ratio = x == y ? splat(1.0f) : stepscan::exp(-stepscan::abs(x - y));
  const Vec more = grad / (1.0f + ratio), less = ratio * more;
  return {x > y ? more : less, x > y ? less : more};
}

struct MinMax {
  STEPSCAN_INLINE Vec times(Vec a, Vec h) { return smaller(a, h); }
  STEPSCAN_INLINE Vec plus(Vec x, Vec y) { return larger(x, y); }
  STEPSCAN_INLINE Split split_times(Vec grad, Vec a, Vec h) { return to_larger(grad, -a, -h); }
  STEPSCAN_INLINE Split split_plus(Vec grad, Vec x, Vec y) { return to_larger(grad, x, y); }
};

struct MaxPlus {
  STEPSCAN_INLINE Vec times(Vec a, Vec h) { return a + h; }
  STEPSCAN_INLINE Vec plus(Vec x, Vec y) { return larger(x, y); }
  STEPSCAN_INLINE Split split_times(Vec grad, Vec, Vec) { return {grad, grad}; }
  STEPSCAN_INLINE Split split_plus(Vec grad, Vec x, Vec y) { return to_larger(grad, x, y); }
};

struct LogSumExpPlus {
  STEPSCAN_INLINE Vec times(Vec a, Vec h) { return a + h; }
  STEPSCAN_INLINE Vec plus(Vec x, Vec y) { return log_add_exp(x, y); }
  STEPSCAN_INLINE Split split_times(Vec grad, Vec, Vec) { return {grad, grad}; }
  STEPSCAN_INLINE Split split_plus(Vec grad, Vec x, Vec y) { return by_weight(grad, x, y); }
};

struct Sizes {
  int64_t rows;
  int64_t steps;
  int64_t channels;
};

template <typename Task>
void for_each_strip(Sizes n, Task task) {
  const int64_t strips = (n.channels + kStrip - 1) / kStrip;
  stepscan::parallel_for(n.rows * strips, n.rows * n.steps * n.channels, [&](int64_t i) {
    const int64_t first = i % strips * kStrip;
    task(i / strips, first, std::min(kStrip, n.channels - first));
  });
}

template <typename Semiring>
void scan(const float* a, const float* b, const float* state, const uint8_t* resets, float initial,
          float* h, Sizes n) {
  float afresh[kStrip];
  std::fill(afresh, afresh + kStrip, initial);
  for_each_strip(n, [=, &afresh](int64_t row, int64_t first, int64_t width) {
    const float* before = state + row * n.channels + first;
    for (int64_t t = 0; t < n.steps; ++t) {
      const int64_t at = (row * n.steps + t) * n.channels + first;
      if (resets[row * n.steps + t]) before = afresh;
      for (int64_t i = 0; i < width; i += kLanes) {
        const int64_t lanes = width - i;
        const Vec kept = Semiring::times(load(a + at + i, lanes), load(before + i, lanes));
        store(h + at + i, Semiring::plus(kept, load(b + at + i, lanes)), lanes);
      }
      before = h + at;
    }
  });
}

template <typename Semiring>
void scan_backward(const float* grad_h, const float* a, const float* b, const float* h,
                   const float* state, const uint8_t* resets, float initial, float* grad_a,
                   float* grad_b, float* grad_state, Sizes n) {
  float afresh[kStrip];
  std::fill(afresh, afresh + kStrip, initial);
  for_each_strip(n, [=, &afresh](int64_t row, int64_t first, int64_t width) {
    float from_next[kStrip] = {};
    for (int64_t t = n.steps - 1; t >= 0; --t) {
      const int64_t at = (row * n.steps + t) * n.channels + first;
      const bool reset = resets[row * n.steps + t];
      const float* before = reset ? afresh : t ? h + at - n.channels : state + row * n.channels + first;
      for (int64_t i = 0; i < width; i += kLanes) {
        const int64_t lanes = width - i;
        const Vec a_t = load(a + at + i, lanes), previous = load(before + i, lanes);
        const Vec grad = load(grad_h + at + i, lanes) + load(from_next + i);
        const Vec kept = Semiring::times(a_t, previous);
        const Split sum = Semiring::split_plus(grad, kept, load(b + at + i, lanes));
        const Split product = Semiring::split_times(sum.first, a_t, previous);
        store(grad_a + at + i, product.first, lanes);
        store(grad_b + at + i, sum.second, lanes);
        store(from_next + i, reset ? Vec{} : product.second);
      }
    }
    std::copy(from_next, from_next + width, grad_state + row * n.channels + first);
  });
}

// In the order of ops/semiring_scan.py.
template <typename Run>
void with_semiring(int64_t semiring, Run run) {
  if (semiring == 0) return run(MinMax{});
  if (semiring == 1) return run(MaxPlus{});
  run(LogSumExpPlus{});
}

}  // namespace

STEPSCAN_API void semiring_scan(const float* a, const float* b, const float* state,
                                const uint8_t* resets, int64_t semiring, double initial, float* h,
                                int64_t rows, int64_t steps, int64_t channels) {
  with_semiring(semiring, [=](auto kind) {
    scan<decltype(kind)>(a, b, state, resets, initial, h, {rows, steps, channels});
  });
}

STEPSCAN_API void semiring_scan_backward(const float* grad_h, const float* a, const float* b,
                                         const float* h, const float* state, const uint8_t* resets,
                                         int64_t semiring, double initial, float* grad_a,
                                         float* grad_b, float* grad_state, int64_t rows,
                                         int64_t steps, int64_t channels) {
  with_semiring(semiring, [=](auto kind) {
    scan_backward<decltype(kind)>(grad_h, a, b, h, state, resets, initial, grad_a, grad_b, grad_state,
                                  {rows, steps, channels});
  });
}
