// The parts that both directions of the selective scan share: how it is cut, and one chunk forward.
//
//   h[t] = exp(step[t] A) h[t-1] + input[t] B[t]     step = softplus(dt + bias), input = step x
//   y[t] = (h[t] C[t] + D x[t]) silu(z[t])
//
// A channel has a lane of its own and its states lie one vector apart, so that y needs no sum over
// lanes. Channels come in strips of one vector, which lie in one group and so share B and C; time
// comes in chunks, so that all a strip needs of one stays in the first cache. A task takes some strips
// of one group and row through one chunk, then the next: neighbours in memory are read one after the
// other. Within a chunk the states go through in blocks that fit the registers.

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "lanes.h"
#include "parallel.h"
#include "vector.h"

namespace stepscan::selective {

constexpr float kLog2e = 1.44269504f;
constexpr float kLog2 = 0.69314718f;
constexpr int64_t kSavedLanes = 16;  // of the states kept for the gradient, the same at every level
constexpr float kZeros[16 * kLanes] = {};

struct Sizes {
  int64_t rows, steps, channels, states, groups, chunk;

  int64_t width() const { return groups ? channels / groups : 0; }  // channels of a group
  int64_t strips() const { return (width() + kLanes - 1) / kLanes; }  // of a group
  int64_t chunks() const { return (steps + chunk - 1) / chunk; }
  int64_t longest() const { return std::min(chunk, steps); }
  int64_t work() const { return rows * steps * channels * states * 16; }
};

// x, dt, z [rows, steps, channels]; A [channels, states]; B, C [rows, steps, groups, states];
// D, bias [channels]; resets [rows, steps]. D, z and bias may be null.
struct Inputs {
  const float *x, *dt, *A, *B, *C, *D, *z, *bias;
  const uint8_t* resets;
  bool softplus;
};

struct Strip {
  int64_t row, group, first, lanes;  // channels first ... first + lanes - 1
};

// Steps start ... start + length - 1 of one strip, and where its numbers lie.
struct Chunk {
  const Sizes& sizes;
  Strip strip;
  int64_t start, length;

  int64_t token(int64_t j) const { return strip.row * sizes.steps + start + j; }
  int64_t channel(int64_t j) const { return token(j) * sizes.channels + strip.first; }
  int64_t state(int64_t j) const { return (token(j) * sizes.groups + strip.group) * sizes.states; }
  Vec load(const float* p, int64_t j) const {
    return p ? stepscan::load(p + channel(j), strip.lanes) : Vec{};
  }
  void store(float* p, int64_t j, Vec v) const { stepscan::store(p + channel(j), v, strip.lanes); }
};

// Some strips of one group and row, first ... end - 1: a task.
struct Part {
  int64_t row, group, first, end;

  int64_t strips() const { return end - first; }
};

inline Strip strip_at(const Sizes& sizes, const Part& part, int64_t i) {
  const int64_t first = i * kLanes;
  return {part.row, part.group, part.group * sizes.width() + first,
          std::min<int64_t>(kLanes, sizes.width() - first)};
}

inline Chunk chunk_at(const Sizes& sizes, Strip strip, int64_t i) {
  const int64_t start = i * sizes.chunk;
  return {sizes, strip, start, std::min(sizes.chunk, sizes.steps - start)};
}

// About this many tasks: enough for many threads. Each adds a copy of the gradients of B and C.
constexpr int64_t kTasks = 16;

inline int64_t parts_of_a_group(const Sizes& sizes) {
  const int64_t groups = std::max<int64_t>(1, sizes.rows * sizes.groups);
  return std::min(sizes.strips(), (kTasks + groups - 1) / groups);
}

inline Part part_at(const Sizes& sizes, int64_t i) {
  const int64_t parts = parts_of_a_group(sizes), group = i / parts, part = i % parts;
  return {group / sizes.groups, group % sizes.groups, sizes.strips() * part / parts,
          sizes.strips() * (part + 1) / parts};
}

// Asks for what the next strip reads: the processor does not foresee that it lies in many pages.
template <typename... Arrays>
STEPSCAN_INLINE void fetch(const Chunk& chunk, Arrays... arrays) {
  for (int64_t j = 0; j < chunk.length; ++j) {
    const int64_t at = chunk.channel(j);
    ((arrays ? __builtin_prefetch(arrays + at) : void()), ...);
  }
}

// One number per channel, such as D; zero where there are none.
STEPSCAN_INLINE Vec load_weight(const float* weight, Strip strip) {
  return weight ? load(weight + strip.first, strip.lanes) : Vec{};
}

// exp(step A) = 2^(step rate): rates [states, kLanes].
STEPSCAN_INLINE void load_rates(const float* A, const Sizes& sizes, Strip strip, float* rates) {
  rows_to_lanes(A + strip.first * sizes.states, strip.lanes, sizes.states, rates);
  for (int64_t n = 0; n < sizes.states; ++n) store(rates + n * kLanes, load(rates + n * kLanes) * kLog2e);
}

// The states of a strip before a chunk, in saved [rows, chunks, groups, strips of 16, states, 16].
inline int64_t saved_at(const Sizes& sizes, Strip strip, int64_t chunk) {
  const int64_t channel = strip.first - strip.group * sizes.width();
  const int64_t width = (sizes.width() + kSavedLanes - 1) / kSavedLanes * kSavedLanes;
  const int64_t whole = channel / kSavedLanes * kSavedLanes;
  const int64_t group = (strip.row * sizes.chunks() + chunk) * sizes.groups + strip.group;
  return (group * width + whole) * sizes.states + channel - whole;
}

// step[j] and input[j] of a chunk, [chunk, kLanes] each.
STEPSCAN_INLINE void prepare_steps(const Inputs& in, const Chunk& chunk, float* step, float* input) {
  const Vec bias = load_weight(in.bias, chunk.strip);
  for (int64_t j = 0; j < chunk.length; ++j) {
    const Vec given = chunk.load(in.dt, j) + bias;
    const Vec size = in.softplus ? softplus(given) : given;
    store(step + j * kLanes, size);
    store(input + j * kLanes, size * chunk.load(in.x, j));
  }
}

// run(Count, n) for blocks of Count states, n being the first: as many of the largest as there are,
// then the rest in powers of two.
template <int Largest, typename Run>
STEPSCAN_INLINE void for_each_block(int64_t states, Run run) {
  int64_t n = 0;
  for (; n + Largest <= states; n += Largest) run(std::integral_constant<int, Largest>{}, n);
  if constexpr (Largest > 1) {
    for_each_block<Largest / 2>(states - n, [&](auto count, int64_t more) { run(count, n + more); });
  }
}

}  // namespace stepscan::selective
