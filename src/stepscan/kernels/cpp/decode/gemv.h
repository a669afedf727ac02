// y = W x + add for one x: what reading a token costs, for all weights are read and used once.
//
// W lies in panels of 16 rows, so that a vector of rows is next to each other in memory: each column of
// a panel meets one number of x, and no sums across lanes are needed. One word of 32 bits holds a row's
// one float, two bf16 (columns k and k + 1) or four int8 (columns k .. k + 3), the first column lowest;
// columns are filled up with zeros to a whole word, rows to a whole panel.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "parallel.h"
#include "tape.h"
#include "team.h"
#include "vector.h"

namespace stepscan {

constexpr int64_t kPanel = 16;
constexpr int kPanelVecs = kPanel / kLanes;
constexpr int kFetchAhead = 2048;  // bytes, in each stream

typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint32_t WordsInMemory __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

struct FloatWeights {
  static constexpr int kColumns = 1;
  STEPSCAN_INLINE Vec part(Words w, int) { return (Vec)w; }
};

struct HalfWeights {  // bf16: the upper half of a float
  static constexpr int kColumns = 2;
  STEPSCAN_INLINE Vec part(Words w, int i) { return (Vec)(i ? w & 0xffff0000u : w << 16); }
};

struct Product {
  int64_t rows, columns;
  const char* weights;
  const float* scales;  // int8 only, one for each row
  const float* x;
  const float* add;  // may be null
  float* y;

  int64_t words(int64_t each) const { return (columns + each - 1) / each; }
};

// Panels that one thread walks at the same time, `apart` from each other: as many streams, for a core
// gets more out of memory from four than from one. What is fetched ahead beyond a panel is the next one
// of the same stream.
struct Streams {
  int64_t panel, apart;
};

STEPSCAN_INLINE Words read_ahead(const char* line, int v) {
  if (v == 0) __builtin_prefetch(line + kFetchAhead, 0, 0);
  return reinterpret_cast<const WordsInMemory*>(line)[v];
}

template <int Panels>
STEPSCAN_INLINE void finish(const Product& product, Streams streams, Vec sums[][kPanelVecs]) {
  for (int p = 0; p < Panels; ++p)
    for (int v = 0; v < kPanelVecs; ++v) {
      const int64_t row = (streams.panel + p * streams.apart) * kPanel + v * kLanes;
      const int64_t n = product.rows - row;
      if (n <= 0) break;
      Vec y = sums[p][v];
      if (product.scales) y *= load(product.scales + row, n);
      if (product.add) y += load(product.add + row, n);
      store(product.y + row, y, n);
    }
}

template <typename Weights, int Panels>
STEPSCAN_INLINE void multiply_panels(const Product& product, const float* x, Streams streams) {
  constexpr int each = Weights::kColumns;
  const int64_t words = product.words(each), bytes = words * kPanel * 4;
  const char* from = product.weights + streams.panel * bytes;
  Vec sums[Panels][kPanelVecs] = {};
  for (int64_t word = 0; word < words; ++word)
#pragma GCC unroll 4
    for (int p = 0; p < Panels; ++p) {
      const char* line = from + p * streams.apart * bytes + word * (kPanel * 4);
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVecs; ++v) {
        const Words w = read_ahead(line, v);
#pragma GCC unroll 4
        for (int i = 0; i < each; ++i) sums[p][v] += Weights::part(w, i) * splat(x[word * each + i]);
      }
    }
  finish<Panels>(product, streams, sums);
}

template <typename Weights>
struct FloatProduct {
  const Product& product;
  Scratch x;  // filled up with zeros to a whole word

  explicit FloatProduct(const Product& given)
      : product(given), x(product.words(Weights::kColumns) * Weights::kColumns) {
    std::copy(product.x, product.x + product.columns, static_cast<float*>(x));
    std::fill(x + product.columns, x + product.words(Weights::kColumns) * Weights::kColumns, 0.0f);
  }

  template <int Panels>
  void run(Streams streams) const {
    multiply_panels<Weights, Panels>(product, x, streams);
  }
};

#if defined(__SSE2__)

// int8 weights by products of pairs of int16, four times as many a cycle as of floats. For that x is
// rounded to 15 bits and a sign, relative to the largest of its block of 256 columns: far less than the
// weights have been. Sums of a block stay below 2^31.
class ByteProduct {
 public:
  explicit ByteProduct(const Product& product)
      : product_(product), words_(product.words(4)), x_(2 * words_), scales_(blocks()) {
    for (int64_t b = 0; b < blocks(); ++b) round_block(b);
  }

  template <int Panels>
  void run(Streams streams) const {
    const int64_t bytes = words_ * kPanel * 4;
    const char* from = product_.weights + streams.panel * bytes;
    Vec sums[Panels][kPanelVecs] = {};
    for (int64_t b = 0; b < blocks(); ++b) {
      IntVec exact[Panels][kPanelVecs] = {};
      for (int64_t word = b * kWords; word < std::min((b + 1) * kWords, words_); ++word) {
        const IntVec even = IntVec{} + bits()[2 * word], odd = IntVec{} + bits()[2 * word + 1];
#pragma GCC unroll 4
        for (int p = 0; p < Panels; ++p) {
          const char* line = from + p * streams.apart * bytes + word * (kPanel * 4);
#pragma GCC unroll 4
          for (int v = 0; v < kPanelVecs; ++v) {
            const Shorts w = (Shorts)read_ahead(line, v);
            exact[p][v] += pairs((w << 8) >> 8, even) + pairs(w >> 8, odd);
          }
        }
      }
      for (int p = 0; p < Panels; ++p)
        for (int v = 0; v < kPanelVecs; ++v)
          sums[p][v] += __builtin_convertvector(exact[p][v], Vec) * scales_[b];
    }
    finish<Panels>(product_, streams, sums);
  }

 private:
  static constexpr int64_t kWords = 64;  // of four columns, in a block
  typedef int16_t Shorts __attribute__((vector_size(4 * kLanes)));

  int64_t blocks() const { return (words_ + kWords - 1) / kWords; }
  const int32_t* bits() const { return reinterpret_cast<const int32_t*>(static_cast<float*>(x_)); }

  STEPSCAN_INLINE IntVec pairs(Shorts w, IntVec x) {
#if defined(__AVX512F__)
    return (IntVec)_mm512_madd_epi16((__m512i)w, (__m512i)x);
#elif defined(__AVX2__)
    return (IntVec)_mm256_madd_epi16((__m256i)w, (__m256i)x);
#else
    return (IntVec)_mm_madd_epi16((__m128i)w, (__m128i)x);
#endif
  }

  // Of each word's columns 0 .. 3 first 0 and 2, then 1 and 3: as the even and the odd bytes lie.
  void round_block(int64_t b) {
    const int64_t first = b * kWords * 4, end = std::min(first + kWords * 4, product_.columns);
    float most = 0.0f;
    bool finite = true;
    for (int64_t i = first; i < end; ++i) {
      most = std::max(most, std::fabs(product_.x[i]));
      finite &= std::isfinite(product_.x[i]);
    }
    const float scale = finite && most > 0.0f ? 32767.0f / most : 0.0f;
    scales_[b] = finite ? most / 32767.0f : NAN;
    int16_t* to = reinterpret_cast<int16_t*>(static_cast<float*>(x_));
    for (int64_t word = b * kWords; word < std::min((b + 1) * kWords, words_); ++word)
      for (int64_t i = 0; i < 4; ++i) {
        const int64_t column = 4 * word + i;
        const float x = column < end && scale > 0.0f ? product_.x[column] * scale : 0.0f;
        to[4 * word + (i % 2) * 2 + i / 2] = static_cast<int16_t>(std::lrintf(x));
      }
  }

  const Product& product_;
  int64_t words_;
  Scratch x_, scales_;
};

#else

struct ByteWeights {
  static constexpr int kColumns = 4;
  STEPSCAN_INLINE Vec part(Words w, int i) {
    return __builtin_convertvector((IntVec)(w << (24 - 8 * i)) >> 24, Vec);  // keeps the sign
  }
};
using ByteProduct = FloatProduct<ByteWeights>;

#endif

template <typename Kind>
void multiply_part(const Product& product, int64_t part, int64_t parts) {
  const auto [first, end] = part_of((product.rows + kPanel - 1) / kPanel, part, parts);
  const Kind kind(product);
  const int64_t quarter = (end - first) / 4;
  for (int64_t i = 0; i < quarter; ++i) kind.template run<4>({first + i, quarter});
  const int64_t rest = first + 4 * quarter;
  if (end - rest == 3) kind.template run<3>({rest, 1});
  if (end - rest == 2) kind.template run<2>({rest, 1});
  if (end - rest == 1) kind.template run<1>({rest, 1});
}

inline void run_product(Tape tape, int64_t part, int64_t parts) {
  const int64_t format = tape.whole();
  Product product;
  product.rows = tape.whole();
  product.columns = tape.whole();
  product.weights = tape.address<const char>();
  product.scales = tape.address<const float>();
  product.x = tape.address<const float>();
  product.add = tape.address<const float>();
  product.y = tape.address<float>();
  if (format == 0) multiply_part<FloatProduct<FloatWeights>>(product, part, parts);
  if (format == 1) multiply_part<FloatProduct<HalfWeights>>(product, part, parts);
  if (format == 2) multiply_part<ByteProduct>(product, part, parts);
}

}  // namespace stepscan
