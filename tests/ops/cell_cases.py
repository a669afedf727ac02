"""Small cells of every kind that is made of torch operations alone."""

import torch
from torch import nn

from stepscan.ops import cells, composed_cells, diagonal_cells, dynamics_cells

B, D, E = 3, 4, 6


def _torch_cell(kind, module):
    return lambda: kind(*(p.detach() for p in module(D, E).parameters()))


def _weights(*shapes, scale=0.4):
    return [scale * torch.randn(shape) for shape in shapes]


def _composed(gate, *, reset=False, output_gate=False, recur=True, depth=1):
    gates = E * len(composed_cells.parts(gate, reset=reset, output_gate=output_gate))
    W, b, R, b_r, rate = _weights((gates, D), (gates,), (depth, gates, E), (depth, gates), (E,))
    past = (R, b_r) if recur else (None, None)
    rate = rate if gate == "rate" else None
    return composed_cells.Composed(W, b, *past, rate, gate, reset, output_gate)


CELLS = {
    "elman": _torch_cell(cells.Elman, nn.RNN),
    "gru": _torch_cell(cells.GRU, nn.GRU),
    "lstm": _torch_cell(cells.LSTM, nn.LSTM),
    "para_gru": lambda: diagonal_cells.ParaGRU(*_weights((2, D // 2, 3, E // 2), (3, E), (3, E))),
    "para_lstm": lambda: diagonal_cells.ParaLSTM(
        *_weights((2, D // 2, 3, E // 2), (3, E), (2, E), (3, E))
    ),
    "leaky": lambda: dynamics_cells.Leaky(*_weights((E, D), (E, E), (E,)), 2 * torch.rand(E)),
    "plrnn": lambda: dynamics_cells.ShallowPLRNN(
        torch.rand(E) / 2, *_weights((E, 5), (5, E), (E,), (5,), (E, D), scale=0.2)
    ),
    "al_rnn": lambda: dynamics_cells.AlmostLinear(
        torch.rand(E) / 2, *_weights((E, E), (E,), (E, D), scale=0.2), 2
    ),
    "composed gru": lambda: _composed("coupled", reset=True),
    "composed lstm": lambda: _composed("separate", output_gate=True),
    "highway": lambda: _composed("coupled", depth=3),
    "rate": lambda: _composed("rate"),
    "light": lambda: _composed("coupled", recur=False),
}


def make(name, T=40, dtype=torch.float64):
    """A cell, its input, a state that it came to, and resets."""
    given = CELLS[name]()
    cell = type(given)(
        *(t.to(dtype).requires_grad_() if isinstance(t, torch.Tensor) else t for t in given)
    )
    x = torch.randn(B, T, D, dtype=dtype)
    state = cells.cell_scan(cell, x[:, :5], form="recurrent")[1]
    return cell, x, type(state)(*(t.detach() for t in state)), torch.rand(B, T) < 0.1
