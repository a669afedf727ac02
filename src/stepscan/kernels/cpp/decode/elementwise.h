// Chains of elementwise operations over n numbers, block after block: a block of every operand is loaded
// into registers of kBlock numbers each, which lie in the innermost cache; then one operation after the
// other runs over them; then the results are stored, or summed over groups of neighbours.
//
// Operands have at most kMostDims dimensions with strides of their own, and are numbered in row-major
// order. Whole numbers and float64 are computed in float64, all else in float32.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "tape.h"
#include "team.h"
#include "vector.h"

namespace stepscan {

constexpr int64_t kBlock = 256;
constexpr int64_t kRegisters = 48;
constexpr int64_t kMostDims = 6;

// ---- operations, on vectors of floats and on doubles ----

STEPSCAN_INLINE double splat_as(double x, double) { return x; }
STEPSCAN_INLINE Vec splat_as(double x, Vec) { return splat(static_cast<float>(x)); }
STEPSCAN_INLINE double exp(double x) { return std::exp(x); }
STEPSCAN_INLINE double log1p(double x) { return std::log1p(x); }
STEPSCAN_INLINE double abs(double x) { return std::fabs(x); }
STEPSCAN_INLINE double tanh(double x) { return std::tanh(x); }
STEPSCAN_INLINE double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

// One number after another, for functions that are rare or have no vector form.
#define STEPSCAN_BY_LANE(name, function)                           \
  STEPSCAN_INLINE double name(double x) { return function(x); }    \
  STEPSCAN_INLINE Vec name(Vec x) {                                \
    for (int i = 0; i < kLanes; ++i) x[i] = function(x[i]);        \
    return x;                                                      \
  }
STEPSCAN_BY_LANE(sine, std::sin)
STEPSCAN_BY_LANE(cosine, std::cos)
STEPSCAN_BY_LANE(root, std::sqrt)
STEPSCAN_BY_LANE(logarithm, std::log)
#undef STEPSCAN_BY_LANE

STEPSCAN_INLINE double exp_minus_one(double x) { return std::expm1(x); }
STEPSCAN_INLINE double error_function(double x) { return std::erf(x); }

// e^x - 1: near zero the difference would cancel, there the series.
STEPSCAN_INLINE Vec exp_minus_one(Vec x) {
  Vec p = 1.0f + x * (1.0f / 9);
  for (int n = 8; n > 1; --n) p = 1.0f + x * p * (1.0f / n);
  return abs(x) < splat(0.5f) ? x * p : exp(x) - 1.0f;
}

// The error function: near zero its series, else 7.1.26 of Abramowitz and Stegun, right to 1.5e-7.
STEPSCAN_INLINE Vec error_function(Vec x) {
  const Vec x2 = x * x, size = abs(x), t = 1.0f / (1.0f + 0.3275911f * size);
  Vec near = 1.0f / 216 - x2 * (1.0f / 1320 - x2 * (1.0f / 9360));
  near = 1.0f - x2 * (1.0f / 3 - x2 * (1.0f / 10 - x2 * (1.0f / 42 - x2 * near)));
  Vec p = 1.061405429f * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = (p * t + 0.254829592f) * t;
  const Vec far = 1.0f - p * exp(-x2);
  return size < splat(0.5f) ? 1.128379167f * x * near : (x < splat(0.0f) ? -far : far);
}

template <typename X>
STEPSCAN_INLINE X either(bool which, X yes, X no) {
  return which ? yes : no;
}
STEPSCAN_INLINE Vec either(IntVec which, Vec yes, Vec no) { return which ? yes : no; }

template <typename X>
STEPSCAN_INLINE X larger(X a, X b) {  // NaN if either is
  return either(b != b, b, either(a > b, a, either(a != a, a, b)));
}

template <typename X>
STEPSCAN_INLINE X soft_plus(X x) {
  return larger(splat_as(0, x), x) + log1p(exp(-abs(x)));
}

// In the order of OPERATIONS in generate/compiled/loops.py.
enum Operation : int64_t {
  kAddUp, kSubtract, kTimes, kDivide, kNegate, kExp, kExpm1, kLog, kLog1p, kSigmoid, kTanh, kSilu, kErf,
  kSoftplus, kSqrt, kRsqrt, kAbs, kMaximum, kMinimum, kSin, kCos, kLess, kLessEqual, kEqual, kWhere,
  kMultiplyAdd, kNot, kAnd, kOr,
};

template <typename X, typename F>
STEPSCAN_INLINE void each(int64_t count, F f) {
  constexpr int64_t lanes = sizeof(X) == sizeof(double) ? 1 : kLanes;
  for (int64_t i = 0; i < count; i += lanes) f(i);
}

STEPSCAN_INLINE void get(const float* p, Vec& x) { x = load(p); }
STEPSCAN_INLINE void get(const double* p, double& x) { x = *p; }
STEPSCAN_INLINE void put(float* p, Vec x) { store(p, x); }
STEPSCAN_INLINE void put(double* p, double x) { *p = x; }

// X is what one step of the loop works on, T what memory holds of it.
template <typename X, typename T>
void operate(Operation operation, const T* a, const T* b, const T* c, T* to, int64_t count) {
  const auto one = [&](auto f) {
    each<X>(count, [&](int64_t i) { X x; get(a + i, x); put(to + i, f(x)); });
  };
  const auto two = [&](auto f) {
    each<X>(count, [&](int64_t i) { X x, y; get(a + i, x); get(b + i, y); put(to + i, f(x, y)); });
  };
  const auto three = [&](auto f) {
    each<X>(count, [&](int64_t i) {
      X x, y, z; get(a + i, x); get(b + i, y); get(c + i, z); put(to + i, f(x, y, z));
    });
  };
  const X yes = splat_as(1, X{}), no = splat_as(0, X{});
  switch (operation) {
    case kAddUp: return two([](X x, X y) { return x + y; });
    case kSubtract: return two([](X x, X y) { return x - y; });
    case kTimes: return two([](X x, X y) { return x * y; });
    case kDivide: return two([](X x, X y) { return x / y; });
    case kNegate: return one([](X x) { return -x; });
    case kExp: return one([](X x) { return exp(x); });
    case kExpm1: return one([](X x) { return exp_minus_one(x); });
    case kLog: return one([](X x) { return logarithm(x); });
    case kLog1p: return one([](X x) { return log1p(x); });
    case kSigmoid: return one([](X x) { return sigmoid(x); });
    case kTanh: return one([](X x) { return tanh(x); });
    case kSilu: return one([](X x) { return x * sigmoid(x); });
    case kErf: return one([](X x) { return error_function(x); });
    case kSoftplus: return one([](X x) { return soft_plus(x); });
    case kSqrt: return one([](X x) { return root(x); });
    case kRsqrt: return one([=](X x) { return yes / root(x); });
    case kAbs: return one([](X x) { return abs(x); });
    case kMaximum: return two([](X x, X y) { return larger(x, y); });
    case kMinimum: return two([](X x, X y) { return -larger(-x, -y); });
    case kSin: return one([](X x) { return sine(x); });
    case kCos: return one([](X x) { return cosine(x); });
    case kLess: return two([=](X x, X y) { return either(x < y, yes, no); });
    case kLessEqual: return two([=](X x, X y) { return either(x <= y, yes, no); });
    case kEqual: return two([=](X x, X y) { return either(x == y, yes, no); });
    case kWhere: return three([=](X x, X y, X z) { return either(x != no, y, z); });
    case kMultiplyAdd: return three([](X x, X y, X z) { return x + y * z; });
    case kNot: return one([=](X x) { return yes - x; });
    case kAnd: return two([](X x, X y) { return x * y; });
    case kOr: return two([](X x, X y) { return larger(x, y); });
  }
}

// ---- operands in memory ----

struct Operand {
  int64_t number;  // of the register
  Type type;
  char* data;
  double constant;
  int64_t group;  // of a store: 0 as it is, n > 0 sums of n neighbours, n < 0 the largest of -n
  int64_t dims;
  int64_t sizes[kMostDims], strides[kMostDims];

  bool contiguous() const { return dims == 1 && strides[0] == 1; }
};

inline Operand next_operand(Tape& tape) {
  Operand x;
  x.number = tape.whole();
  x.type = static_cast<Type>(tape.whole());
  x.group = tape.whole();
  if (x.type == kConstant) {
    x.constant = tape.number();
    x.data = nullptr;
  } else {
    x.data = tape.address<char>();
  }
  x.dims = tape.whole();
  for (int64_t i = 0; i < x.dims; ++i) x.sizes[i] = tape.whole();
  for (int64_t i = 0; i < x.dims; ++i) x.strides[i] = tape.whole();
  return x;
}

// run(place, offset, length, stride): stretches of the innermost dimension that make up the numbers
// first .. first + count - 1.
template <typename Run>
STEPSCAN_INLINE void for_each_run(const Operand& x, int64_t first, int64_t count, Run run) {
  int64_t index[kMostDims], offset = 0, rest = first;
  for (int64_t d = x.dims - 1; d >= 0; --d) {
    index[d] = rest % x.sizes[d];
    rest /= x.sizes[d];
    offset += index[d] * x.strides[d];
  }
  const int64_t inner = x.dims - 1;
  for (int64_t place = 0; place < count;) {
    const int64_t length = std::min(count - place, x.sizes[inner] - index[inner]);
    run(place, offset, length, x.strides[inner]);
    place += length;
    index[inner] += length;
    offset += length * x.strides[inner];
    for (int64_t d = inner; d > 0 && index[d] == x.sizes[d]; --d) {
      offset += x.strides[d - 1] - index[d] * x.strides[d];
      index[d] = 0;
      ++index[d - 1];
    }
  }
}

template <typename From, typename To>
void convert(const From* from, int64_t from_stride, To* to, int64_t to_stride, int64_t count) {
  if (from_stride == 1 && to_stride == 1)
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<To>(from[i]);
  else
    for (int64_t i = 0; i < count; ++i) to[i * to_stride] = static_cast<To>(from[i * from_stride]);
}

template <typename From, typename T>
void load_as(const Operand& x, int64_t first, int64_t count, T* to) {
  const From* data = reinterpret_cast<const From*>(x.data);
  if (x.dims == 0) return std::fill(to, to + count, static_cast<T>(*data));
  for_each_run(x, first, count, [=](int64_t place, int64_t offset, int64_t length, int64_t stride) {
    if (stride == 0)
      std::fill(to + place, to + place + length, static_cast<T>(data[offset]));
    else
      convert(data + offset, stride, to + place, 1, length);
  });
}

// The commonest pattern of two dimensions: one number for each whole row, or one row for all.
inline bool load_rows(const Operand& x, int64_t first, int64_t count, float* to) {
  const int64_t width = x.dims == 2 ? x.sizes[1] : 1, stride = x.dims == 2 ? x.strides[1] : -1;
  if (width % kLanes || first % width || count % width || (stride != 0 && stride != 1)) return false;
  const float* from = reinterpret_cast<const float*>(x.data) + first / width * x.strides[0];
  for (const float* end = to + count; to < end; from += x.strides[0])
    for (int64_t i = 0; i < width; i += kLanes, to += kLanes)
      store(to, stride ? load(from + i) : splat(*from));
  return true;
}
inline bool load_rows(const Operand&, int64_t, int64_t, double*) { return false; }

template <typename T>
void load_block(const Operand& x, int64_t first, int64_t count, T* to) {
  if (x.type == kFloat && load_rows(x, first, count, to)) return;
  switch (x.type) {
    case kFloat: return load_as<float>(x, first, count, to);
    case kDouble: return load_as<double>(x, first, count, to);
    case kLong: return load_as<int64_t>(x, first, count, to);
    case kBool: return load_as<uint8_t>(x, first, count, to);
    case kConstant: return std::fill(to, to + count, static_cast<T>(x.constant));
  }
}

template <typename To, typename T>
void store_as(const Operand& x, int64_t first, int64_t count, const T* from) {
  To* data = reinterpret_cast<To*>(x.data);
  if (x.dims == 0) {
    *data = static_cast<To>(*from);
    return;
  }
  for_each_run(x, first, count, [=](int64_t place, int64_t offset, int64_t length, int64_t stride) {
    convert(from + place, 1, data + offset, stride, length);
  });
}

STEPSCAN_INLINE float total(const float* x, int64_t n) {
  Vec sums{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) sums += load(x + i);
  if (i < n) sums += load(x + i, n - i);
  return sum(sums);
}
STEPSCAN_INLINE double total(const double* x, int64_t n) {
  double result = 0;
  for (int64_t i = 0; i < n; ++i) result += x[i];
  return result;
}

// Sums, or the largest, of each group of neighbours. A group may begin in an earlier block.
template <typename To, typename T>
void reduce_as(const Operand& x, int64_t first, int64_t count, const T* from) {
  To* data = reinterpret_cast<To*>(x.data);
  const int64_t size = std::abs(x.group);
  for (int64_t at = first; at < first + count;) {
    const int64_t group = at / size, end = std::min((group + 1) * size, first + count);
    const T* part = from + (at - first);
    T result;
    if (x.group > 0) {
      result = total(part, end - at) + (at % size ? static_cast<T>(data[group]) : T(0));
    } else {
      result = at % size ? static_cast<T>(data[group]) : *part;
      for (int64_t i = 0; i < end - at; ++i)
        result = part[i] > result || part[i] != part[i] ? part[i] : result;
    }
    data[group] = static_cast<To>(result);
    at = end;
  }
}

template <typename T>
void store_block(const Operand& x, int64_t first, int64_t count, const T* from) {
  const auto as = [&](auto type) {
    using To = decltype(type);
    x.group ? reduce_as<To>(x, first, count, from) : store_as<To>(x, first, count, from);
  };
  switch (x.type) {
    case kFloat: return as(float{});
    case kDouble: return as(double{});
    case kLong: return as(int64_t{});
    case kBool: return as(uint8_t{});
    case kConstant: return;
  }
}

// ---- the loop ----

template <typename X, typename T>
void run_blocks(Tape tape, int64_t first, int64_t end) {
  alignas(64) T room[kRegisters][kBlock];
  const T* registers[kRegisters];
  for (int64_t i = 0; i < kRegisters; ++i) registers[i] = room[i];
  const Tape loads = tape;
  for (int64_t start = first; start < end; start += kBlock) {
    Tape at = loads;
    const int64_t count = std::min(kBlock, end - start);
    for (int64_t i = at.whole(); i > 0; --i) {
      const Operand x = next_operand(at);
      if (x.dims == 0) {  // the same for all blocks: its register is its own
        if (start == first) load_block(x, 0, kBlock, room[x.number]);
      } else if (sizeof(T) == sizeof(float) && x.type == kFloat && x.contiguous() && count % kLanes == 0) {
        registers[x.number] = reinterpret_cast<const T*>(x.data) + start;
      } else {
        registers[x.number] = room[x.number];
        load_block(x, start, count, room[x.number]);
        // What is computed of the lanes beyond goes nowhere, but should not be slow: no subnormals.
        std::fill(room[x.number] + count, room[x.number] + std::min(padded(count), kBlock), T(1));
      }
    }
    for (int64_t i = at.whole(); i > 0; --i) {
      const auto operation = static_cast<Operation>(at.whole());
      const int64_t to = at.whole(), a = at.whole(), b = at.whole(), c = at.whole();
      operate<X>(operation, registers[a], registers[b], registers[c], room[to], count);
      registers[to] = room[to];
    }
    for (int64_t i = at.whole(); i > 0; --i) {
      const Operand x = next_operand(at);
      store_block(x, start, count, registers[x.number]);
    }
  }
}

inline void run_elementwise(Tape tape, int64_t part, int64_t parts) {
  const int64_t n = tape.whole(), grain = tape.whole();
  const bool wide = tape.whole();
  const auto [first, end] = part_of((n + grain - 1) / grain, part, parts);
  const int64_t from = first * grain, to = std::min(end * grain, n);
  if (from >= to) return;
  if (wide)
    run_blocks<double, double>(tape, from, to);
  else
    run_blocks<Vec, float>(tape, from, to);
}

}  // namespace stepscan
