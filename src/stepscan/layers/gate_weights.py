"""The weights of LSTM and GRU cells, in torch's order of the gates.

Not `nn.LSTM` itself: `torch.compile` refuses a graph that touches one.
"""

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn


class GateWeights(nn.Module):
    """Weights and biases of one cell: maps from x and from h to all of its gates.

    Initial values as in `torch.nn.LSTM`: all uniform in +-1/sqrt(E).
    """

    def __init__(self, inputs: int, outputs: int, gates: int) -> None:
        super().__init__()
        self.input_weight = nn.Parameter(torch.empty(gates * outputs, inputs))
        self.recurrent_weight = nn.Parameter(torch.empty(gates * outputs, outputs))
        self.input_bias = nn.Parameter(torch.empty(gates * outputs))
        self.recurrent_bias = nn.Parameter(torch.empty(gates * outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values."""
        bound = self.recurrent_weight.shape[1] ** -0.5
        for p in self.parameters():
            nn.init.uniform_(p, -bound, bound)

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
