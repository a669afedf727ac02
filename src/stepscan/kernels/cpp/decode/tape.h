// A tape: a program as a flat list of 64-bit words, written once and read by every thread at every run.
// A word is a whole number, an address, or the bits of a double.

#pragma once

#include <cstdint>
#include <cstring>

#include "vector.h"

namespace stepscan {

// What a number in memory is.
enum Type : int64_t { kFloat = 0, kDouble = 1, kLong = 2, kBool = 3, kConstant = 4 };

class Tape {
 public:
  explicit Tape(const int64_t* word) : word_(word) {}

  int64_t whole() { return *word_++; }

  double number() {
    double x;
    std::memcpy(&x, word_++, sizeof x);
    return x;
  }

  template <typename T>
  T* address() {
    return reinterpret_cast<T*>(static_cast<uintptr_t>(*word_++));
  }

  const int64_t* here() const { return word_; }
  void skip(int64_t words) { word_ += words; }

 private:
  const int64_t* word_;
};

}  // namespace stepscan
