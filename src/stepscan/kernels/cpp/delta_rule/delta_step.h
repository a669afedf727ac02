// The delta rule token by token: two passes over the memory a token, one more for each further write.
// For a few tokens there is nothing to gain from chunks.

#pragma once

#include <algorithm>
#include <cstdint>

#include "delta_chunk.h"

namespace stepscan::delta {

// What a pass over the memory does with its row r: decays it, writes to it and reads it.
struct Pass {
  const float* decay;  // null: none
  const float* write;
  const float* read;
};

// to = decay from + write u^T; the sum over rows of read * to. A strip of `Vecs` vectors of columns, of
// which the last has `tail` lanes.
template <int Vecs>
STEPSCAN_INLINE void pass_over(const float* from, float* to, int64_t row, int64_t keys, int64_t tail,
                               Pass pass, const Vec (&u)[Vecs], Vec (&found)[Vecs]) {
  for (int j = 0; j < Vecs; ++j) found[j] = Vec{};
  for (int64_t r = 0; r < keys; ++r) {
    const float decay = pass.decay ? pass.decay[r] : 1.0f;
    for (int j = 0; j < Vecs; ++j) {
      const int64_t n = j == Vecs - 1 ? tail : kLanes;
      const Vec x = load(from + r * row + j * kLanes, n) * decay + pass.write[r] * u[j];
      store(to + r * row + j * kLanes, x, n);
      found[j] += pass.read[r] * x;
    }
  }
}

// The sum over rows of read * from, nothing written.
template <int Vecs>
STEPSCAN_INLINE void look(const float* from, int64_t row, int64_t keys, int64_t tail, const float* read,
                          Vec (&found)[Vecs]) {
  Vec other[Vecs];  // a second chain of sums, as one alone waits for itself
  for (int j = 0; j < Vecs; ++j) found[j] = other[j] = Vec{};
  const auto add = [&](int64_t r, Vec(&sums)[Vecs]) {
    for (int j = 0; j < Vecs; ++j)
      sums[j] += read[r] * load(from + r * row + j * kLanes, j == Vecs - 1 ? tail : kLanes);
  };
  int64_t r = 0;
  for (; r + 2 <= keys; r += 2) {
    add(r, found);
    add(r + 1, other);
  }
  if (r < keys) add(r, found);
  for (int j = 0; j < Vecs; ++j) found[j] += other[j];
}

class Steps {
 public:
  explicit Steps(const Shape& shape)
      : s(shape), width(padded(s.keys)), memory_((2 + s.writes) * width), decay(memory_),
        seen(memory_ + width), writes(memory_ + 2 * width) {}

  // All tokens of a head, for the columns [first, first + count): from `state` to `last`.
  void run(const Head& head, const float* state, float* last, Rows<float> y, int64_t first, int64_t count) {
    for (int64_t t = 0; t < s.steps; ++t) {
      prepare(head, t);
      const float* from = t ? last : state;
      int64_t j = first;
      for (; j + 4 * kLanes <= first + count; j += 4 * kLanes) strip<4>(head, t, from, last, y, j, kLanes);
      for (; j < first + count; j += kLanes)
        strip<1>(head, t, from, last, y, j, std::min<int64_t>(kLanes, first + count - j));
    }
  }

 private:
  void prepare(const Head& head, int64_t t) {
    const bool reset = head.resets[t];
    for (int64_t c = 0; c < s.keys; c += kLanes) {
      const int64_t n = s.keys - c;
      const Vec g = s.channels == 1 ? splat(*head.log_decay[t]) : load(head.log_decay[t] + c, n);
      const Vec kept = reset ? Vec{} : exp(g);
      store(decay + c, kept);
      store(seen + c, kept * load(head.erase[t * s.writes] + c, n));
      for (int64_t m = 0; m < s.writes; ++m) {
        const int64_t r = t * s.writes + m;
        store(writes + m * width + c, *head.beta[r] * load(head.k[r] + c, n));
      }
    }
  }

  template <int Vecs>
  void strip(const Head& head, int64_t t, const float* from, float* last, Rows<float> y, int64_t j,
             int64_t tail) {
    Vec u[Vecs], found[Vecs];
    look(from + j, s.values, s.keys, tail, seen, found);
    for (int64_t m = 0; m < s.writes; ++m) {
      const int64_t r = t * s.writes + m;
      const bool end = m == s.writes - 1;
      for (int i = 0; i < Vecs; ++i)
        u[i] = load(head.v[r] + j + i * kLanes, i == Vecs - 1 ? tail : kLanes) - found[i];
      const Pass pass{m ? nullptr : decay, writes + m * width, end ? head.q[t] : head.erase[r + 1]};
      pass_over(from + j, last + j, s.values, s.keys, tail, pass, u, found);
      from = last;
    }
    for (int i = 0; i < Vecs; ++i) store(y[t] + j + i * kLanes, found[i], i == Vecs - 1 ? tail : kLanes);
  }

  const Shape s;
  const int64_t width;
  Scratch memory_;
  float *decay, *seen, *writes;  // exp(g); e decayed, of the first write; beta k
};

}  // namespace stepscan::delta
