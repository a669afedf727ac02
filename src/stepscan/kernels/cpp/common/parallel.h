// Threads, and memory to work in.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

namespace stepscan {

constexpr int64_t kWorthThreads = 1 << 15;  // multiply-adds below which starting threads costs more

// task(i) for i = 0 .. n-1, on as many threads as torch uses: both share one OpenMP runtime. Which
// task runs on which thread is fixed, and tasks write to places of their own, so the results are the
// same from run to run.
template <typename Task>
void parallel_for(int64_t n, int64_t work, Task task) {
#pragma omp parallel for schedule(static) if (n > 1 && work > kWorthThreads)
  for (int64_t i = 0; i < n; ++i) task(i);
}

// Floats on a cache line's boundary, not initialised. One per task, made before its loops.
class Scratch {
 public:
  explicit Scratch(int64_t n)
      : memory_(static_cast<float*>(std::aligned_alloc(64, (n * sizeof(float) + 64) / 64 * 64))) {
    if (!memory_) std::abort();  // as torch's own allocator would, but that we have no exceptions
  }
  operator float*() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> memory_;
};

}  // namespace stepscan
