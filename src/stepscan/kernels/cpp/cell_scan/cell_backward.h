// Back through time. Layouts: see cell_scan.cpp.

#pragma once

#include "cell_equations.h"
#include "cell_share.h"

namespace stepscan {

template <typename Cell>
struct CellBackward {
  CellSizes size;
  const float *grad_y, *grad_last;  // null where the loss does not see them
  const float *y, *state, *saved;
  const uint8_t* resets;
  float *grad_u, *grad_product, *grad_state;

  CellBackward(CellSizes size, const float* grad_y, const float* grad_last, const float* y,
               const float* state, const float* saved, const uint8_t* resets, float* grad_u,
               float* grad_product, float* grad_state)
      : size(size), grad_y(grad_y), grad_last(grad_last), y(y), state(state), saved(saved),
        resets(resets), grad_u(grad_u), grad_product(grad_product), grad_state(grad_state) {}

  // After a step's derivative of all units, each thread takes R^T times it for its own units, and goes
  // on with their step before: one meeting per step.
  void run(const float* weight) {
    const int64_t units = size.units, columns = Cell::kGates * units;
    const Scratch weights(size.items() * columns * kLanes);
    pack(weight, {units * columns, 1, 0, columns}, weights, size.heads, columns, 1, units);
    const Scratch sent(2 * size.rows * size.heads * columns);
    const Scratch carried(Cell::kStates * size.rows * size.width());
    packed_ = weights, sent_ = sent, carried_ = carried;
    Barrier barrier;
    for_each_share(size, Cell::kGates, [&](const Share& share) {
      start(share);
      for (int64_t t = size.steps - 1; t >= 0; --t) {
        differentiate(share, t);
        barrier.wait(share.parties);
        propagate(share, t);
      }
      finish(share);
    });
  }

 private:
  const float* packed_ = nullptr;
  float* sent_ = nullptr;     // gradients of R h, in turn in one of two places
  float* carried_ = nullptr;  // gradients of the states, padded

  float* sent(int64_t t, int64_t row) const {
    return sent_ + (t % 2 * size.rows + row) * size.heads * Cell::kGates * size.units;
  }

  float* carried(int s, int64_t row) const { return carried_ + (s * size.rows + row) * size.width(); }

  int64_t of_state(int s, int64_t row, const Place& place) const {
    return ((s * size.rows + row) * size.heads + place.head) * size.units + place.first;
  }

  template <typename Body>
  void for_each_place(const Share& share, Body body) const {
    for (int64_t item = share.items.first; item < share.items.end; ++item)
      for (int64_t row = share.rows.first; row < share.rows.end; ++row) body(row, Place(size, item));
  }

  void start(const Share& share) const {
    for_each_place(share, [&](int64_t row, const Place& place) {
      for (int s = 0; s < Cell::kStates; ++s) {
        const Vec grad = grad_last ? load(grad_last + of_state(s, row, place), place.count) : Vec{};
        store(carried(s, row) + place.padded, grad);
      }
    });
  }

  void finish(const Share& share) const {
    for_each_place(share, [&](int64_t row, const Place& place) {
      for (int s = 0; s < Cell::kStates; ++s)
        store(grad_state + of_state(s, row, place), load(carried(s, row) + place.padded), place.count);
    });
  }

  void differentiate(const Share& share, int64_t t) const {
    for_each_place(share, [&](int64_t row, const Place& place) { differentiate(t, row, place); });
  }

  void differentiate(int64_t t, int64_t row, const Place& place) const {
    constexpr int G = Cell::kGates;
    const int64_t n = place.count, units = size.units, token = row * size.steps + t;
    const int64_t head = token * size.heads + place.head, at = head * units + place.first;
    const bool reset = resets && resets[token];

    Vec keep[Cell::kSaved + 1], past[Cell::kKept + 1], grads[Cell::kStates], to_u[G];
    for (int i = 0; i < Cell::kSaved; ++i)
      keep[i] = load(saved + (head * Cell::kSaved + i) * units + place.first, n);
    for (int s = 0; s <= Cell::kKept; ++s) past[s] = before(s, t, row, place, reset);
    for (int s = 0; s < Cell::kStates; ++s) grads[s] = load(carried(s, row) + place.padded);
    if (grad_y) grads[0] += load(grad_y + at, n);

    const Vec to_product = Cell::back(keep, past, load(y + at, n), grads, to_u);

    // Before a reset nothing is to be had, neither directly nor through R h, where h was zero.
    float* send = sent(t, row) + place.head * G * units + place.first;
    for (int g = 0; g < G; ++g) {
      const Vec grad = g == G - 1 ? to_product : to_u[g];
      store(send + g * units, reset ? Vec{} : grad, n);
      store(grad_u + (head * G + g) * units + place.first, to_u[g], n);
    }
    if (Cell::kResetsProduct) store(grad_product + at, to_product, n);
    for (int s = 0; s < Cell::kStates; ++s)
      store(carried(s, row) + place.padded, reset ? Vec{} : grads[s]);
  }

  void look_ahead(int64_t t, int64_t row, const Place& place) const {
    const int64_t head = (row * size.steps + t) * size.heads + place.head;
    if (grad_y) expect(grad_y + head * size.units + place.first);
    expect(y + head * size.units + place.first);
    for (int i = 0; i < Cell::kSaved; ++i)
      expect(saved + (head * Cell::kSaved + i) * size.units + place.first);
    for (int g = 0; g < Cell::kGates; ++g)
      expect(grad_u + (head * Cell::kGates + g) * size.units + place.first);
  }

  // State s before step t, of those that are kept.
  Vec before(int s, int64_t t, int64_t row, const Place& place, bool reset) const {
    if (reset) return splat(Cell::fresh(s));
    if (t == 0) return load(state + of_state(s, row, place), place.count);
    const int64_t head = (row * size.steps + t - 1) * size.heads + place.head;
    const float* from = s == 0 ? y + head * size.units : saved + (head * Cell::kSaved + s - 1) * size.units;
    return load(from + place.first, place.count);
  }

  void propagate(const Share& share, int64_t t) const {
    for_item_groups<4>(size, share.items, [&](auto together, int64_t item) {
      for_row_groups<most_rows(4)>(share.rows, [&](auto rows, int64_t row) {
        this->template block<rows, together>(t, row, item);
      });
    });
  }

  template <int Rows, int Together>
  void block(int64_t t, int64_t row, int64_t item) const {
    const int64_t inner = Cell::kGates * size.units;
    for (int i = 0; i < Rows && t > 0; ++i)
      for (int j = 0; j < Together; ++j) look_ahead(t - 1, row + i, Place(size, item + j));
    float* to = carried(0, row) + item * kLanes;
    Vec sums[Rows][Together];
    for (int i = 0; i < Rows; ++i)
      for (int j = 0; j < Together; ++j) sums[i][j] = load(to + i * size.width() + j * kLanes);
    accumulate<Rows, Together>(sums, sent(t, row) + Place(size, item).head * inner, size.heads * inner,
                               packed_ + item * inner * kLanes, inner * kLanes, kLanes, inner);
    for (int i = 0; i < Rows; ++i)
      for (int j = 0; j < Together; ++j) store(to + i * size.width() + j * kLanes, sums[i][j]);
  }
};

}  // namespace stepscan
