"""The weights of LSTM and GRU cells, in torch's order of the gates.

Not `nn.LSTM` itself: `torch.compile` refuses a graph that touches one.
"""

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn


class GateWeights(nn.Module):
    """Weights and biases of one cell: maps from x and from h to all of its gates.

    Initial values as in `torch.nn.LSTM`: all uniform in +-1/sqrt(E), R in +-1/sqrt(its inputs).
    With several heads, R is a block for each of them, and all weights are head by head.
    """

    def __init__(self, inputs: int, outputs: int, gates: int, heads: int = 1) -> None:
        super().__init__()
        size = outputs // heads
        shape = (gates * size,) if heads == 1 else (heads, gates * size)
        self.outputs = outputs
        self.input_weight = nn.Parameter(torch.empty(*shape, inputs))
        self.recurrent_weight = nn.Parameter(torch.empty(*shape, size))
        self.input_bias = nn.Parameter(torch.empty(shape))
        self.recurrent_bias = nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values."""
        for p in self.parameters():
            inputs = p.shape[-1] if p is self.recurrent_weight else self.outputs
            nn.init.uniform_(p, -(inputs**-0.5), inputs**-0.5)

    def forward(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What a cell of `ops/cells.py` is made of."""
        return self.input_weight, self.recurrent_weight, self.input_bias, self.recurrent_bias


def copy_torch_weights(
    cells: Sequence[tuple[Tensor, ...]], source: nn.RNNBase, *, mode: str
) -> None:
    """Copy what a torch module has learned; without biases there, they become zero here.

    Raises `ValueError` unless `source` is a one-directional `mode` ("LSTM", "GRU") of these sizes.
    """
    input_weight, recurrent_weight, *_ = cells[0]
    if recurrent_weight.ndim > 2:
        raise ValueError(f"torch's {mode} has no heads: want heads=1, got {len(recurrent_weight)}")
    want = mode, input_weight.shape[1], recurrent_weight.shape[1], len(cells)
    got = source.mode, source.input_size, source.hidden_size, source.num_layers
    plain = not source.bidirectional and not source.proj_size
    if want != got or not plain:
        extra = "" if plain else ", with two directions or a projection (want neither)"
        raise ValueError(
            f"want a torch module with mode, input_size, hidden_size, num_layers = {want}, "
            f"got {got}{extra}"
        )
    with torch.no_grad():
        for cell, given in zip(cells, source.all_weights, strict=True):
            for mine, theirs in zip_longest(cell, given):
                mine.zero_() if theirs is None else mine.copy_(theirs)


class DiagonalGates(nn.Module):
    """Weights of a cell of `ops/diagonal_cells.py`: maps from x head by head, from h per channel.

    Initial values of ParaRNN's code: weights normal with variance 4 / (5 fan-in), the bias of the
    first gate falling from 0 to -1 along the channels, all other biases 0. As fan-in of what has
    one input per channel, too, the inputs of a head are taken here.
    """

    def __init__(self, width: int, heads: int, *, gates: int, peepholes: int = 0) -> None:
        super().__init__()
        size = width // heads
        self.input_weight = nn.Parameter(torch.empty(heads, size, gates, size))
        self.recurrent_weight = nn.Parameter(torch.empty(gates, width))
        self.peephole = nn.Parameter(torch.empty(peepholes, width)) if peepholes else None
        self.bias = nn.Parameter(torch.empty(gates, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values."""
        std = (4 / (5 * self.input_weight.shape[1])) ** 0.5
        for p in (self.input_weight, self.recurrent_weight, self.peephole):
            if p is not None:
                nn.init.normal_(p, std=std)
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.bias[0] = -torch.linspace(0, 1, self.bias.shape[1])

    def forward(self) -> tuple[Tensor, ...]:
        """What a cell is made of."""
        given = (self.input_weight, self.recurrent_weight, self.peephole, self.bias)
        return tuple(p for p in given if p is not None)
