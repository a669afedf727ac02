// y[t] = f(bias + sum_j weight[:, j] * x[t - W + 1 + j]) over contiguous float32 [B, T, D], f the identity
// or silu. Times before 0 are rows of the state [B, W-1, D]; what lies before a reset counts as zero.
//
// The work is bound by memory. A task walks a stretch of one row, a strip of channels wide enough for
// whole pages to be read and narrow enough for a window of them to stay in the first-level cache, four
// steps at a time: several streams of memory at once, and each input is loaded once for all its uses.
// Backward computes what went into f once more instead of having it kept.

#include <algorithm>
#include <type_traits>
#include <vector>

#include "parallel.h"
#include "vector.h"

namespace {

using stepscan::kLanes;
using stepscan::load;
using stepscan::Scratch;
using stepscan::store;
using stepscan::Vec;

constexpr int64_t kStrip = 512;
constexpr int64_t kStretch = 128;  // steps of a task
constexpr int64_t kTile = 32;      // steps whose gradients are held at once, and at least two windows
constexpr int kSteps = 4;          // at a time
alignas(64) constexpr float kZeros[kStrip] = {};

struct Sizes {
  int64_t rows;
  int64_t steps;
  int64_t channels;
  int64_t window;
  int64_t past() const { return window - 1; }
};

// Transposed to [W, D] and padded, so that vectors run along the channels; the last row is the bias.
class Weights {
 public:
  Weights(const float* weight, const float* bias, Sizes n)
      : width_(stepscan::padded(n.channels)), table_((n.window + 1) * width_) {
    std::fill_n(static_cast<float*>(table_), (n.window + 1) * width_, 0.0f);
    for (int64_t d = 0; d < n.channels; ++d) {
      for (int64_t j = 0; j < n.window; ++j) table_[j * width_ + d] = weight[d * n.window + j];
      if (bias) table_[n.window * width_ + d] = bias[d];
    }
  }
  const float* row(int64_t j) const { return table_ + j * width_; }

 private:
  int64_t width_;
  Scratch table_;
};

// One row of the batch and one strip of its channels: where the inputs lie, and what resets part.
struct Row {
  const float* x;
  const float* state;
  const uint8_t* resets;
  Sizes n;

  Row(const float* x, const float* state, const uint8_t* resets, Sizes n, int64_t row, int64_t first)
      : x(x + row * n.steps * n.channels + first),
        state(state + row * n.past() * n.channels + first),
        resets(resets ? resets + row * n.steps : nullptr),
        n(n) {}

  const float* input(int64_t s) const {
    return s < 0 ? state + (n.past() + s) * n.channels : x + s * n.channels;
  }

  // Whether a reset lies between two times: after the first, or at the second.
  bool parted(int64_t s, int64_t t) const {
    if (!resets) return false;
    for (int64_t i = std::max<int64_t>(s + 1, 0); i <= std::min(t, n.steps - 1); ++i)
      if (resets[i]) return true;
    return false;
  }
};

// Walks the times from `start` to `end`, several at once where no reset lies in what they look at: as far
// back as `back` steps, and as far ahead as `ahead`.
template <typename Block>
STEPSCAN_INLINE void for_each_block(const Row& row, int64_t start, int64_t end, int64_t back,
                                    int64_t ahead, Block block) {
  for (int64_t t = start; t < end;) {
    const bool together = t + kSteps <= end && !row.parted(t - back, t + kSteps - 1 + ahead);
    if (together) block(t, std::integral_constant<int, kSteps>{});
    else block(t, std::integral_constant<int, 1>{});
    t += together ? kSteps : 1;
  }
}

// visit(c, lanes) for every vector of a strip.
template <typename Visit>
STEPSCAN_INLINE void for_each_vector(int64_t width, Visit visit) {
  int64_t c = 0;
  for (; c + kLanes <= width; c += kLanes) visit(c, std::integral_constant<int64_t, kLanes>{});
  if (c < width) visit(c, width - c);
}

// sums[i] += sum_j weights[j] * rows[i + j]; a Window of 0 is one known only when running.
template <int Steps, int Window>
STEPSCAN_INLINE void add_weighted(Vec (&sums)[Steps], const float* const* rows, const float* const* weights,
                                  int64_t window, int64_t c, int64_t lanes) {
  const int64_t count = Window ? Window : window;
#pragma GCC unroll 4
  for (int64_t j = 0; j < count; ++j) {
    const Vec weight = load(weights[j] + c);
#pragma GCC unroll 4
    for (int i = 0; i < Steps; ++i) sums[i] += weight * load(rows[i + j] + c, lanes);
  }
}

struct Task {
  int64_t row;
  int64_t first;  // channel
  int64_t width;
  int64_t start;  // step
  int64_t end;
};

struct Tasks {
  Sizes n;
  int64_t strips = (n.channels + kStrip - 1) / kStrip;
  int64_t stretches = (n.steps + kStretch - 1) / kStretch;

  template <typename Run>
  void for_each(Run run) const {
    const int64_t work = n.rows * n.steps * n.channels * n.window;
    stepscan::parallel_for(n.rows * stretches * strips, work, [&](int64_t i) {
      const int64_t strip = i % strips, stretch = i / strips % stretches;
      const int64_t first = strip * kStrip, start = stretch * kStretch;
      run(Task{i / strips / stretches, first, std::min(kStrip, n.channels - first), start,
               std::min(start + kStretch, n.steps)});
    });
  }
};

// Pointers to the weights of each place in the window, then to the bias, from a strip's first channel.
std::vector<const float*> columns(const Weights& weights, Sizes n, int64_t first) {
  std::vector<const float*> pointers;
  for (int64_t j = 0; j <= n.window; ++j) pointers.push_back(weights.row(j) + first);
  return pointers;
}

// What the steps from t on see: rows[i + j] is place j in the window of step t + i.
void fill_window(const Row& row, int64_t t, int64_t steps, std::vector<const float*>& rows) {
  for (int64_t k = 0; k < steps + row.n.past(); ++k) {
    const int64_t s = t - row.n.past() + k;
    rows[k] = steps == 1 && row.parted(s, t) ? kZeros : row.input(s);
  }
}

template <int Window, bool Silu>
void forward(const Task& task, const Row& row, const Weights& table, float* y) {
  const Sizes n = row.n;
  const auto weights = columns(table, n, task.first);
  std::vector<const float*> rows(kSteps + n.past());
  for_each_block(row, task.start, task.end, n.past(), 0, [&](int64_t t, auto steps) {
    constexpr int Steps = decltype(steps)::value;
    fill_window(row, t, Steps, rows);
    for_each_vector(task.width, [&](int64_t c, auto lanes) {
      Vec sums[Steps];
      for (Vec& sum : sums) sum = load(weights[n.window] + c);
      add_weighted<Steps, Window>(sums, rows.data(), weights.data(), n.window, c, lanes);
      for (int i = 0; i < Steps; ++i)
        store(y + (t + i) * n.channels + c, Silu ? stepscan::silu(sums[i]) : sums[i], lanes);
    });
  });
}

void keep_last_inputs(const Row& row, int64_t width, float* last) {
  const Sizes n = row.n;
  for (int64_t i = 0; i < n.past(); ++i) {
    const int64_t s = n.steps - n.past() + i;
    const float* kept = row.parted(s, n.steps - 1) ? kZeros : row.input(s);
    std::copy(kept, kept + width, last + i * n.channels);
  }
}

// The derivative of silu(z) = z sigmoid(z).
STEPSCAN_INLINE Vec silu_slope(Vec z) {
  const Vec s = stepscan::sigmoid(z);
  return s + z * s * (1.0f - s);
}

// Gradients of what goes into f, for the steps from start to end: `inside[t - start]`. Those of
// weights and bias are added up to the step `own`; the steps after it are another tile's.
template <int Window, bool Silu>
void add_up_inside(const Task& task, const Row& row, const std::vector<const float*>& weights,
                   const float* grad_y, int64_t start, int64_t own, int64_t end, float* inside,
                   float* grad_weights) {
  const Sizes n = row.n;
  std::vector<const float*> rows(kSteps + n.past());
  const auto add_block = [&](int64_t t, auto steps) {
    constexpr int Steps = decltype(steps)::value;
    fill_window(row, t, Steps, rows);
    for_each_vector(task.width, [&](int64_t c, auto lanes) {
      Vec grads[Steps];
      for (int i = 0; i < Steps; ++i) grads[i] = load(grad_y + (t + i) * n.channels + c, lanes);
      if constexpr (Silu) {
        Vec sums[Steps];
        for (Vec& sum : sums) sum = load(weights[n.window] + c);
        add_weighted<Steps, Window>(sums, rows.data(), weights.data(), n.window, c, lanes);
        for (int i = 0; i < Steps; ++i) grads[i] *= silu_slope(sums[i]);
      }
      for (int i = 0; i < Steps; ++i) store(inside + (t + i - start) * kStrip + c, grads[i]);
      if (t >= own) return;
      const int64_t count = Window ? Window : n.window;
#pragma GCC unroll 4
      for (int64_t j = 0; j < count; ++j) {
        Vec sum = load(grad_weights + j * kStrip + c);
        for (int i = 0; i < Steps; ++i) sum += grads[i] * load(rows[i + j] + c, lanes);
        store(grad_weights + j * kStrip + c, sum);
      }
      Vec sum = load(grad_weights + count * kStrip + c);
      for (int i = 0; i < Steps; ++i) sum += grads[i];
      store(grad_weights + count * kStrip + c, sum);
    });
  };
  for_each_block(row, start, own, n.past(), 0, add_block);
  for_each_block(row, own, end, n.past(), 0, add_block);
}

// The gradient of the input of time s meets the weights in the opposite order: the newest place in
// the window is that of step s itself.
template <int Window>
void spread_to_inputs(const Task& task, const Row& row, const std::vector<const float*>& weights,
                      const float* inside, int64_t first_inside, int64_t start, int64_t end,
                      float* grad_x, float* grad_past) {
  const Sizes n = row.n;
  std::vector<const float*> rows(kSteps + n.past());
  std::vector<const float*> flipped(weights.rend() - n.window, weights.rend());
  for_each_block(row, start, end, 0, n.past(), [&](int64_t s, auto steps) {
    constexpr int Steps = decltype(steps)::value;
    for (int64_t k = 0; k < Steps + n.past(); ++k) {
      const int64_t t = s + k;
      const bool none = t < 0 || t >= n.steps || (Steps == 1 && row.parted(s, t));
      rows[k] = none ? kZeros : inside + (t - first_inside) * kStrip;
    }
    for_each_vector(task.width, [&](int64_t c, auto lanes) {
      Vec sums[Steps] = {};
      add_weighted<Steps, Window>(sums, rows.data(), flipped.data(), n.window, c, kLanes);
      for (int i = 0; i < Steps; ++i) {
        const int64_t t = s + i;
        float* to = t < 0 ? grad_past + (n.past() + t) * n.channels : grad_x + t * n.channels;
        store(to + c, sums[i], lanes);
      }
    });
  });
}

// Inputs that ended in the outgoing state have a part of its gradient.
void add_from_state(const Task& task, const Row& row, const float* grad_last, int64_t start, int64_t end,
                    float* grad_x, float* grad_past) {
  const Sizes n = row.n;
  for (int64_t s = std::max(start, n.steps - n.past()); s < end; ++s) {
    if (row.parted(s, n.steps - 1)) continue;
    const float* from = grad_last + (s - n.steps + n.past()) * n.channels;
    float* to = s < 0 ? grad_past + (n.past() + s) * n.channels : grad_x + s * n.channels;
    for (int64_t i = 0; i < task.width; ++i) to[i] += from[i];
  }
}

struct Gradients {
  const float* y;
  const float* last;
  float* x;
  float* past;
};

template <int Window, bool Silu>
void backward(const Task& task, const Row& row, const Weights& table, Gradients grad,
              float* grad_weights) {
  const Sizes n = row.n;
  const auto weights = columns(table, n, task.first);
  const int64_t tile = std::max(kTile, 2 * n.window);
  const Scratch inside((tile + n.past()) * kStrip);
  std::fill_n(grad_weights, (n.window + 1) * kStrip, 0.0f);
  for (int64_t start = task.start; start < task.end; start += tile) {
    const int64_t own = std::min(start + tile, task.end);
    const int64_t seen = std::min(own + n.past(), n.steps);
    add_up_inside<Window, Silu>(task, row, weights, grad.y, start, own, seen, inside, grad_weights);
    const int64_t first = start ? start : -n.past();  // the first tile also serves the times before
    spread_to_inputs<Window>(task, row, weights, inside, start, first, own, grad.x, grad.past);
    add_from_state(task, row, grad.last, first, own, grad.x, grad.past);
  }
}

// The gradients of weights and bias, added up over tasks in their order.
void add_up_tasks(const Tasks& tasks, const float* partial, float* grad_weight, float* grad_bias) {
  const Sizes n = tasks.n;
  const int64_t each = (n.window + 1) * kStrip;
  stepscan::parallel_for(tasks.strips, n.rows * tasks.stretches * tasks.strips * each, [&](int64_t strip) {
    const Scratch total(each);
    std::fill_n(static_cast<float*>(total), each, 0.0f);
    for (int64_t i = 0; i < n.rows * tasks.stretches; ++i) {
      const float* part = partial + (i * tasks.strips + strip) * each;
      for (int64_t k = 0; k < each; k += kLanes) store(total + k, load(total + k) + load(part + k));
    }
    const int64_t first = strip * kStrip, width = std::min(kStrip, n.channels - first);
    for (int64_t d = 0; d < width; ++d) {
      for (int64_t j = 0; j < n.window; ++j)
        grad_weight[(first + d) * n.window + j] = total[j * kStrip + d];
      grad_bias[first + d] = total[n.window * kStrip + d];
    }
  });
}

// The usual window is known when compiling, so that all of it stays in registers.
template <typename Run>
void with_kind(int64_t window, bool silu, Run run) {
  using Any = std::integral_constant<int, 0>;
  using Usual = std::integral_constant<int, 4>;
  if (window == 4 && silu) return run(Usual{}, std::true_type{});
  if (window == 4) return run(Usual{}, std::false_type{});
  if (silu) return run(Any{}, std::true_type{});
  run(Any{}, std::false_type{});
}

}  // namespace

STEPSCAN_API void short_conv(const float* x, const float* weight, const float* bias, const float* state,
                             const uint8_t* resets, int64_t silu, float* y, float* last, int64_t rows,
                             int64_t steps, int64_t channels, int64_t window) {
  const Sizes n{rows, steps, channels, window};
  const Weights weights(weight, bias, n);
  with_kind(window, silu, [&](auto width, auto f) {
    Tasks{n}.for_each([&](const Task& task) {
      const Row row(x, state, resets, n, task.row, task.first);
      float* out = y + task.row * steps * channels + task.first;
      forward<decltype(width)::value, decltype(f)::value>(task, row, weights, out);
      if (task.end == steps)
        keep_last_inputs(row, task.width, last + task.row * n.past() * channels + task.first);
    });
  });
}

STEPSCAN_API void short_conv_backward(const float* grad_y, const float* grad_last, const float* x,
                                      const float* weight, const float* bias, const float* state,
                                      const uint8_t* resets, int64_t silu, float* grad_x,
                                      float* grad_weight, float* grad_bias, float* grad_past,
                                      int64_t rows, int64_t steps, int64_t channels, int64_t window) {
  const Sizes n{rows, steps, channels, window};
  const Weights weights(weight, bias, n);
  const Tasks tasks{n};
  const int64_t each = (window + 1) * kStrip;
  const Scratch partial(rows * tasks.stretches * tasks.strips * each);
  with_kind(window, silu, [&](auto width, auto f) {
    tasks.for_each([&](const Task& task) {
      const Row row(x, state, resets, n, task.row, task.first);
      const int64_t at = task.row * steps * channels + task.first;
      const int64_t at_past = task.row * n.past() * channels + task.first;
      const int64_t number =
          (task.row * tasks.stretches + task.start / kStretch) * tasks.strips + task.first / kStrip;
      backward<decltype(width)::value, decltype(f)::value>(
          task, row, weights, {grad_y + at, grad_last + at_past, grad_x + at, grad_past + at_past},
          partial + number * each);
    });
  });
  add_up_tasks(tasks, partial, grad_weight, grad_bias);
}
