// One step of each nonlinear cell, a vector of units at a time, and its derivative. A cell says
//
//   kGates   parts of u and of R h          kStates  what it carries on, the hidden state first
//   kKept    states after the hidden one that the derivative reads: the first entries of `saved`
//   kSaved   entries that the derivative reads, per unit and token
//   kResetsProduct   its last gate multiplies R h before adding it to u: two different gradients
//   fresh(s)   state s where nothing has been seen
//   step(u, past, state, saved)   past = R h + b_r; state is replaced by the one after the step
//   back(saved, before, hidden, grads, grad_u)   before: the hidden and the kept states before the
//       step; hidden: the one after it; grads of the states after the step are replaced by those of
//       the states before, but for what goes through R h. Returns the gradient of the last part of
//       R h.
//
// The formulas, with their sources, are in ops/cells.py.

#pragma once

#include "vector.h"

namespace stepscan {

struct Tanh {
  static Vec apply(Vec x) { return tanh(x); }
  static Vec slope(Vec y) { return 1.0f - y * y; }  // as a function of the result
};

struct Relu {
  static Vec apply(Vec x) { return max(Vec{}, x); }
  static Vec slope(Vec y) { return y > Vec{} ? splat(1.0f) : Vec{}; }
};

struct Identity {
  static Vec apply(Vec x) { return x; }
  static Vec slope(Vec) { return splat(1.0f); }
};

STEPSCAN_INLINE Vec sigmoid_slope(Vec y) { return y * (1.0f - y); }

// h = f(u + R h)
template <typename Function>
struct Elman {
  static constexpr int kGates = 1, kStates = 1, kKept = 0, kSaved = 0;
  static constexpr bool kResetsProduct = false;
  static constexpr float fresh(int) { return 0.0f; }

  STEPSCAN_INLINE void step(const Vec* u, const Vec* past, Vec* state, Vec*) {
    state[0] = Function::apply(u[0] + past[0]);
  }

  STEPSCAN_INLINE Vec back(const Vec*, const Vec*, Vec hidden, Vec* grads, Vec* grad_u) {
    grad_u[0] = grads[0] * Function::slope(hidden);
    grads[0] = Vec{};
    return grad_u[0];
  }
};

struct Gru {
  static constexpr int kGates = 3, kStates = 1, kKept = 0, kSaved = 4;
  static constexpr bool kResetsProduct = true;
  static constexpr float fresh(int) { return 0.0f; }

  STEPSCAN_INLINE void step(const Vec* u, const Vec* past, Vec* state, Vec* saved) {
    const Vec r = sigmoid(u[0] + past[0]), z = sigmoid(u[1] + past[1]);
    const Vec n = tanh(u[2] + r * past[2]);
    state[0] = n + z * (state[0] - n);
    saved[0] = r, saved[1] = z, saved[2] = n, saved[3] = past[2];
  }

  STEPSCAN_INLINE Vec back(const Vec* saved, const Vec* before, Vec, Vec* grads, Vec* grad_u) {
    const Vec r = saved[0], z = saved[1], n = saved[2], past = saved[3];
    const Vec grad = grads[0];
    grad_u[2] = grad * (1.0f - z) * (1.0f - n * n);
    grad_u[1] = grad * (before[0] - n) * sigmoid_slope(z);
    grad_u[0] = grad_u[2] * past * sigmoid_slope(r);
    grads[0] = grad * z;
    return grad_u[2] * r;
  }
};

struct Lstm {
  static constexpr int kGates = 4, kStates = 2, kKept = 1, kSaved = 5;
  static constexpr bool kResetsProduct = false;
  static constexpr float fresh(int) { return 0.0f; }

  STEPSCAN_INLINE void step(const Vec* u, const Vec* past, Vec* state, Vec* saved) {
    const Vec i = sigmoid(u[0] + past[0]), f = sigmoid(u[1] + past[1]);
    const Vec g = tanh(u[2] + past[2]), o = sigmoid(u[3] + past[3]);
    const Vec c = f * state[1] + i * g;
    state[0] = o * tanh(c);
    state[1] = c;
    saved[0] = c, saved[1] = i, saved[2] = f, saved[3] = g, saved[4] = o;
  }

  STEPSCAN_INLINE Vec back(const Vec* saved, const Vec* before, Vec, Vec* grads, Vec* grad_u) {
    const Vec i = saved[1], f = saved[2], g = saved[3], o = saved[4];
    const Vec squashed = tanh(saved[0]);
    const Vec grad_c = grads[1] + grads[0] * o * (1.0f - squashed * squashed);
    grad_u[0] = grad_c * g * sigmoid_slope(i);
    grad_u[1] = grad_c * before[1] * sigmoid_slope(f);
    grad_u[2] = grad_c * i * (1.0f - g * g);
    grad_u[3] = grads[0] * squashed * sigmoid_slope(o);
    grads[0] = Vec{};
    grads[1] = grad_c * f;
    return grad_u[3];
  }
};

// States: hidden, cell, normaliser, logarithm of the scale that the two are divided by.
struct Slstm {
  static constexpr int kGates = 4, kStates = 4, kKept = 2, kSaved = 7;
  static constexpr bool kResetsProduct = false;
  static constexpr float fresh(int state) { return state == 3 ? -1e30f : 0.0f; }

  STEPSCAN_INLINE void step(const Vec* u, const Vec* past, Vec* state, Vec* saved) {
    const Vec log_i = u[0] + past[0], forget = u[1] + past[1];
    const Vec z = tanh(u[2] + past[2]), o = sigmoid(u[3] + past[3]);
    const Vec kept = log_sigmoid(forget) + state[3];
    const Vec scale = max(log_i, kept);
    const Vec i = exp(log_i - scale), f = exp(kept - scale);
    const Vec c = f * state[1] + i * z, n = f * state[2] + i;
    state[0] = o * (c / n);
    state[1] = c, state[2] = n, state[3] = scale;
    saved[0] = c, saved[1] = n, saved[2] = i, saved[3] = f, saved[4] = z, saved[5] = o;
    saved[6] = sigmoid(-forget);  // the slope of log_sigmoid
  }

  STEPSCAN_INLINE Vec back(const Vec* saved, const Vec* before, Vec, Vec* grads, Vec* grad_u) {
    const Vec c = saved[0], n = saved[1], i = saved[2], f = saved[3], z = saved[4], o = saved[5];
    const Vec ratio = c / n, share = grads[0] * o / n;
    const Vec grad_c = grads[1] + share, grad_n = grads[2] - share * ratio;
    const Vec through_i = (grad_c * z + grad_n) * i;
    const Vec through_f = (grad_c * before[1] + grad_n * before[2]) * f;
    const Vec grad_scale = grads[3] - through_i - through_f;
    // The larger of the two is the scale, so its factor is exp(0): it has all of the scale's
    // gradient, half of it where both are equal, as in torch.
    const Vec one = splat(1.0f), half = splat(0.5f);
    const Vec to_i = i < one ? Vec{} : f < one ? one : half;
    const Vec grad_kept = through_f + (1.0f - to_i) * grad_scale;
    grad_u[0] = through_i + to_i * grad_scale;
    grad_u[1] = grad_kept * saved[6];
    grad_u[2] = grad_c * i * (1.0f - z * z);
    grad_u[3] = grads[0] * ratio * sigmoid_slope(o);
    grads[0] = Vec{};
    grads[1] = grad_c * f;
    grads[2] = grad_n * f;
    grads[3] = grad_kept;
    return grad_u[3];
  }
};

}  // namespace stepscan
