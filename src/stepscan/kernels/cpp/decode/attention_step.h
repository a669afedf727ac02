// One token of softmax attention over a cache of keys [capacity, G, K] and values [capacity, G, V]: its
// own are appended, then the newest `window` are seen, those that belong to its segment.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "tape.h"
#include "team.h"
#include "vector.h"

namespace stepscan {

struct AttentionStep {
  int64_t slots, window;  // in use before this token; at most this many are seen
  int64_t heads, groups, key_size, value_size;
  const float *q, *k, *v;
  float *keys, *values, *scores;  // scores [H, capacity]
  int64_t capacity;
  const float* bias;  // [H, distances] or null
  int64_t distances;
  const float* sink;  // [H] or null
  float* y;
};

STEPSCAN_INLINE float dot(const float* a, const float* b, int64_t n) {
  Vec total{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) total += load(a + i) * load(b + i);
  if (i < n) total += load(a + i, n - i) * load(b + i, n - i);
  return sum(total);
}

// Turns scores into weights that have not been divided by their sum yet; returns that.
STEPSCAN_INLINE float exponentials(float* scores, int64_t n, const float* sink) {
  float most = sink ? *sink : -INFINITY;
  for (int64_t i = 0; i < n; ++i) most = std::max(most, scores[i]);
  Vec total{};
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t lanes = std::min<int64_t>(kLanes, n - i);
    const Vec weight = exp(load(scores + i, lanes) - most);
    store(scores + i, weight, lanes);
    total += load(scores + i, lanes);  // not the lanes beyond
  }
  return sum(total) + (sink ? std::exp(*sink - most) : 0.0f);
}

template <int Vecs>
STEPSCAN_INLINE void weigh(const float* weights, const float* values, int64_t row, int64_t n, float scale,
                           int64_t last, float* y) {
  const auto lanes = [&](int j) { return j == Vecs - 1 ? last : (int64_t)kLanes; };
  Vec sums[Vecs] = {};
  for (int64_t s = 0; s < n; ++s) {
    const Vec weight = splat(weights[s]);
#pragma GCC unroll 4
    for (int j = 0; j < Vecs; ++j) sums[j] += weight * load(values + s * row + j * kLanes, lanes(j));
  }
  for (int j = 0; j < Vecs; ++j) store(y + j * kLanes, sums[j] * scale, lanes(j));
}

STEPSCAN_INLINE void attend(const AttentionStep& a, int64_t head, int64_t group) {
  const int64_t seen = std::min(a.slots + 1, a.window), first = a.slots + 1 - seen;
  const int64_t key_row = a.groups * a.key_size, value_row = a.groups * a.value_size;
  const float* keys = a.keys + first * key_row + group * a.key_size;
  const float* values = a.values + first * value_row + group * a.value_size;
  float* scores = a.scores + head * a.capacity;
  for (int64_t s = 0; s < seen; ++s) {
    scores[s] = dot(a.q + head * a.key_size, keys + s * key_row, a.key_size);
    if (a.bias) scores[s] += a.bias[head * a.distances + std::min(seen - 1 - s, a.distances - 1)];
  }
  const float scale = 1.0f / exponentials(scores, seen, a.sink ? a.sink + head : nullptr);
  float* y = a.y + head * a.value_size;
  int64_t i = 0;
  for (; i + 4 * kLanes <= a.value_size; i += 4 * kLanes)
    weigh<4>(scores, values + i, value_row, seen, scale, kLanes, y + i);
  for (; i < a.value_size; i += kLanes)
    weigh<1>(scores, values + i, value_row, seen, scale, std::min<int64_t>(kLanes, a.value_size - i), y + i);
}

inline void run_attention(Tape tape, int64_t part, int64_t parts) {
  AttentionStep a;
  a.slots = tape.whole();
  a.keys = tape.address<float>();
  a.values = tape.address<float>();
  a.scores = tape.address<float>();
  a.capacity = tape.whole();
  a.window = tape.whole();
  a.heads = tape.whole();
  a.groups = tape.whole();
  a.key_size = tape.whole();
  a.value_size = tape.whole();
  a.q = tape.address<const float>();
  a.k = tape.address<const float>();
  a.v = tape.address<const float>();
  a.bias = tape.address<const float>();
  a.distances = tape.whole();
  a.sink = tape.address<const float>();
  a.y = tape.address<float>();
  const int64_t shared = a.heads / a.groups;
  const auto [first, end] = part_of(a.groups, part, parts);  // who appends is who reads
  for (int64_t g = first; g < end; ++g) {
    const float *k = a.k + g * a.key_size, *v = a.v + g * a.value_size;
    std::copy(k, k + a.key_size, a.keys + (a.slots * a.groups + g) * a.key_size);
    std::copy(v, v + a.value_size, a.values + (a.slots * a.groups + g) * a.value_size);
    for (int64_t h = g * shared; h < (g + 1) * shared; ++h) attend(a, h, g);
  }
}

}  // namespace stepscan
