// How the steps of a nonlinear cell are split over threads.
//
// Work is split into items, one vector of units of one head each. A step of an item reads the whole
// hidden state of its head, so threads meet after every step, unless each has whole heads or whole
// rows. What crosses from thread to thread is written in turn into one of two buffers: a fast thread
// may be one step ahead, never two. The sums over one unit are the same whoever computes them.

#pragma once

#include "cell_product.h"
#include "parallel.h"
#include "team.h"
#include "vector.h"

namespace stepscan {

struct CellSizes {
  int64_t rows, steps, heads, units;

  int64_t vectors() const { return padded(units) / kLanes; }  // of one head
  int64_t items() const { return heads * vectors(); }
  int64_t width() const { return heads * padded(units); }  // floats of a padded row
};

// Some units of one head, those of one item.
struct Place {
  int64_t head, first, count;  // the units first .. first + count - 1
  int64_t padded;              // where they begin in a padded row

  Place(const CellSizes& size, int64_t item)
      : head(item / size.vectors()),
        first(item % size.vectors() * kLanes),
        count(std::min<int64_t>(kLanes, size.units - first)),
        padded(item * kLanes) {}
};

enum class Split { kNone, kHeads, kRows, kUnits };

constexpr int64_t kWorthBarrier = 1 << 15;  // multiply-adds per step below which waiting costs more
constexpr int64_t kOwnCopy = 1 << 17;       // floats of weight that every thread may hold in its cache

inline Split split_for(const CellSizes& size, int64_t gates, int64_t threads) {
  const int64_t weight = size.heads * gates * size.units * size.units;
  if (threads == 1 || weight * size.rows * size.steps <= kWorthThreads) return Split::kNone;
  if (size.heads % threads == 0) return Split::kHeads;
  if (size.rows >= 4 * threads && weight <= kOwnCopy) return Split::kRows;
  return weight * size.rows > kWorthBarrier ? Split::kUnits : Split::kNone;
}

// What one thread does in every step.
struct Share {
  Range rows, items;
  int64_t parties;  // how many wait for each other after a step

  Share(const CellSizes& size, Split split, int64_t thread, int64_t threads)
      : rows(part_of(size.rows, split == Split::kRows ? thread : 0, split == Split::kRows ? threads : 1)),
        items(split == Split::kRows ? Range{0, size.items()} : part_of(size.items(), thread, threads)),
        // OpenMP may have given fewer threads than asked for: heads may then be cut after all
        parties(split == Split::kRows || size.heads % threads == 0 ? 1 : threads) {}
};

// block(rows as a constant, first row) for even groups of at most Most rows.
template <int Most, typename Block>
STEPSCAN_INLINE void for_row_groups(Range rows, Block block) {
  const int64_t n = rows.end - rows.first, groups = (n + Most - 1) / Most;
  for (int64_t i = 0; i < groups; ++i) {
    const Range group = part_of(n, i, groups);
    with_constant<Most>(group.end - group.first, [&](auto count) { block(count, rows.first + group.first); });
  }
}

// block(items as a constant, first item), Together of one head where there are as many, or else one.
template <int Together, typename Block>
STEPSCAN_INLINE void for_item_groups(const CellSizes& size, Range items, Block block) {
  for (int64_t item = items.first; item < items.end;) {
    const int64_t end = std::min(items.end, (item / size.vectors() + 1) * size.vectors());
    if (item + Together <= end) {
      block(std::integral_constant<int, Together>{}, item);
      item += Together;
    } else {
      block(std::integral_constant<int, 1>{}, item++);
    }
  }
}

template <typename Body>
void for_each_share(const CellSizes& size, int64_t gates, Body body) {
  const int64_t most = omp_get_max_threads();
  const Split split = split_for(size, gates, most);
  as_team(split == Split::kNone ? 1 : most, [&](int64_t thread, int64_t threads) {
    body(Share(size, split, thread, threads));
  });
}

}  // namespace stepscan
