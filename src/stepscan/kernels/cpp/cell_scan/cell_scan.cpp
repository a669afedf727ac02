// A nonlinear cell over the tokens, and its back-propagation through time. Contiguous float32:
//
//   u        [rows, steps, heads, gates, units]   what the input alone decides
//   weight   [heads, units, gates, units]         from the hidden state to the gates
//   bias     [heads, gates, units] or null        added to the product before a gate may multiply it
//   state    [states, rows, heads, units]         the hidden state first
//   y        [rows, steps, heads, units]
//   saved    [rows, steps, heads, saved, units]   of each token, since a nonlinear step cannot be taken
//                                                 again without all steps before it
//
// Where resets[row, t] is set, the fresh state comes before token t; null is no resets. The gradient of
// the weight is left to one large product of grad_u and the hidden states; `grad_product`, of the
// units, is the last gate's gradient inside the product, for cells where it differs from grad_u's.

#include "cell_backward.h"
#include "cell_forward.h"

namespace {

using namespace stepscan;

// with(cell) for the cell of this number; the same list is in cell_scan.py.
template <typename With>
void for_kind(int64_t kind, With with) {
  switch (kind) {
    case 0: return with(Elman<Tanh>{});
    case 1: return with(Elman<Relu>{});
    case 2: return with(Elman<Identity>{});
    case 3: return with(Gru{});
    case 4: return with(Lstm{});
    case 5: return with(Slstm{});
  }
}

}  // namespace

STEPSCAN_API void cell_scan(const float* u, const float* weight, const float* bias, const float* state,
                            const uint8_t* resets, int64_t kind, int64_t save, float* y, float* last,
                            float* saved, int64_t rows, int64_t steps, int64_t heads, int64_t units) {
  for_kind(kind, [=](auto cell) {
    CellForward<decltype(cell)> forward({rows, steps, heads, units}, u, bias, state, resets, y, last,
                                        save ? saved : nullptr);
    forward.run(weight);
  });
}

STEPSCAN_API void cell_scan_backward(const float* grad_y, const float* grad_last, const float* weight,
                                     const float* state, const uint8_t* resets, const float* y,
                                     const float* saved, int64_t kind, float* grad_u,
                                     float* grad_product, float* grad_state, int64_t rows,
                                     int64_t steps, int64_t heads, int64_t units) {
  for_kind(kind, [=](auto cell) {
    CellBackward<decltype(cell)> backward({rows, steps, heads, units}, grad_y, grad_last, y, state,
                                          saved, resets, grad_u, grad_product, grad_state);
    backward.run(weight);
  });
}
