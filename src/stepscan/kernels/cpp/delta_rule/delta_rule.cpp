// The delta rule over contiguous float32: q [B, T, H, K]; k and erase [B, T, n, H, K], erase null where
// it is k; v [B, T, n, H, V]; beta [B, T, n, H]; log_decay [B, T, H, K or 1]; state [B, H, K, V]; resets
// [B, T]. Gives y [B, T, H, V], the last state, and for a backward pass the state at the start of
// every `saved` tokens, starts [B, H, ., K, V] (none if `saved` is 0).
//
// A task is one head of one row, its state in cache, chunk after chunk (delta_chunk.h). With the state at
// hand the errors of a chunk are solved for at once; no inverse, no second system for how they depend on
// the state. Columns of the state are independent, so where heads are few they are shared out too.

#include <omp.h>

#include "delta_chunk.h"
#include "delta_step.h"

namespace {

using namespace stepscan;
using namespace stepscan::delta;

constexpr int64_t kWrites = 16;     // of a chunk: less arithmetic than 32, and its matrices stay in L1
constexpr int64_t kFewTokens = 8;   // up to here one by one

// The state of a head, some of its columns, in rows of whole vectors.
class Walk {
 public:
  Walk(const Shape& shape, int64_t saved, int64_t first, int64_t count)
      : s(shape),
        chunk_(s, chunk_tokens(s, kWrites)),
        first_(first),
        count_(count),
        columns_(padded(count)),
        saved_(saved),
        memory_((chunk_.read_rows + s.keys) * columns_),
        found_(memory_),
        state_(memory_ + chunk_.read_rows * columns_) {}

  void run(const Head& head, const float* state, float* last, float* starts, Rows<float> y) {
    for (int64_t r = 0; r < s.keys; ++r) read_row(row(r), state + r * s.values + first_, count_);
    for (int64_t t = 0; t < s.steps; t += chunk_.tokens) {
      if (saved_ && t % saved_ == 0) write_state(starts + t / saved_ * s.keys * s.values);
      chunk_.read(head, t);
      chunk_.fetch(y, t, 1, s.values);
      chunk_.fetch(head.q, t + chunk_.tokens, 1, s.keys);
      solve_errors(head, t);
      chunk_.fetch(head.k, t + chunk_.tokens, s.writes, s.keys);
      read_out(t, y);
      chunk_.fetch(head.v, t + chunk_.tokens, s.writes, s.values);
      advance();
    }
    write_state(last);
  }

 private:
  float* row(int64_t r) { return state_ + r * columns_; }

  void write_state(float* to) {
    for (int64_t r = 0; r < s.keys; ++r) write_row(to + r * s.values + first_, row(r), count_);
  }

  // found = the errors, then what q finds of the chunk's first state.
  void solve_errors(const Head& head, int64_t first) {
    multiply({chunk_.seen, chunk_.width, 1}, state_, columns_, found_, columns_, chunk_.read_rows, s.keys,
            count_, kReplace);
    const int64_t there = std::min(chunk_.tokens, s.steps - first) * s.writes;
    for (int64_t r = 0; r < there; ++r) {
      const float* v = head.v[first * s.writes + r] + first_;
      float* u = found_ + r * columns_;
      for (int64_t j = 0; j < count_; j += kLanes) store(u + j, load(v + j, count_ - j) - load(u + j));
    }
    solve({chunk_.scores, chunk_.columns, 1}, found_, columns_, chunk_.write_rows, count_);
  }

  void read_out(int64_t first, Rows<float> y) {
    const int64_t there = std::min(chunk_.tokens, s.steps - first);
    for (int64_t i = 0; i < there; i += kStair) {
      const int64_t n = std::min(kStair, there - i), r = chunk_.write_rows + i;
      multiply({chunk_.scores + r * chunk_.columns, chunk_.columns, 1}, found_, columns_,
              found_ + r * columns_, columns_, n, chunk_.stairs(i), count_, kAdd);
      for (int64_t j = 0; j < n; ++j) write_row(y[first + i + j] + first_, found_ + (r + j) * columns_, count_);
    }
  }

  void advance() {
    multiply({chunk_.ends, 1, chunk_.width}, found_, columns_, state_, columns_, s.keys, chunk_.write_rows,
            count_, {chunk_.kept, 1});
  }

  const Shape s;
  Chunk chunk_;
  const int64_t first_, count_, columns_, saved_;
  Scratch memory_;
  float *found_, *state_;
};

}  // namespace

STEPSCAN_API void delta_rule(const float* q, const float* k, const float* v, const float* beta,
                             const float* log_decay, const float* erase, const float* state,
                             const uint8_t* resets, int64_t saved, float* y, float* last, float* starts,
                             int64_t rows, int64_t steps, int64_t heads, int64_t keys, int64_t values,
                             int64_t writes, int64_t channels) {
  const Shape s{rows, steps, heads, keys, values, writes, channels};
  const int64_t vecs = padded(values) / kLanes;
  const int64_t idle = (omp_get_max_threads() + rows * heads - 1) / std::max<int64_t>(1, rows * heads);
  const int64_t strips = std::clamp<int64_t>(vecs, 1, idle);
  const int64_t wide = (vecs + strips - 1) / std::max<int64_t>(1, strips) * kLanes;
  const int64_t states = saved ? (steps + saved - 1) / saved : 0;
  parallel_for(rows * heads * strips, rows * heads * steps * writes * keys * values, [=](int64_t i) {
    const int64_t of = i / strips, first = i % strips * wide, count = std::min(wide, values - first);
    if (count <= 0) return;
    const Head head(s, of, q, k, v, beta, log_decay, erase, resets);
    const Rows<float> out = rows_of(y, s, of, steps, values);
    const float* from = state + of * keys * values;
    float* to = last + of * keys * values;
    if (steps <= kFewTokens && !saved)
      Steps(s).run(head, from, to, out, first, count);
    else
      Walk(s, saved, first, count).run(head, from, to, starts + of * states * keys * values, out);
  });
}
