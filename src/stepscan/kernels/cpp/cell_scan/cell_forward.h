// The loop of a nonlinear cell over the tokens. Layouts: see cell_scan.cpp.

#pragma once

#include "cell_equations.h"
#include "cell_share.h"

namespace stepscan {

template <typename Cell>
struct CellForward {
  CellSizes size;
  const float *u, *bias, *state;
  const uint8_t* resets;
  float *y, *last, *saved;  // saved is null where no gradient is wanted

  CellForward(CellSizes size, const float* u, const float* bias, const float* state,
              const uint8_t* resets, float* y, float* last, float* saved)
      : size(size), u(u), bias(bias), state(state), resets(resets), y(y), last(last), saved(saved) {}

  // Columns of one product: the gates of a vector of units, or several vectors of a single gate.
  static constexpr int kTogether = Cell::kGates == 1 ? 4 : 1;
  static constexpr int kRows = most_rows(kTogether * Cell::kGates);

  void run(const float* weight) {
    const int64_t units = size.units, columns = Cell::kGates * units;
    const Scratch weights(size.items() * columns * kLanes);
    pack(weight, {units * columns, columns, units, 1}, weights, size.heads, units, Cell::kGates, units);
    const Scratch states((Cell::kStates + 1) * size.rows * size.width());
    packed_ = weights, states_ = states;
    Barrier barrier;
    for_each_share(size, Cell::kGates, [&](const Share& share) {
      start(share);
      for (int64_t t = 0; t < size.steps; ++t) {
        barrier.wait(share.parties);
        step(share, t);
      }
    });
  }

 private:
  const float* packed_ = nullptr;
  float* states_ = nullptr;

  // State s of a row as step t finds it, padded; hidden states in turn in one of two places.
  float* before(int s, int64_t t, int64_t row) const {
    const int64_t slot = s == 0 ? t % 2 : s + 1;
    return states_ + (slot * size.rows + row) * size.width();
  }

  // A reset puts the fresh state in the place of what comes before its token.
  void hand_on(const Vec* after, int64_t t, int64_t row, const Place& place) const {
    const bool reset = resets && resets[row * size.steps + t];
    for (int s = 0; s < Cell::kStates; ++s)
      store(before(s, t, row) + place.padded, reset ? splat(Cell::fresh(s)) : after[s]);
  }

  void start(const Share& share) const {
    for (int64_t item = share.items.first; item < share.items.end; ++item) {
      const Place place(size, item);
      for (int64_t row = share.rows.first; row < share.rows.end; ++row) {
        Vec first[Cell::kStates];
        for (int s = 0; s < Cell::kStates; ++s)
          first[s] = load(state + of_state(s, row, place), place.count);
        hand_on(first, 0, row, place);
      }
    }
  }

  int64_t of_state(int s, int64_t row, const Place& place) const {
    return ((s * size.rows + row) * size.heads + place.head) * size.units + place.first;
  }

  void step(const Share& share, int64_t t) const {
    for_item_groups<kTogether>(size, share.items, [&](auto together, int64_t item) {
      for_row_groups<kRows>(share.rows, [&](auto rows, int64_t row) {
        this->template block<rows, together>(t, row, item);
      });
    });
  }

  template <int Rows, int Together>
  void block(int64_t t, int64_t row, int64_t item) const {
    constexpr int G = Cell::kGates;
    const int64_t inner = size.units;
    Vec past[Rows][Together * G];
    for (int j = 0; j < Together; ++j) {
      const Place place(size, item + j);
      for (int g = 0; g < G; ++g) {
        const float* of_gate = bias + (place.head * G + g) * size.units + place.first;
        const Vec constant = bias ? load(of_gate, place.count) : Vec{};
        for (int i = 0; i < Rows; ++i) past[i][j * G + g] = constant;
      }
    }
    for (int i = 0; i < Rows; ++i)
      for (int j = 0; j < Together; ++j) look_ahead(t, row + i, Place(size, item + j));
    const float* hidden = before(0, t, row) + Place(size, item).head * padded(size.units);
    accumulate<Rows, Together * G>(past, hidden, size.width(), packed_ + item * inner * G * kLanes,
                                   (G == 1 ? inner : 1) * kLanes, G * kLanes, inner);
    for (int i = 0; i < Rows; ++i)
      for (int j = 0; j < Together; ++j) finish(t, row + i, Place(size, item + j), past[i] + j * G);
  }

  void look_ahead(int64_t t, int64_t row, const Place& place) const {
    const int64_t head = (row * size.steps + t) * size.heads + place.head;
    for (int g = 0; g < Cell::kGates; ++g)
      expect(u + (head * Cell::kGates + g) * size.units + place.first);
    expect(y + head * size.units + place.first);
    if (saved)
      for (int i = 0; i < Cell::kSaved; ++i)
        expect(saved + (head * Cell::kSaved + i) * size.units + place.first);
  }

  void finish(int64_t t, int64_t row, const Place& place, const Vec* past) const {
    constexpr int G = Cell::kGates;
    const int64_t n = place.count, token = row * size.steps + t;
    const int64_t head = token * size.heads + place.head;
    Vec in[G], after[Cell::kStates], keep[Cell::kSaved + 1];
    for (int g = 0; g < G; ++g) in[g] = load(u + (head * G + g) * size.units + place.first, n);
    for (int s = 0; s < Cell::kStates; ++s) after[s] = load(before(s, t, row) + place.padded);
    Cell::step(in, past, after, keep);
    store(y + head * size.units + place.first, after[0], n);
    if (saved)
      for (int i = 0; i < Cell::kSaved; ++i)
        store(saved + (head * Cell::kSaved + i) * size.units + place.first, keep[i], n);
    if (t + 1 < size.steps) return hand_on(after, t + 1, row, place);
    for (int s = 0; s < Cell::kStates; ++s) store(last + of_state(s, row, place), after[s], n);
  }
};

}  // namespace stepscan
