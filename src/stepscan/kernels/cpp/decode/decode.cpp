// One step of a whole model in one call: the instructions of a tape, in their order, by all threads.
//
// An instruction is [kind, words that follow, parts, wait] and its words. Parts are numbered through the
// whole tape, and each thread takes the next number when it is done with its last one: so none waits for
// a thread that the system has put aside, unless that holds a part. Where `wait` is set, all parts before
// it must be done first, because what follows reads or overwrites what they touch. An instruction of no
// parts belongs to the one before: who has done that does it too.
//
// Parts do not depend on the number of threads, so neither do the results.

#include <atomic>
#include <thread>

#include "attention_step.h"
#include "elementwise.h"
#include "gemv.h"
#include "memory_step.h"
#include "row_steps.h"
#include "tape.h"
#include "team.h"

namespace {

using stepscan::Tape;

constexpr int64_t kPatience = 2000;  // looks at a counter before the core is offered to others

constexpr void (*kSteps[])(Tape, int64_t, int64_t) = {
    stepscan::run_product, stepscan::run_elementwise, stepscan::run_memory,         stepscan::run_attention,
    stepscan::run_rows,    stepscan::run_lookup,      stepscan::run_small_products,
};

// Apart from each other in memory: every thread writes to both.
struct Progress {
  alignas(64) std::atomic<int64_t> taken{0};
  alignas(64) std::atomic<int64_t> done{0};

  int64_t take() { return taken.fetch_add(1, std::memory_order_relaxed); }
  void finish() { done.fetch_add(1, std::memory_order_release); }
  void wait_for(int64_t parts) const {
    for (int64_t looks = 0; done.load(std::memory_order_acquire) < parts; ++looks) {
      if (looks >= kPatience) std::this_thread::yield();
#if defined(__SSE2__)
      else _mm_pause();
#endif
    }
  }
};

struct Instruction {
  int64_t kind, size, parts;
  bool wait;
  explicit Instruction(Tape& tape)
      : kind(tape.whole()), size(tape.whole()), parts(tape.whole()), wait(tape.whole()) {}
};

// The instruction at `tape`, and those after it that belong to it.
void run(Tape tape, const Instruction& own, int64_t part, const int64_t* end) {
  kSteps[own.kind](tape, part, own.parts);
  tape.skip(own.size);
  while (tape.here() < end) {
    const Instruction next(tape);
    if (next.parts) return;
    kSteps[next.kind](tape, 0, 1);
    tape.skip(next.size);
  }
}

void run_all(const int64_t* words, const int64_t* end, Progress& progress) {
  int64_t mine = progress.take();
  int64_t first = 0, before = 0;  // number of this instruction's first part; parts to be done before
  for (Tape tape(words); tape.here() < end;) {
    const Instruction instruction(tape);
    if (instruction.wait) before = first;
    for (; mine < first + instruction.parts; mine = progress.take()) {
      progress.wait_for(before);
      run(tape, instruction, mine - first, end);
      progress.finish();
    }
    first += instruction.parts;
    tape.skip(instruction.size);
  }
}

}  // namespace

STEPSCAN_API void decode_step(const int64_t* words, int64_t length, int64_t threads) {
  Progress progress;
  stepscan::as_team(threads, [&](int64_t, int64_t) { run_all(words, words + length, progress); });
}
