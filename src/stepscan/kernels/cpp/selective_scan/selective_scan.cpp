// The selective scan forward: see selective_scan.h for the equations and how they are cut.

#include "selective_scan.h"

namespace stepscan::selective {
namespace {

// Of 32 registers half hold states; of 16 a quarter of them would be spilled with more than 8.
constexpr int kBlock = kLanes == 16 ? 16 : 8;

// Takes Count states, h [Count, kLanes], through a chunk and adds h C to y [chunk, kLanes]. B and C
// point to the first of these states.
template <int Count>
STEPSCAN_INLINE void advance(const Inputs& in, const Chunk& chunk, const float* B, const float* C,
                             const float* rates, const float* step, const float* input, float* h,
                             float* y) {
  Vec state[Count];
  for (int n = 0; n < Count; ++n) state[n] = load(h + n * kLanes);
  const int64_t next = chunk.sizes.groups * chunk.sizes.states;
  for (int64_t j = 0; j < chunk.length; ++j, B += next, C += next) {
    if (in.resets[chunk.token(j)])
      for (int n = 0; n < Count; ++n) state[n] = Vec{};
    const Vec size = load(step + j * kLanes), write = load(input + j * kLanes);
    Vec read[2] = {load(y + j * kLanes), Vec{}};  // two sums, for half the latency
#pragma GCC unroll 16
    for (int n = 0; n < Count; ++n) {
      state[n] = exp2(size * load(rates + n * kLanes)) * state[n] + write * B[n];
      read[n % 2] += state[n] * C[n];
    }
    store(y + j * kLanes, read[0] + read[1]);
  }
  for (int n = 0; n < Count; ++n) store(h + n * kLanes, state[n]);
}

void start_outputs(const Inputs& in, const Chunk& chunk, float* y) {
  const Vec D = load_weight(in.D, chunk.strip);
  for (int64_t j = 0; j < chunk.length; ++j)
    store(y + j * kLanes, in.D ? D * chunk.load(in.x, j) : Vec{});
}

void finish_outputs(const Inputs& in, const Chunk& chunk, const float* y, float* to) {
  for (int64_t j = 0; j < chunk.length; ++j) {
    const Vec read = load(y + j * kLanes);
    chunk.store(to, j, in.z ? read * silu(chunk.load(in.z, j)) : read);
  }
}

void save_states(const Chunk& chunk, int64_t i, const float* h, float* saved) {
  float* to = saved + saved_at(chunk.sizes, chunk.strip, i);
  for (int64_t n = 0; n < chunk.sizes.states; ++n) store(to + n * kSavedLanes, load(h + n * kLanes));
}

// What a strip needs again in each chunk, [states, kLanes] each.
struct Carried {
  float *rates, *h;

  static int64_t size(const Sizes& sizes) { return 2 * sizes.states * kLanes; }
  Carried(float* memory, const Sizes& sizes) : rates(memory), h(memory + sizes.states * kLanes) {}
};

void scan_part(const Inputs& in, const Sizes& sizes, const Part& part, const float* state, float* y,
               float* last, float* saved) {
  const int64_t some = sizes.longest() * kLanes;
  Scratch strips(part.strips() * Carried::size(sizes)), memory(3 * some);
  float *step = memory, *input = step + some, *read = input + some;
  const auto carried = [&](int64_t s) {
    return Carried(strips + (s - part.first) * Carried::size(sizes), sizes);
  };
  const auto first_state = [&](Strip strip) {
    return (strip.row * sizes.channels + strip.first) * sizes.states;
  };

  for (int64_t s = part.first; s < part.end; ++s) {
    const Strip strip = strip_at(sizes, part, s);
    load_rates(in.A, sizes, strip, carried(s).rates);
    rows_to_lanes(state + first_state(strip), strip.lanes, sizes.states, carried(s).h);
  }
  for (int64_t i = 0; i < sizes.chunks(); ++i) {
    for (int64_t s = part.first; s < part.end; ++s) {
      const Chunk chunk = chunk_at(sizes, strip_at(sizes, part, s), i);
      const Carried own = carried(s);
      if (saved) save_states(chunk, i, own.h, saved);
      if (s + 1 < part.end)
        fetch(chunk_at(sizes, strip_at(sizes, part, s + 1), i), in.x, in.dt, in.z);
      else if (i + 1 < sizes.chunks())
        fetch(chunk_at(sizes, strip_at(sizes, part, part.first), i + 1), in.x, in.dt, in.z);
      prepare_steps(in, chunk, step, input);
      start_outputs(in, chunk, read);
      for_each_block<kBlock>(sizes.states, [&](auto count, int64_t n) {
        advance<count>(in, chunk, in.B + chunk.state(0) + n, in.C + chunk.state(0) + n,
                       own.rates + n * kLanes, step, input, own.h + n * kLanes, read);
      });
      finish_outputs(in, chunk, read, y);
    }
  }
  for (int64_t s = part.first; s < part.end; ++s) {
    const Strip strip = strip_at(sizes, part, s);
    lanes_to_rows(carried(s).h, strip.lanes, sizes.states, last + first_state(strip));
  }
}

}  // namespace
}  // namespace stepscan::selective

// state, last [rows, channels, states]; saved holds the states before each chunk, where asked for.
STEPSCAN_API void selective_scan(const float* x, const float* dt, const float* A, const float* B,
                                 const float* C, const float* D, const float* z, const float* bias,
                                 const float* state, const uint8_t* resets, int64_t softplus,
                                 int64_t save, float* y, float* last, float* saved, int64_t rows,
                                 int64_t steps, int64_t channels, int64_t states, int64_t groups,
                                 int64_t chunk) {
  using namespace stepscan::selective;
  const Inputs in{x, dt, A, B, C, D, z, bias, resets, softplus != 0};
  const Sizes sizes{rows, steps, channels, states, groups, chunk};
  const int64_t tasks = rows * groups * parts_of_a_group(sizes);
  stepscan::parallel_for(tasks, sizes.work(), [&](int64_t i) {
    scan_part(in, sizes, part_at(sizes, i), state, y, last, save ? saved : nullptr);
  });
}
