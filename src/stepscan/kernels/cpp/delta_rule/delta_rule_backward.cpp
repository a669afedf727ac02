// The gradients of the delta rule (delta_rule.cpp), from the last chunk to the first. The state at each
// chunk's start was kept; everything inside a chunk is worked out again.
//
// With `found` the reads of a chunk, errors u and y below each other, the forward pass is
//     u = (I + L)^-1 (v - seen_e S0),   y = seen_q S0 + scores_q u,   S = kept S0 + ends^T u.
// Given dy and dS, z = (I + L)^-T (scores_q^T dy + ends dS) is the gradient of v, and with
// given = [-z; dy]
//     dS0 = kept dS + seen^T given,   d_scores = given u^T,   d_seen = given S0^T,   d_ends = u dS^T.
//
// A decay lies between all that comes before it and all that comes after, so the gradient of log_decay is
// the sum, over tokens from it on, of reads * d_reads - writes * d_writes, plus S * dS of the chunk's end.
// Past a decay of 0 that sum is exactly 0, and starts again from there.

#include "delta_chunk.h"

namespace {

using namespace stepscan;
using namespace stepscan::delta;

struct Gradients {
  Rows<float> q, k, v, beta, log_decay, erase;  // of one head
  bool apart;                                   // whether erase is not k
};

class Backward {
 public:
  Backward(const Shape& shape, int64_t tokens)
      : s(shape),
        chunk(s, tokens),
        values(padded(s.values)),
        memory_(size()) {
    float* next = memory_;
    std::fill(next, next + size(), 0.0f);
    const auto take = [&next](int64_t n) { return std::exchange(next, next + n); };
    state = take(s.keys * values);
    grad_state = take(s.keys * values);
    transposed = take(s.values * std::max(chunk.width, chunk.columns));
    u = take(chunk.write_rows * values);
    given = take(chunk.read_rows * values);
    grad_scores = take(chunk.read_rows * chunk.columns);
    grad_reads = take(chunk.read_rows * chunk.width);
    grad_writes = take(chunk.write_rows * chunk.width);
    later = take(std::max(s.writes, int64_t{2}) * chunk.width);
    through = take(chunk.width);
  }

  void run(const Head& head, const float* starts, const float* last, Rows<const float> grad_y,
           const float* grad_last, const Gradients& grads, float* grad_first) {
    copy_state(state, last);
    copy_state(grad_state, grad_last);
    const int64_t chunks = (s.steps + chunk.tokens - 1) / chunk.tokens;
    for (int64_t c = chunks - 1; c >= 0; --c) {
      const int64_t first = c * chunk.tokens;
      measure_end();
      copy_state(state, starts + c * s.keys * s.values);
      chunk.read(head, first);
      const int64_t next = first - chunk.tokens;
      chunk.fetch(grad_y, next, 1, s.values);
      find_errors(head, first);
      chunk.fetch(head.q, next, 1, s.keys);
      give_back(first, grad_y, grads);
      chunk.fetch(head.k, next, s.writes, s.keys);
      grade_scores();
      chunk.fetch(head.v, next, s.writes, s.values);
      grade_rows();
      if (chunk.by_channel)
        by_channel();
      else
        by_number();
      write_gradients(head, first, grads);
      multiply({chunk.seen, 1, chunk.width}, given, values, grad_state, values, s.keys, chunk.read_rows,
              s.values, {chunk.kept, 1});
    }
    for (int64_t r = 0; r < s.keys; ++r)
      write_row(grad_first + r * s.values, grad_state + r * values, s.values);
  }

 private:
  int64_t size() const {
    return 2 * s.keys * values + s.values * std::max(chunk.width, chunk.columns) +
           (chunk.write_rows + chunk.read_rows) * (values + chunk.width) +
           chunk.read_rows * chunk.columns + (std::max(s.writes, int64_t{2}) + 1) * chunk.width;
  }

  void copy_state(float* to, const float* from) {
    for (int64_t r = 0; r < s.keys; ++r) read_row(to + r * values, from + r * s.values, s.values);
  }

  // S * dS of the chunk's end: what the decays of the chunk answer for there, by channel.
  void measure_end() {
    for (int64_t r = 0; r < s.keys; ++r) through[r] = dot(state + r * values, grad_state + r * values, values);
  }

  void find_errors(const Head& head, int64_t first) {
    multiply({chunk.seen, chunk.width, 1}, state, values, u, values, chunk.write_rows, s.keys, s.values,
            kReplace);
    const int64_t there = std::min(chunk.tokens, s.steps - first) * s.writes;
    for (int64_t r = 0; r < there; ++r) {
      const float* v = head.v[first * s.writes + r];
      for (int64_t j = 0; j < values; j += kLanes)
        store(u + r * values + j, load(v + j, s.values - j) - load(u + r * values + j));
    }
    solve({chunk.scores, chunk.columns, 1}, u, values, chunk.write_rows, s.values);
  }

  // given = [-z; dy], and z into the gradient of v.
  void give_back(int64_t first, Rows<const float> grad_y, const Gradients& grads) {
    float* grad_q = given + chunk.write_rows * values;
    for (int64_t i = 0; i < chunk.tokens; ++i) {
      if (first + i < s.steps)
        read_row(grad_q + i * values, grad_y[first + i], s.values);
      else
        std::fill(grad_q + i * values, grad_q + (i + 1) * values, 0.0f);
    }
    multiply({chunk.ends, chunk.width, 1}, grad_state, values, given, values, chunk.write_rows, s.keys,
            s.values, kReplace);
    const float* scores_q = chunk.scores + chunk.write_rows * chunk.columns;
    for (int64_t i = 0; i < chunk.tokens; i += kStair) {
      const int64_t r = i * s.writes, n = std::min(kStair, chunk.tokens - i);
      multiply({scores_q + i * chunk.columns + r, 1, chunk.columns}, grad_q + i * values, values,
              given + r * values, values, n * s.writes, chunk.tokens - i, s.values, kAdd);
    }
    solve_transposed({chunk.scores, chunk.columns, 1}, given, values, chunk.write_rows, s.values);
    const int64_t there = std::min(chunk.tokens, s.steps - first) * s.writes;
    for (int64_t r = 0; r < there; ++r) write_row(grads.v[first * s.writes + r], given + r * values, s.values);
    scale(given, given, -1.0f, chunk.write_rows * values);
  }

  void grade_scores() {
    transpose(u, values, transposed, chunk.columns, chunk.write_rows, s.values);
    chunk.for_each_stair([&](int64_t row, int64_t token, int64_t rows) {
      multiply({given + row * values, values, 1}, transposed, chunk.columns,
              grad_scores + row * chunk.columns, chunk.columns, rows, s.values, chunk.stairs(token), kReplace);
    });
    for (int64_t i = 0; i < chunk.tokens; ++i) {
      chunk.for_each_read(i, [&](int64_t r) {
        float* row = grad_scores + r * chunk.columns;
        std::fill(row + (i + 1) * s.writes, row + chunk.columns, 0.0f);
        if (!chunk.by_channel) scale(row, row, chunk.pairs + i * chunk.columns, chunk.columns);
      });
      chunk.clear_later_writes(i, grad_scores);
    }
  }

  // The gradients of `seen` and `ends`, the rows decayed from the chunk's start and to its end.
  void grade_rows() {
    transpose(state, values, transposed, chunk.width, s.keys, s.values);
    multiply({given, values, 1}, transposed, chunk.width, grad_reads, chunk.width, chunk.read_rows, s.values,
            s.keys, kReplace);
    transpose(grad_state, values, transposed, chunk.width, s.keys, s.values);
    multiply({u, values, 1}, transposed, chunk.width, grad_writes, chunk.width, chunk.write_rows, s.values,
            s.keys, kReplace);
  }

  // From there to the gradients of reads and writes themselves, and what the scores add.
  void by_number() {
    undo_decay_of_reads(0);
    undo_decay_of_writes(0);
    const float* p = grad_scores;
    const int64_t w = chunk.width, columns = chunk.columns;
    chunk.for_each_stair([&](int64_t row, int64_t token, int64_t rows) {
      multiply({p + row * columns, columns, 1}, chunk.writes, w, grad_reads + row * w, w, rows,
              chunk.stairs(token), s.keys, kAdd);
    });
    for (int64_t i = 0; i < chunk.tokens; i += kStair) {
      const int64_t r = i * s.writes, n = std::min(kStair, chunk.tokens - i) * s.writes;
      add_from_reads(r, n, r, chunk.write_rows - r, chunk.reads);
      add_from_reads(r, n, chunk.write_rows + i, chunk.tokens - i, chunk.reads);
    }
  }

  // grad_writes of rows [row, row + n) += scores^T reads, over the reads [first, first + count).
  void add_from_reads(int64_t row, int64_t n, int64_t first, int64_t count, const float* reads) {
    multiply({grad_scores + first * chunk.columns + row, 1, chunk.columns}, reads + first * chunk.width,
            chunk.width, grad_writes + row * chunk.width, chunk.width, n, count, s.keys, kAdd);
  }

  // Gradients by rows decayed from the block's start become those of the rows.
  void undo_decay_of_reads(int64_t start) {
    for (int64_t i = start; i < std::min(start + chunk.block, chunk.tokens); ++i)
      chunk.for_each_read(i, [&](int64_t r) {
        float* row = grad_reads + r * chunk.width;
        scale(row, row, chunk.inside + i * chunk.width, chunk.width);
      });
  }

  void undo_decay_of_writes(int64_t start) {
    float* after = later;
    std::fill(after, after + chunk.width, 1.0f);
    for (int64_t i = std::min(start + chunk.block, chunk.tokens) - 1; i >= start; --i) {
      for (int64_t r = i * s.writes; r < (i + 1) * s.writes; ++r)
        scale(grad_writes + r * chunk.width, grad_writes + r * chunk.width, after, chunk.width);
      scale(after, after, chunk.decay + i * chunk.width, chunk.width);
    }
  }

  // The same where channels decay on their own, block by block as in the scores.
  void by_channel() {
    float* before = later;  // the decay from the chunk's to the block's start
    std::fill(before, before + chunk.width, 1.0f);
    for (int64_t start = 0; start < chunk.tokens; start += chunk.block) {
      grade_far_reads(start, before);
      undo_decay_of_reads(start);
      chunk.carry_writes(start);
      scale(before, before, chunk.inside + (start + chunk.block - 1) * chunk.width, chunk.width);
    }
    for (int64_t start = chunk.tokens - chunk.block; start >= 0; start -= chunk.block) {
      grade_far_writes(start);
      undo_decay_of_writes(start);
    }
    for (int64_t start = 0; start < chunk.tokens; start += chunk.block) {
      grade_near_reads(start);
      grade_near_writes(start);
    }
  }

  // `ends` holds the writes of earlier blocks, decayed to this block's start.
  void grade_far_reads(int64_t start, const float* before) {
    const int64_t w = chunk.width, writes = start * s.writes;
    const auto grade = [&](int64_t row, int64_t rows) {
      for (int64_t r = row; r < row + rows; ++r) scale(grad_reads + r * w, grad_reads + r * w, before, w);
      multiply({grad_scores + row * chunk.columns, chunk.columns, 1}, chunk.ends, w, grad_reads + row * w, w,
              rows, writes, s.keys, kAdd);
    };
    grade(writes, chunk.block * s.writes);
    grade(chunk.write_rows + start, chunk.block);
  }

  void grade_far_writes(int64_t start) {
    const int64_t w = chunk.width, writes = start * s.writes;
    const float* over = chunk.inside + (start + chunk.block - 1) * w;
    for (int64_t r = 0; r < writes; ++r) scale(grad_writes + r * w, grad_writes + r * w, over, w);
    add_from_reads(0, writes, writes, chunk.block * s.writes, chunk.near);
    add_from_reads(0, writes, chunk.write_rows + start, chunk.block, chunk.near);
  }

  void grade_near_reads(int64_t start) {
    const int64_t w = chunk.width, end = start + chunk.block;
    for (int64_t j = start; j < end; ++j)
      for (int64_t p = j * s.writes; p < (j + 1) * s.writes; ++p) {
        std::copy(chunk.writes + p * w, chunk.writes + (p + 1) * w, later);
        for (int64_t i = j; i < end; ++i) {
          if (i > j) scale(later, later, chunk.decay + i * w, w);
          chunk.for_each_read(i, [&](int64_t r) {
            add_scaled(grad_reads + r * w, later, grad_scores[r * chunk.columns + p], w);
          });
        }
      }
  }

  void grade_near_writes(int64_t start) {
    const int64_t w = chunk.width, end = start + chunk.block;
    for (int64_t j = start; j < end; ++j)
      for (int64_t p = j * s.writes; p < (j + 1) * s.writes; ++p) {
        std::fill(later, later + w, 0.0f);
        for (int64_t i = end - 1; i >= j; --i) {
          chunk.for_each_read(i, [&](int64_t r) {
            add_scaled(later, chunk.reads + r * w, grad_scores[r * chunk.columns + p], w);
          });
          if (i > j) scale(later, later, chunk.decay + i * w, w);
        }
        add_scaled(grad_writes + p * w, later, 1.0f, w);
      }
  }

  void write_gradients(const Head& head, int64_t first, const Gradients& grads) {
    const int64_t w = chunk.width;
    for (int64_t i = chunk.tokens - 1; i >= 0; --i) {
      if (first + i >= s.steps) continue;
      write_gradient_of_decay(first, i, grads);
      write_row(grads.q[first + i], grad_reads + (chunk.write_rows + i) * w, s.keys);
      for (int64_t r = i * s.writes; r < (i + 1) * s.writes; ++r) {
        const int64_t at = first * s.writes + r;
        write_gradients_of_write(head.k[at], *head.beta[at], grad_reads + r * w, grad_writes + r * w,
                                 grads.beta[at], grads.k[at], grads.apart ? grads.erase[at] : nullptr);
      }
    }
  }

  void write_gradients_of_write(const float* k, float beta, const float* grad_erase, const float* grad_write,
                                float* grad_beta, float* grad_k, float* grad_apart) {
    Vec total{};
    for (int64_t c = 0; c < s.keys; c += kLanes) {
      const int64_t n = s.keys - c;
      const Vec write = load(grad_write + c), erase = load(grad_erase + c);
      total += load(k + c, n) * write;
      store(grad_k + c, grad_apart ? beta * write : beta * write + erase, n);
      if (grad_apart) store(grad_apart + c, erase, n);
    }
    *grad_beta = sum(total);
  }

  // `through` becomes what the decay of token i answers for: all that passes from before it to after.
  void write_gradient_of_decay(int64_t first, int64_t i, const Gradients& grads) {
    const int64_t w = chunk.width;
    const float* decay = chunk.decay + i * w;
    Vec total{};
    for (int64_t c = 0; c < w; c += kLanes) {
      Vec x = load(through + c);
      chunk.for_each_read(i, [&](int64_t r) { x += load(chunk.reads + r * w + c) * load(grad_reads + r * w + c); });
      for (int64_t r = i * s.writes; r < (i + 1) * s.writes; ++r)
        x -= load(chunk.writes + r * w + c) * load(grad_writes + r * w + c);
      x = load(decay + c) == Vec{} ? Vec{} : x;
      store(through + c, x);
      total += x;
      if (s.channels > 1) store(grads.log_decay[first + i] + c, x, s.keys - c);
    }
    if (s.channels == 1) *grads.log_decay[first + i] = sum(total);
  }

  const Shape s;
  Chunk chunk;
  const int64_t values;
  Scratch memory_;
  float *state, *grad_state, *transposed;
  float *u, *given;
  float *grad_scores, *grad_reads, *grad_writes;
  float *later, *through;
};

}  // namespace

STEPSCAN_API void delta_rule_backward(const float* q, const float* k, const float* v, const float* beta,
                                      const float* log_decay, const float* erase, const uint8_t* resets,
                                      const float* starts, const float* last, const float* grad_y,
                                      const float* grad_last, int64_t saved, float* grad_q, float* grad_k,
                                      float* grad_v, float* grad_beta, float* grad_log_decay,
                                      float* grad_erase, float* grad_state, int64_t rows, int64_t steps,
                                      int64_t heads, int64_t keys, int64_t values, int64_t writes,
                                      int64_t channels) {
  const Shape s{rows, steps, heads, keys, values, writes, channels};
  const int64_t states = (steps + saved - 1) / saved, size = keys * values;
  parallel_for(rows * heads, rows * heads * steps * writes * size, [=](int64_t i) {
    const Head head(s, i, q, k, v, beta, log_decay, erase, resets);
    const Gradients grads{rows_of(grad_q, s, i, steps, keys),
                          rows_of(grad_k, s, i, steps * writes, keys),
                          rows_of(grad_v, s, i, steps * writes, values),
                          rows_of(grad_beta, s, i, steps * writes, 1),
                          rows_of(grad_log_decay, s, i, steps, channels),
                          rows_of(grad_erase, s, i, steps * writes, keys),
                          erase != nullptr};
    Backward(s, saved).run(head, starts + i * states * size, last + i * size,
                           rows_of(grad_y, s, i, steps, values), grad_last + i * size, grads,
                           grad_state + i * size);
  });
}
