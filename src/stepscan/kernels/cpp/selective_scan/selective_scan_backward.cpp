// The gradients of the selective scan: see selective_scan.h for the equations and how they are cut.
//
// Chunks go from the last to the first. Each is computed again from the states that were saved before
// it, this time keeping every state and decay, and then gone through backwards:
//
//   grad_h[t] = grad_y[t] C[t] + exp(step[t+1] A) grad_h[t+1]      grad_y before the gate
//   grad_B[t] = sum of grad_h[t] input[t]                          over the channels of a group
//   grad_C[t] = sum of grad_y[t] h[t]
//   grad_input[t] = grad_h[t] B[t]
//   grad of step[t] A = grad_h[t] exp(step[t] A) h[t-1]

#include "selective_scan.h"

namespace stepscan::selective {
namespace {

constexpr int kBlock = 8;  // two vectors a state, its gradient and that of A, in 32 registers

struct Gradients {
  const float *y, *last;  // given; null is zero
  float *x, *dt, *A, *B, *C, *D, *z, *bias, *state;
};

// What a chunk of one strip needs, [chunk, kLanes] each.
struct Work {
  float *step, *input, *read, *grad_read, *grad_input, *grad_exponent;
};

// Kept of a block of states, [chunk, Count, kLanes] each; after[-1] holds the states before the chunk.
struct Kept {
  float *decay, *after;
};

template <int Count>
STEPSCAN_INLINE void advance_keeping(const Inputs& in, const Chunk& chunk, const float* B,
                                     const float* C, const float* rates, const float* saved,
                                     const Work& work, Kept kept) {
  Vec state[Count];
  for (int n = 0; n < Count; ++n) {
    state[n] = load(saved + n * kSavedLanes);
    store(kept.after + (n - Count) * kLanes, state[n]);
  }
  const int64_t next = chunk.sizes.groups * chunk.sizes.states;
  for (int64_t j = 0; j < chunk.length; ++j, B += next, C += next) {
    const bool reset = in.resets[chunk.token(j)];
    const Vec size = load(work.step + j * kLanes), write = load(work.input + j * kLanes);
    Vec read = load(work.read + j * kLanes);
#pragma GCC unroll 16
    for (int n = 0; n < Count; ++n) {
      const Vec decay = reset ? Vec{} : exp2(size * load(rates + n * kLanes));
      state[n] = (reset ? Vec{} : decay * state[n]) + write * B[n];
      read += state[n] * C[n];
      store(kept.decay + (j * Count + n) * kLanes, decay);
      store(kept.after + (j * Count + n) * kLanes, state[n]);
    }
    store(work.read + j * kLanes, read);
  }
}

// grad_h and grad_A [Count, kLanes] go on from chunk to chunk; grad_B and grad_C, [chunk, states,
// kLanes] from these states on, from strip to strip.
template <int Count>
STEPSCAN_INLINE void go_back(const Inputs& in, const Chunk& chunk, const float* B, const float* C,
                             const float* rates, const Work& work, Kept kept, float* grad_h,
                             float* grad_A, float* grad_B, float* grad_C) {
  Vec state[Count], rate[Count];  // their gradients
  for (int n = 0; n < Count; ++n) {
    state[n] = load(grad_h + n * kLanes);
    rate[n] = load(grad_A + n * kLanes);
  }
  const int64_t next = chunk.sizes.groups * chunk.sizes.states;
  for (int64_t j = chunk.length - 1; j >= 0; --j) {
    const bool reset = in.resets[chunk.token(j)];
    const float* after = kept.after + j * Count * kLanes;
    const float* before = reset ? kZeros : after - Count * kLanes;
    const float* decay = kept.decay + j * Count * kLanes;
    const float *B_j = B + j * next, *C_j = C + j * next;
    float* to_B = grad_B + j * chunk.sizes.states * kLanes;
    float* to_C = grad_C + j * chunk.sizes.states * kLanes;
    const Vec size = load(work.step + j * kLanes), write = load(work.input + j * kLanes);
    const Vec read = load(work.grad_read + j * kLanes);
    Vec input = load(work.grad_input + j * kLanes), exponent = load(work.grad_exponent + j * kLanes);
#pragma GCC unroll 16
    for (int n = 0; n < Count; ++n) {
      store(to_C + n * kLanes, load(to_C + n * kLanes) + read * load(after + n * kLanes));
      const Vec whole = state[n] + read * C_j[n];
      store(to_B + n * kLanes, load(to_B + n * kLanes) + whole * write);
      input += whole * B_j[n];
      state[n] = whole * load(decay + n * kLanes);
      const Vec faded = state[n] * load(before + n * kLanes);
      exponent += faded * load(rates + n * kLanes);
      rate[n] += faded * size;
    }
    store(work.grad_input + j * kLanes, input);
    store(work.grad_exponent + j * kLanes, exponent);
  }
  for (int n = 0; n < Count; ++n) {
    store(grad_h + n * kLanes, state[n]);
    store(grad_A + n * kLanes, rate[n]);
  }
}

void start_chunk(const Inputs& in, const Chunk& chunk, const Gradients& grad, const Work& work) {
  prepare_steps(in, chunk, work.step, work.input);
  const Vec D = load_weight(in.D, chunk.strip);
  for (int64_t j = 0; j < chunk.length; ++j) {
    const Vec given = chunk.load(grad.y, j);
    store(work.grad_read + j * kLanes, in.z ? given * silu(chunk.load(in.z, j)) : given);
    store(work.read + j * kLanes, in.D ? D * chunk.load(in.x, j) : Vec{});
    store(work.grad_input + j * kLanes, Vec{});
    store(work.grad_exponent + j * kLanes, Vec{});
  }
}

// The gradients of all that a step of a channel reads alone; those of D and the bias go on.
void finish_chunk(const Inputs& in, const Chunk& chunk, const Gradients& grad, const Work& work,
                  float* grad_D, float* grad_bias) {
  const Vec D = load_weight(in.D, chunk.strip), bias = load_weight(in.bias, chunk.strip);
  Vec for_D = load(grad_D), for_bias = load(grad_bias);
  for (int64_t j = chunk.length - 1; j >= 0; --j) {
    const Vec x = chunk.load(in.x, j), step = load(work.step + j * kLanes);
    const Vec read = load(work.grad_read + j * kLanes), input = load(work.grad_input + j * kLanes);
    Vec given = input * x + load(work.grad_exponent + j * kLanes) * kLog2;
    if (in.softplus) given *= sigmoid(chunk.load(in.dt, j) + bias);
    chunk.store(grad.x, j, in.D ? input * step + D * read : input * step);
    chunk.store(grad.dt, j, given);
    for_D += read * x;
    for_bias += given;
    if (in.z) {
      const Vec z = chunk.load(in.z, j), gate = sigmoid(z);
      const Vec slope = gate * (1.0f + z * (1.0f - gate));
      chunk.store(grad.z, j, chunk.load(grad.y, j) * load(work.read + j * kLanes) * slope);
    }
  }
  store(grad_D, for_D);
  store(grad_bias, for_bias);
}

// What a strip carries from chunk to chunk.
struct Carried {
  float *rates, *grad_h, *grad_A, *grad_D, *grad_bias;

  static int64_t size(const Sizes& sizes) { return (3 * sizes.states + 2) * kLanes; }
  Carried(float* memory, const Sizes& sizes)
      : rates(memory),
        grad_h(rates + sizes.states * kLanes),
        grad_A(grad_h + sizes.states * kLanes),
        grad_D(grad_A + sizes.states * kLanes),
        grad_bias(grad_D + kLanes) {}
};

void start_strip(const Inputs& in, const Sizes& sizes, Strip strip, const Gradients& grad, Carried to) {
  std::fill_n(to.rates, Carried::size(sizes), 0.0f);
  load_rates(in.A, sizes, strip, to.rates);
  const int64_t own = (strip.row * sizes.channels + strip.first) * sizes.states;
  if (grad.last) rows_to_lanes(grad.last + own, strip.lanes, sizes.states, to.grad_h);
}

// grad.A, grad.D and grad.bias have a row of their own for each row of the batch.
void finish_strip(const Inputs& in, const Sizes& sizes, Strip strip, const Gradients& grad, Carried from) {
  const int64_t own = strip.row * sizes.channels + strip.first;
  lanes_to_rows(from.grad_h, strip.lanes, sizes.states, grad.state + own * sizes.states);
  lanes_to_rows(from.grad_A, strip.lanes, sizes.states, grad.A + own * sizes.states);
  if (in.D) store(grad.D + own, load(from.grad_D), strip.lanes);
  if (in.bias) store(grad.bias + own, load(from.grad_bias), strip.lanes);
}

// grad.B and grad.C are those of these strips alone.
void scan_part_back(const Inputs& in, const Sizes& sizes, const Part& part, const float* saved,
                    const Gradients& grad) {
  const int64_t chunk_lanes = sizes.longest() * kLanes, all = chunk_lanes * sizes.states;
  Scratch strips(part.strips() * Carried::size(sizes)), memory(6 * chunk_lanes + 2 * all);
  Scratch states((2 * chunk_lanes + kLanes) * kBlock);
  float* free = memory;
  const auto take = [&](int64_t n) { return (free += n) - n; };
  const Work work{take(chunk_lanes), take(chunk_lanes), take(chunk_lanes),
                  take(chunk_lanes), take(chunk_lanes), take(chunk_lanes)};
  float *grad_B = take(all), *grad_C = take(all);
  const auto carried = [&](int64_t s) {
    return Carried(strips + (s - part.first) * Carried::size(sizes), sizes);
  };

  for (int64_t s = part.first; s < part.end; ++s)
    start_strip(in, sizes, strip_at(sizes, part, s), grad, carried(s));
  for (int64_t i = sizes.chunks() - 1; i >= 0; --i) {
    std::fill_n(grad_B, 2 * all, 0.0f);
    for (int64_t s = part.first; s < part.end; ++s) {
      const Chunk chunk = chunk_at(sizes, strip_at(sizes, part, s), i);
      const Carried own = carried(s);
      if (s + 1 < part.end)
        fetch(chunk_at(sizes, strip_at(sizes, part, s + 1), i), in.x, in.dt, in.z, grad.y);
      else if (i > 0)
        fetch(chunk_at(sizes, strip_at(sizes, part, part.first), i - 1), in.x, in.dt, in.z, grad.y);
      start_chunk(in, chunk, grad, work);
      for_each_block<kBlock>(sizes.states, [&](auto count, int64_t n) {
        const float *B = in.B + chunk.state(0) + n, *C = in.C + chunk.state(0) + n;
        const float* rates = own.rates + n * kLanes;
        const Kept kept{states, states + (chunk_lanes + kLanes) * count};
        const float* before = saved + saved_at(sizes, chunk.strip, i) + n * kSavedLanes;
        advance_keeping<count>(in, chunk, B, C, rates, before, work, kept);
        go_back<count>(in, chunk, B, C, rates, work, kept, own.grad_h + n * kLanes,
                       own.grad_A + n * kLanes, grad_B + n * kLanes, grad_C + n * kLanes);
      });
      finish_chunk(in, chunk, grad, work, own.grad_D, own.grad_bias);
    }
    const Chunk chunk = chunk_at(sizes, strip_at(sizes, part, part.first), i);
    for (int64_t j = 0; j < chunk.length; ++j) {
      sum_lanes(grad_B + j * sizes.states * kLanes, sizes.states, grad.B + chunk.state(j));
      sum_lanes(grad_C + j * sizes.states * kLanes, sizes.states, grad.C + chunk.state(j));
    }
  }
  for (int64_t s = part.first; s < part.end; ++s)
    finish_strip(in, sizes, strip_at(sizes, part, s), grad, carried(s));
}

// to[i] = the sum of `parts` copies, n apart, always in this order.
void add_parts(const float* parts, int64_t count, int64_t n, float* to) {
  constexpr int64_t kPiece = 4096;
  parallel_for((n + kPiece - 1) / kPiece, n * count, [=](int64_t piece) {
    const int64_t start = piece * kPiece, end = std::min(n, start + kPiece);
    for (int64_t i = start; i < end; i += kLanes) {
      const int64_t some = std::min<int64_t>(kLanes, end - i);
      Vec total{};
      for (int64_t part = 0; part < count; ++part) total += load(parts + part * n + i, some);
      store(to + i, total, some);
    }
  });
}

}  // namespace
}  // namespace stepscan::selective

STEPSCAN_API void selective_scan_backward(
    const float* grad_y, const float* grad_last, const float* x, const float* dt, const float* A,
    const float* B, const float* C, const float* D, const float* z, const float* bias,
    const uint8_t* resets, const float* saved, int64_t softplus, float* grad_x, float* grad_dt,
    float* grad_A, float* grad_B, float* grad_C, float* grad_D, float* grad_z, float* grad_bias,
    float* grad_state, int64_t rows, int64_t steps, int64_t channels, int64_t states, int64_t groups,
    int64_t chunk) {
  using namespace stepscan::selective;
  using stepscan::Scratch;
  const Inputs in{x, dt, A, B, C, D, z, bias, resets, softplus != 0};
  const Sizes sizes{rows, steps, channels, states, groups, chunk};
  const int64_t parts = parts_of_a_group(sizes), tasks = rows * groups * parts;
  const int64_t shared = rows * steps * groups * states, own = channels * states;
  Scratch each_B(parts * shared), each_C(parts * shared), each_A(rows * own);
  Scratch each_D(rows * channels), each_bias(rows * channels);
  stepscan::parallel_for(tasks, 3 * sizes.work(), [&](int64_t i) {
    float *part_B = each_B + i % parts * shared, *part_C = each_C + i % parts * shared;
    const Gradients grad{grad_y, grad_last, grad_x, grad_dt, each_A,   part_B,
                         part_C, each_D,    grad_z, each_bias, grad_state};
    scan_part_back(in, sizes, part_at(sizes, i), saved, grad);
  });
  add_parts(each_B, parts, shared, grad_B);
  add_parts(each_C, parts, shared, grad_C);
  add_parts(each_A, rows, own, grad_A);
  if (D) add_parts(each_D, rows, channels, grad_D);
  if (bias) add_parts(each_bias, rows, channels, grad_bias);
}
