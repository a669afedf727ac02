// Linear attention over contiguous float32 tensors: q, k [B, T, G, K], v [B, T, H, V], and a log decay
// [B, T, H, 1] or [B, T, H, K]; see ops/linear_attention.py for the recurrence. Where resets[t] is set,
// the memory counts as zero before token t. A gain [B, T, H] multiplies what a token writes. With `sums`
// the memory has one more column, as if every v had a last number 1, and what is read of it is `weight`.
//
// A task is one row and some heads of one group. It goes from chunk to chunk with its heads' memories in
// the cache; the scores q . k of a chunk are computed once for all of them. For the gradient the memories
// are kept every kSpan steps, and the chunks of a span are run again, last span first.

#include <omp.h>

#include <algorithm>
#include <vector>

#include "attention_chunk.h"
#include "decay_per_channel.h"
#include "decay_per_head.h"

namespace {

using namespace stepscan;

constexpr int64_t kCache = 1 << 16;  // floats that the memories of one task may fill
constexpr int64_t kFewSteps = 4;     // up to which one step at a time is quicker than a chunk

struct Inputs {
  const float *q, *k, *v, *log_decay, *gain;
  const uint8_t* resets;
};

// In which parts the heads of each group are handed out.
struct Tasks {
  int64_t per_group, heads;

  // A task costs its heads and, about a quarter of one, the scores they share. The fewest tasks are
  // taken of those that keep every thread busy longest.
  explicit Tasks(const AttentionSizes& s) : per_group(1), heads(s.shared_by()) {
    const int64_t threads = omp_get_max_threads(), groups = s.rows * s.groups;
    const int64_t fit = std::max<int64_t>(1, kCache / std::max<int64_t>(1, s.memory()));
    int64_t least = INT64_MAX;
    for (int64_t n = (s.shared_by() + fit - 1) / fit; n <= s.shared_by(); ++n) {
      const int64_t each = (s.shared_by() + n - 1) / n;
      const int64_t cost = (groups * n + threads - 1) / threads * (4 * each + 1);
      if (cost >= least) continue;
      least = cost;
      per_group = (s.shared_by() + each - 1) / each;  // n would leave some without a head
      heads = each;
    }
  }
};

// task(row, group, part, first head, heads) for all of them.
template <typename Task>
void for_each_task(const AttentionSizes& s, const Tasks& tasks, Task task) {
  const int64_t work = s.rows * s.steps * s.heads * s.keys * s.columns();
  parallel_for(s.rows * s.groups * tasks.per_group, work, [&](int64_t i) {
    const int64_t part = i % tasks.per_group, group = i / tasks.per_group % s.groups;
    const int64_t first = part * tasks.heads, last = std::min(first + tasks.heads, s.shared_by());
    if (first < last)
      task(i / tasks.per_group / s.groups, group, part, group * s.shared_by() + first, last - first);
  });
}

void load_memory(const AttentionSizes& s, const float* from, float* memory) {
  for (int64_t k = 0; k < s.keys; ++k)
    for (int64_t j = 0; j < s.value_row(); j += kLanes)
      store(memory + k * s.value_row() + j, load(from + k * s.columns() + j, s.columns() - j));
}

void store_memory(const AttentionSizes& s, const float* memory, float* to) {
  copy_out(to, s.columns(), memory, s.value_row(), s.keys, s.columns());
}

// Where the memory of a head is, in a tensor of [B, H, K, columns] or, `of` them, [B, H, of, K, columns].
int64_t memory_at(const AttentionSizes& s, int64_t row, int64_t head, int64_t of = 1, int64_t i = 0) {
  return ((row * s.heads + head) * of + i) * s.keys * s.columns();
}

// One vector of columns of one head, one step: the new memory is written, and read with q.
void step(const AttentionSizes& s, const float* before, float* memory, const float* a, const float* q,
          const float* k, Vec v, int64_t n, float* y, bool reset) {
  Vec read{};
  for (int64_t i = 0; i < s.keys; ++i) {
    const Vec kept = reset ? Vec{} : load(before + i * s.columns(), n) * a[s.channels == 1 ? 0 : i];
    const Vec now = kept + v * k[i];
    store(memory + i * s.columns(), now, n);
    read += now * q[i];
  }
  store(y, read);
}

// A head's few steps, each straight from the memory before to the one after it.
void attend_step_by_step(const AttentionSizes& s, const Inputs& in, const float* state, int64_t row,
                         int64_t head, float* y, float* weight, float* last) {
  const Scratch a(padded(s.channels)), values(s.value_row()), read(s.value_row());
  const int64_t group = head / s.shared_by(), memory = memory_at(s, row, head);
  for (int64_t t = 0; t < s.steps; ++t) {
    const Chunk c{row, group, t, 1, 0, nullptr, nullptr, nullptr, nullptr};
    load_values(s, c, head, in.v, in.gain, values);
    copy_in(a, padded(s.channels), in.log_decay + at(s, s.heads, s.channels, row, t, head), 0, 1, s.channels);
    for (int64_t i = 0; i < s.channels; i += kLanes) store(a + i, exp(load(a + i)));
    const int64_t key = at(s, s.groups, s.keys, row, t, group);
    for (int64_t j = 0; j < s.columns(); j += kLanes)
      step(s, (t ? last : state) + memory + j, last + memory + j, a, in.q + key, in.k + key,
           load(values + j), s.columns() - j, read + j, in.resets[row * s.steps + t]);
    store_values(s, c, head, read, y, weight);
  }
}

}  // namespace

STEPSCAN_API void linear_attention(const float* q, const float* k, const float* v, const float* log_decay,
                                   const float* gain, const float* state, const uint8_t* resets,
                                   int64_t sums, int64_t save, float* y, float* weight, float* last,
                                   float* starts, int64_t rows, int64_t steps, int64_t groups,
                                   int64_t heads, int64_t keys, int64_t values, int64_t channels) {
  const AttentionSizes s{rows, steps, groups, heads, keys, values, channels, sums != 0};
  const Inputs in{q, k, v, log_decay, gain, resets};
  if (!s.sums) weight = nullptr;
  if (steps <= kFewSteps && !save)
    return parallel_for(rows * heads, rows * steps * heads * keys * s.columns(), [&](int64_t i) {
      attend_step_by_step(s, in, state, i / heads, i % heads, y, weight, last);
    });

  for_each_task(s, Tasks(s), [&](int64_t row, int64_t group, int64_t, int64_t first_head, int64_t count) {
    const ChunkMemory chunk_memory(s);
    const Scratch memories(count * s.memory()), head_values(kChunk * s.value_row());
    const Scratch read(kChunk * s.value_row()), weights(kChunk * kChunk);
    const ChannelDecay channel_decay(s);
    HeadDecay head_decay;
    for (int64_t n = 0; n < count; ++n)
      load_memory(s, state + memory_at(s, row, first_head + n), memories + n * s.memory());

    for (int64_t t = 0; t < steps; t += s.chunk()) {
      const Chunk c = load_chunk(s, chunk_memory, q, k, row, group, t, t + s.chunk());
      for (int64_t n = 0; n < count; ++n) {
        const int64_t head = first_head + n;
        float* memory = memories + n * s.memory();
        if (save && t % kSpan == 0)
          store_memory(s, memory, starts + memory_at(s, row, head, s.spans(), t / kSpan));
        load_values(s, c, head, v, gain, head_values);
        if (channels == 1) {
          load_decay(s, c, head, log_decay, resets, head_decay);
          attend_per_head(s, c, head_decay, head_values, memory, weights, read);
        } else {
          load_decay(s, c, head, log_decay, resets, channel_decay);
          attend_per_channel(s, c, channel_decay, head_values, memory, read);
        }
        store_values(s, c, head, read, y, weight);
      }
    }
    for (int64_t n = 0; n < count; ++n)
      store_memory(s, memories + n * s.memory(), last + memory_at(s, row, first_head + n));
  });
}

namespace {

struct Gradients {
  float *q, *k, *v, *log_decay, *gain, *state;
};

// What a task of the backward pass works in, and how.
class Backward {
 public:
  Backward(const AttentionSizes& s, const Inputs& in, const float* grad_y, const float* grad_weight,
           const float* starts, const Gradients& grad, int64_t row, int64_t group, int64_t first_head,
           int64_t count)
      : s_(s),
        in_(in),
        grad_y_(grad_y),
        grad_weight_(grad_weight),
        starts_(starts),
        grad_(grad),
        row_(row),
        group_(group),
        first_head_(first_head),
        count_(count),
        chunk_memory_(s),
        memories_(count * kSpan / s.chunk() * s.memory()),
        grad_memories_(count * s.memory()),
        values_(kChunk * s.value_row()),
        reads_(kChunk * s.value_row()),
        grad_values_(kChunk * s.value_row()),
        grad_q_(kChunk * s.key_row()),
        grad_k_(kChunk * s.key_row()),
        grad_scores_(kChunk * kChunk),
        grad_decay_(kChannelChunk * s.key_row()),
        channel_decay_(s),
        head_work_(s),
        channel_work_(s) {}

  void run(const float* grad_last) {
    for (int64_t n = 0; n < count_; ++n) {
      if (grad_last)
        load_memory(s_, grad_last + memory_at(s_, row_, first_head_ + n), grad_memory(n));
      else
        std::fill_n(grad_memory(n), s_.memory(), 0.0f);
    }
    for (int64_t span = s_.spans() - 1; span >= 0; --span) run_span(span);
    for (int64_t n = 0; n < count_; ++n)
      store_memory(s_, grad_memory(n), grad_.state + memory_at(s_, row_, first_head_ + n));
  }

 private:
  float* memory(int64_t n, int64_t chunk) const {
    return memories_ + (n * (kSpan / s_.chunk()) + chunk) * s_.memory();
  }
  float* grad_memory(int64_t n) const { return grad_memories_ + n * s_.memory(); }

  // Forward from chunk to chunk for the memories, then backward.
  void run_span(int64_t span) {
    const int64_t first = span * kSpan, steps = std::min(kSpan, s_.steps - first);
    const int64_t chunks = (steps + s_.chunk() - 1) / s_.chunk();
    for (int64_t n = 0; n < count_; ++n)
      load_memory(s_, starts_ + memory_at(s_, row_, first_head_ + n, s_.spans(), span), memory(n, 0));
    for (int64_t i = 0; i + 1 < chunks; ++i) write(first + i * s_.chunk(), i);
    for (int64_t i = chunks - 1; i >= 0; --i) chunk_backward(first + i * s_.chunk(), i);
  }

  // The memories after chunk i from those before it.
  void write(int64_t first, int64_t i) {
    const Chunk c = load_chunk(s_, chunk_memory_, in_.q, in_.k, row_, group_, first, first + s_.chunk());
    for (int64_t n = 0; n < count_; ++n) {
      const int64_t head = first_head_ + n;
      load_values(s_, c, head, in_.v, in_.gain, values_);
      std::copy_n(memory(n, i), s_.memory(), memory(n, i + 1));
      if (s_.channels == 1) {
        load_decay(s_, c, head, in_.log_decay, in_.resets, head_decay_);
        write_per_head(s_, c, head_decay_, values_, memory(n, i + 1));
      } else {
        load_decay(s_, c, head, in_.log_decay, in_.resets, channel_decay_);
        write_per_channel(s_, c, channel_decay_, values_, memory(n, i + 1));
      }
    }
  }

  void chunk_backward(int64_t first, int64_t i) {
    const int64_t next = i ? first - s_.chunk() : first - kSpan;
    const Chunk c = load_chunk(s_, chunk_memory_, in_.q, in_.k, row_, group_, first, next);
    const int64_t row = s_.key_row();
    std::fill_n(static_cast<float*>(grad_q_), c.length * row, 0.0f);
    std::fill_n(static_cast<float*>(grad_k_), c.length * row, 0.0f);
    std::fill_n(static_cast<float*>(grad_scores_), c.length * kChunk, 0.0f);
    HeadGradients grad{nullptr, grad_q_, grad_k_, grad_scores_, grad_values_, {}};
    for (int64_t n = 0; n < count_; ++n) {
      const int64_t head = first_head_ + n;
      load_values(s_, c, head, in_.v, in_.gain, values_);
      load_reads(c, head);
      if (s_.channels == 1) {
        load_decay(s_, c, head, in_.log_decay, in_.resets, head_decay_);
        grad.memory = grad_memory(n);
        attend_per_head_backward(s_, c, head_decay_, values_, memory(n, i), reads_, head_work_, grad);
        for (int64_t t = 0; t < c.length; ++t)
          grad_.log_decay[at(s_, s_.heads, 1, row_, first + t, head)] = grad.log_decay[t];
      } else {
        load_decay(s_, c, head, in_.log_decay, in_.resets, channel_decay_);
        attend_per_channel_backward(
            s_, c, channel_decay_, values_, memory(n, i), reads_, channel_work_,
            {grad_memory(n), grad_q_, grad_k_, grad_values_, grad_decay_});
        copy_out(grad_.log_decay + at(s_, s_.heads, s_.keys, row_, first, head), s_.heads * s_.keys,
                 grad_decay_, row, c.length, s_.keys);
      }
      store_gradients(c, head);
    }
    if (s_.channels == 1) scores_backward(s_, c, grad);
    const int64_t to = at(s_, s_.groups, s_.keys, row_, first, group_), to_row = s_.groups * s_.keys;
    copy_out(grad_.q + to, to_row, grad_q_, row, c.length, s_.keys);
    copy_out(grad_.k + to, to_row, grad_k_, row, c.length, s_.keys);
  }

  // The gradient of what was read, with that of the weight as the last column; none counts as zero.
  void load_reads(const Chunk& c, int64_t head) {
    const int64_t row = s_.value_row();
    std::fill_n(static_cast<float*>(reads_), c.length * row, 0.0f);
    if (grad_y_)
      copy_in(reads_, row, grad_y_ + at(s_, s_.heads, s_.values, row_, c.first, head),
              s_.heads * s_.values, c.length, s_.values, c.ahead);
    if (!s_.sums || !grad_weight_) return;
    for (int64_t i = 0; i < c.length; ++i)
      reads_[i * row + s_.values] = grad_weight_[at(s_, s_.heads, 1, row_, c.first + i, head)];
  }

  // The kernel's values are the tensor's times the gain.
  void store_gradients(const Chunk& c, int64_t head) {
    if (in_.gain) {
      load_values(s_, c, head, in_.v, nullptr, values_);
      const int64_t row = s_.value_row();
      for (int64_t i = 0; i < c.length; ++i) {
        const int64_t here = at(s_, s_.heads, 1, row_, c.first + i, head);
        grad_.gain[here] = dot(grad_values_ + i * row, values_ + i * row, row);
        scale(grad_values_ + i * row, in_.gain[here], row);
      }
    }
    store_values(s_, c, head, grad_values_, grad_.v, nullptr);
  }

  const AttentionSizes& s_;
  const Inputs& in_;
  const float *grad_y_, *grad_weight_, *starts_;
  const Gradients grad_;
  const int64_t row_, group_, first_head_, count_;
  ChunkMemory chunk_memory_;
  Scratch memories_, grad_memories_, values_, reads_, grad_values_, grad_q_, grad_k_, grad_scores_,
      grad_decay_;
  HeadDecay head_decay_;
  ChannelDecay channel_decay_;
  HeadWork head_work_;
  ChannelWork channel_work_;
};

// to = the sum of all parts of n floats, first to last.
void add_parts(const float* parts, int64_t count, float* to, int64_t n) {
  constexpr int64_t kPiece = 4096;
  parallel_for((n + kPiece - 1) / kPiece, n * count, [&](int64_t piece) {
    const int64_t last = std::min(n, (piece + 1) * kPiece);
    for (int64_t i = piece * kPiece; i < last; i += kLanes) {
      Vec total = load(parts + i, last - i);
      for (int64_t part = 1; part < count; ++part) total += load(parts + part * n + i, last - i);
      store(to + i, total, last - i);
    }
  });
}

}  // namespace

STEPSCAN_API void linear_attention_backward(
    const float* grad_y, const float* grad_weight, const float* grad_last, const float* q, const float* k,
    const float* v, const float* log_decay, const float* gain, const uint8_t* resets, const float* starts,
    int64_t sums, float* grad_q, float* grad_k, float* grad_v, float* grad_log_decay, float* grad_gain,
    float* grad_state, int64_t rows, int64_t steps, int64_t groups, int64_t heads, int64_t keys,
    int64_t values, int64_t channels) {
  const AttentionSizes s{rows, steps, groups, heads, keys, values, channels, sums != 0};
  const Inputs in{q, k, v, log_decay, gain, resets};
  const Tasks tasks(s);
  // Tasks that share queries and keys have gradients of their own, added up at the end.
  const int64_t n = rows * steps * groups * keys, parts = tasks.per_group > 1 ? tasks.per_group : 0;
  const Scratch parts_of_q(parts * n), parts_of_k(parts * n);
  for_each_task(s, tasks, [&](int64_t row, int64_t group, int64_t part, int64_t first_head, int64_t count) {
    const Gradients grad{parts ? parts_of_q + part * n : grad_q, parts ? parts_of_k + part * n : grad_k,
                         grad_v, grad_log_decay, grad_gain, grad_state};
    Backward(s, in, grad_y, grad_weight, starts, grad, row, group, first_head, count).run(grad_last);
  });
  if (!parts) return;
  add_parts(parts_of_q, parts, grad_q, n);
  add_parts(parts_of_k, parts, grad_k, n);
}
