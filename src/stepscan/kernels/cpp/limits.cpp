// What the machine can do at the most, by loops that do one thing only: multiply and add, raise 2 to a
// power, read memory. A kernel's speed is judged as a fraction of the limit that binds it.
//
// Every task returns a sum of what it computed, so that the compiler cannot leave the work out.

#include <algorithm>

#include "parallel.h"
#include "vector.h"

namespace {

using stepscan::kLanes;
using stepscan::Vec;

constexpr int64_t kAlways = stepscan::kWorthThreads + 1;  // work enough to start all threads

// Independent sums hide the latency of an addition; more than there are registers would be spilt.
constexpr int kChains = kLanes == 16 ? 16 : 12;
constexpr int64_t kMultiplyAdds = 1536;  // in one round, at every level

float multiply_and_add(float start, int64_t rounds) {
  const Vec factor = stepscan::splat(start), term = stepscan::splat(1.0f - start);
  Vec sums[kChains];
  for (int j = 0; j < kChains; ++j) sums[j] = stepscan::splat(start * static_cast<float>(j));
  for (int64_t i = 0; i < rounds * (kMultiplyAdds / (kChains * kLanes)); ++i)
#pragma GCC unroll 16
    for (int j = 0; j < kChains; ++j) sums[j] = sums[j] * factor + term;
  Vec total{};
  for (int j = 0; j < kChains; ++j) total += sums[j];
  return stepscan::sum(total);
}

float raise(const float* x, int64_t count, int64_t rounds) {
  constexpr int kSums = 4;
  Vec sums[kSums] = {};
  for (int64_t round = 0; round < rounds; ++round)
    for (int64_t i = 0; i + kSums * kLanes <= count; i += kSums * kLanes)
#pragma GCC unroll 4
      for (int j = 0; j < kSums; ++j) sums[j] += stepscan::exp2(stepscan::load(x + i + j * kLanes));
  return stepscan::sum(sums[0] + sums[1] + sums[2] + sums[3]);
}

// One core asks for more memory at a time when it reads from several places in turns.
template <int Streams>
float read(const float* x, int64_t count) {
  const int64_t length = count / Streams / kLanes * kLanes;
  Vec sums[Streams] = {};
  for (int64_t i = 0; i < length; i += kLanes)
#pragma GCC unroll 8
    for (int j = 0; j < Streams; ++j) sums[j] += stepscan::load(x + j * length + i);
  Vec total{};
  for (int j = 0; j < Streams; ++j) total += sums[j];
  return stepscan::sum(total);
}

}  // namespace

// rounds * 1536 multiply-adds in each task; start is a number below 1, so that the sums stay finite.
STEPSCAN_API void limit_multiply_adds(const float* start, int64_t rounds, float* sums, int64_t tasks) {
  stepscan::parallel_for(tasks, kAlways, [=](int64_t i) { sums[i] = multiply_and_add(*start, rounds); });
}

// Each task goes `rounds` times over all of x, whose length is a multiple of 64.
STEPSCAN_API void limit_powers(const float* x, int64_t rounds, float* sums, int64_t count,
                               int64_t tasks) {
  stepscan::parallel_for(tasks, kAlways, [=](int64_t i) { sums[i] = raise(x, count, rounds); });
}

// Each task reads its share of x once, in 1, 2, 4 or 8 streams.
STEPSCAN_API void limit_reads(const float* x, int64_t streams, float* sums, int64_t count,
                              int64_t tasks) {
  const int64_t share = (count + tasks - 1) / tasks;
  stepscan::parallel_for(tasks, kAlways, [=](int64_t i) {
    const int64_t first = std::min(i * share, count);
    const int64_t length = std::min(share, count - first);
    const auto run = streams >= 8 ? read<8> : streams >= 4 ? read<4> : streams >= 2 ? read<2> : read<1>;
    sums[i] = run(x + first, length);
  });
}
