// Threads that go through the steps of a recurrence together: each computes its part of a step, then
// waits until all have, because the next step reads every part.

#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>

#include "vector.h"

namespace stepscan {

// All of `parties` arrive before any goes on. A step takes microseconds, so waiting spins; after a
// while it yields, for the thread that is waited for may need this very core.
class Barrier {
 public:
  void wait(int64_t parties) {
    if (parties == 1) return;
    const int64_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == parties - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int64_t spins = 0; round_.load(std::memory_order_acquire) == round; ++spins)
      spins < kPatience ? pause() : std::this_thread::yield();
  }

 private:
  static constexpr int64_t kPatience = 2000;

  static void pause() {
#if defined(__SSE2__)
    _mm_pause();
#endif
  }

  // Apart from each other, so that who waits does not slow down who arrives.
  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<int64_t> round_{0};
};

struct Range {
  int64_t first;
  int64_t end;
};

// The part of n things that falls to one of `parts`: contiguous, and no two differ by more than one.
STEPSCAN_INLINE Range part_of(int64_t n, int64_t part, int64_t parts) {
  return {n * part / parts, n * (part + 1) / parts};
}

// member(i, members) on so many threads at once, or on fewer where OpenMP has not got them.
template <typename Member>
void as_team(int64_t members, Member member) {
#pragma omp parallel num_threads(members) if (members > 1)
  member(omp_get_thread_num(), omp_get_num_threads());
}

}  // namespace stepscan
