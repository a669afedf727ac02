// One token of a matrix memory S [H, K, V], in one pass over it but for what is erased:
//
//     held = p^T S                          if something is erased
//     S    = diag(d) S + w x^T + u v^T      x = v without erasing; v - held or held with it
//     y    = q^T S                          if it is read
//
// A task is one head and one strip of columns, narrow enough that a head's strip stays in the cache
// between the two passes. Which part of a vector a head takes, its stride says; heads may share.

#pragma once

#include <algorithm>
#include <cstdint>

#include "tape.h"
#include "team.h"
#include "vector.h"

namespace stepscan {

enum Write : int64_t { kAdd = 0, kCorrect = 1, kTransfer = 2 };

struct Along {  // numbers along K, of each head
  const float* data;
  int64_t heads_each, head, key;
  const float* of(int64_t h) const { return data ? data + h / heads_each * head : nullptr; }
};

struct MemoryStep {
  int64_t heads, keys, values;
  Write write;
  const float* before;
  float* after;
  Along decay, erase, w, u, q;
  const float* v;
  int64_t v_head;
  float* y;
};

// Vecs vectors of columns, the last of which has `last` of its lanes in use.
template <int Vecs>
STEPSCAN_INLINE void step_strip(const MemoryStep& m, int64_t head, int64_t column, int64_t last) {
  const auto lanes = [&](int j) { return j == Vecs - 1 ? last : (int64_t)kLanes; };
  const int64_t first = head * m.keys * m.values + column;
  const float* erase = m.erase.of(head);
  const float* decay = m.decay.of(head);
  const float *w = m.w.of(head), *u = m.u.of(head), *q = m.q.of(head);
  Vec v[Vecs], x[Vecs], y[Vecs] = {};
  for (int j = 0; j < Vecs; ++j) {
    v[j] = load(m.v + head * m.v_head + column + j * kLanes, lanes(j));
    x[j] = v[j];
  }
  if (m.write != kAdd) {
    Vec held[Vecs] = {};
    for (int64_t k = 0; k < m.keys; ++k) {
      const Vec factor = splat(erase[k * m.erase.key]);
      const float* row = m.before + first + k * m.values;
#pragma GCC unroll 4
      for (int j = 0; j < Vecs; ++j) held[j] += factor * load(row + j * kLanes, lanes(j));
    }
    for (int j = 0; j < Vecs; ++j) x[j] = m.write == kCorrect ? v[j] - held[j] : held[j];
  }
  for (int64_t k = 0; k < m.keys; ++k) {
    const Vec kept = splat(decay ? decay[k * m.decay.key] : 1.0f);
    const Vec written = splat(w[k * m.w.key]), added = splat(u ? u[k * m.u.key] : 0.0f);
    const Vec read = splat(q ? q[k * m.q.key] : 0.0f);
    const int64_t at = first + k * m.values;
#pragma GCC unroll 4
    for (int j = 0; j < Vecs; ++j) {
      Vec row = kept * load(m.before + at + j * kLanes, lanes(j)) + written * x[j];
      if (u) row += added * v[j];
      store(m.after + at + j * kLanes, row, lanes(j));
      y[j] += read * row;
    }
  }
  if (!q) return;
  for (int j = 0; j < Vecs; ++j) store(m.y + head * m.values + column + j * kLanes, y[j], lanes(j));
}

inline void run_memory(Tape tape, int64_t part, int64_t parts) {
  MemoryStep m;
  m.heads = tape.whole();
  m.keys = tape.whole();
  m.values = tape.whole();
  m.write = static_cast<Write>(tape.whole());
  m.before = tape.address<const float>();
  m.after = tape.address<float>();
  for (Along* along : {&m.decay, &m.erase, &m.w, &m.u, &m.q}) {
    along->data = tape.address<const float>();
    along->heads_each = tape.whole();
    along->head = tape.whole();
    along->key = tape.whole();
  }
  m.v = tape.address<const float>();
  m.v_head = tape.whole();
  m.y = tape.address<float>();

  constexpr int kVecs = 4;
  constexpr int64_t kStrip = kVecs * kLanes;
  const int64_t strips = (m.values + kStrip - 1) / kStrip;
  const auto [first, end] = part_of(m.heads * strips, part, parts);
  for (int64_t task = first; task < end; ++task) {
    const int64_t head = task / strips;
    int64_t column = task % strips * kStrip;
    const int64_t until = std::min(column + kStrip, m.values);
    if (until - column == kStrip) {
      step_strip<kVecs>(m, head, column, kLanes);
      continue;
    }
    for (; column < until; column += kLanes)
      step_strip<1>(m, head, column, std::min<int64_t>(kLanes, until - column));
  }
}

}  // namespace stepscan
