// One vector of floats, as wide as the instruction set this file is compiled for, and the functions of
// one that the kernels share. GCC's vector extensions, so the same code serves every level and aarch64;
// an intrinsic only where the compiler does not find the instruction.
//
// Relative errors are below 1e-7 (exp, exp2), 3e-7 (log, log1p, sigmoid, silu, softplus) and 5e-7
// (tanh); 0 and the infinities give what they should, NaN is passed on; log wants normal numbers.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define STEPSCAN_INLINE static inline __attribute__((always_inline))
#define STEPSCAN_API extern "C" __attribute__((visibility("default")))

namespace stepscan {

// Wider than the machine's registers would be split, and is 5 to 12 times slower with gcc 12.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));
typedef float VecInMemory __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

constexpr int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

STEPSCAN_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecInMemory*>(p); }
STEPSCAN_INLINE void store(float* p, Vec v) { *reinterpret_cast<VecInMemory*>(p) = v; }
STEPSCAN_INLINE Vec splat(float x) { return x - Vec{}; }  // not x + 0, which loses the sign of -0

// The first n lanes, n <= kLanes; the others are zero. Nothing beyond them is read or written.
STEPSCAN_INLINE Vec load(const float* p, int64_t n) {
  if (n >= kLanes) return load(p);
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
  Vec v{};
  std::memcpy(&v, p, n * sizeof(float));
  return v;
#endif
}

STEPSCAN_INLINE void store(float* p, Vec v, int64_t n) {
  if (n >= kLanes) return store(p, v);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
  std::memcpy(p, &v, n * sizeof(float));
#endif
}

STEPSCAN_INLINE float sum(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
#endif
}

// The second where either is NaN: with the constant first, NaN is passed on. The comparison and choice
// that gcc 12 makes of a > b ? a : b take two instructions instead of one.
#if defined(__AVX512F__)
STEPSCAN_INLINE Vec max(Vec a, Vec b) { return (Vec)_mm512_max_ps((__m512)a, (__m512)b); }
STEPSCAN_INLINE Vec min(Vec a, Vec b) { return (Vec)_mm512_min_ps((__m512)a, (__m512)b); }
#else
STEPSCAN_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }
STEPSCAN_INLINE Vec min(Vec a, Vec b) { return a < b ? a : b; }
#endif
STEPSCAN_INLINE Vec abs(Vec x) { return (Vec)((IntVec)x & 0x7fffffff); }

// 2^x by a polynomial on the fraction, in [-0.5, 0.5], then a shift of the exponent.
STEPSCAN_INLINE Vec exp2(Vec x) {
  // Beyond these 2^x is 0 or infinite; inside, x - round(x) is exact.
  x = min(splat(200.0f), max(splat(-200.0f), x));
#if defined(__AVX512F__)
  const Vec whole = (Vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  constexpr float kRounding = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vec shifted = x + kRounding;
  const Vec whole = shifted - kRounding;
#endif
  const Vec f = x - whole;
  Vec p = f * 1.535336188e-4f + 1.339887440e-3f;
  p = p * f + 9.618437357e-3f;
  p = p * f + 5.550332548e-2f;
  p = p * f + 2.402264791e-1f;
  p = p * f + 6.931472028e-1f;
  p = p * f + 1.0f;
#if defined(__AVX512F__)
  return (Vec)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
  // Two factors: 2^whole alone would leave the range of normal numbers before the product does.
  const IntVec n = (IntVec)shifted - 0x4b400000;  // the integer, from the low bits of the sum
  const IntVec half = n >> 1;
  const Vec first = (Vec)((half + 127) << 23);
  const Vec second = (Vec)((n - half + 127) << 23);
  return p * first * second;
#endif
}

// e^x: the product with log2 e would be wrong by x rounding errors, so its error is carried along.
STEPSCAN_INLINE Vec exp(Vec x) {
  x = min(splat(130.0f), max(splat(-130.0f), x));
#if defined(__AVX512F__)
  const Vec whole =
      (Vec)_mm512_roundscale_ps((__m512)(x * 1.44269504f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  constexpr float kRounding = 12582912.0f;
  const Vec shifted = x * 1.44269504f + kRounding;
  const Vec whole = shifted - kRounding;
#endif
  Vec f = x - whole * 0.693359375f;  // log 2 in two parts, the first with few bits: exact products
  f = f + whole * 2.12194440e-4f;
  Vec p = f * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
#if defined(__AVX512F__)
  return (Vec)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
  const IntVec n = (IntVec)shifted - 0x4b400000;
  const IntVec half = n >> 1;
  return p * (Vec)((half + 127) << 23) * (Vec)((n - half + 127) << 23);
#endif
}

// log x for normal x > 0, by the series of atanh on the mantissa, in [2/3, 4/3).
STEPSCAN_INLINE Vec log(Vec x) {
  const IntVec exponent = ((IntVec)x - 0x3f2aaaab) >> 23;
  const Vec mantissa = (Vec)((IntVec)x - (exponent << 23));
  const Vec f = mantissa - 1.0f;
  const Vec q = f / (2.0f + f);
  const Vec q2 = q * q;
  Vec p = q2 * (1.0f / 11) + 1.0f / 9;
  p = p * q2 + 1.0f / 7;
  p = p * q2 + 1.0f / 5;
  p = p * q2 + 1.0f / 3;
  p = p * q2 + 1.0f;
  return 2.0f * q * p + __builtin_convertvector(exponent, Vec) * 0.69314718056f;
}

// log(1 + x) for x >= 0: what 1 + x rounds away is put back to first order.
STEPSCAN_INLINE Vec log1p(Vec x) {
  const Vec y = 1.0f + x;
  const Vec lost = x - (y - 1.0f);
  const Vec result = log(y) + lost / y;
  return x > splat(3e38f) ? x : result;
}

STEPSCAN_INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }
STEPSCAN_INLINE Vec silu(Vec x) { return x / (1.0f + exp(-x)); }

// Near zero 1 - 2 / (e^2x + 1) would cancel: there the series.
STEPSCAN_INLINE Vec tanh(Vec x) {
  const Vec far = 1.0f - 2.0f / (exp(2.0f * x) + 1.0f);
  const Vec x2 = x * x;
  Vec p = x2 * (62.0f / 2835) - 17.0f / 315;
  p = p * x2 + 2.0f / 15;
  p = p * x2 - 1.0f / 3;
  const Vec near = x + x * x2 * p;
  return abs(x) < splat(0.25f) ? near : far;
}

// log(1 + x) for 0 <= x <= 1, by the series of atanh: 1 + x is never rounded.
STEPSCAN_INLINE Vec log1p_of_fraction(Vec x) {
  const Vec q = x / (2.0f + x);
  const Vec q2 = q * q;
  Vec p = q2 * 0.14082894f + 0.13976462f;
  p = p * q2 + 0.20013228f;
  p = p * q2 + 0.33333120f;
  p = p * q2 + 1.0f;
  return 2.0f * q * p;
}

// log(1 + e^x), without overflow.
STEPSCAN_INLINE Vec softplus(Vec x) { return max(Vec{}, x) + log1p_of_fraction(exp(-abs(x))); }
STEPSCAN_INLINE Vec log_sigmoid(Vec x) { return -softplus(-x); }

}  // namespace stepscan
