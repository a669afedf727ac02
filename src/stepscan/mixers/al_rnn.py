"""The almost-linear RNN (AL-RNN, arXiv:2410.14240): a linear recurrence with a few ReLU units.

    z_t = A z_{t-1} + W phi(z_{t-1}) + h1 + C x_t         A diagonal; phi: relu for the last P
    y = z, or W_o z where the latent width E is not the model width

Each pattern of open ReLU is a symbol: at most 2^P linear maps make up the system, which can be read
as a graph over them. With P = 0 it is linear. Nothing bounds z, as in `plrnn`.
First values: A and W the diagonal and the rest of a positive definite matrix of norm 1, h1 = 0, as
for piecewise-linear RNNs before it; the paper names none. C uniform in +-1/sqrt(D).
State: B x E floats, constant in T.   Cost: O(T E (D + E)), one token after another.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from stepscan.layers.normalized_matrix import normalized_positive_definite
from stepscan.mixers.base import MixerConfig
from stepscan.mixers.recurrent import Recurrent, inner_width
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.dynamics_cells import AlmostLinear


@dataclass(frozen=True, kw_only=True)
class ALRNNConfig(MixerConfig):
    """Config of the almost-linear RNN."""

    name: ClassVar[str] = "al_rnn"
    equation: ClassVar[str] = "z = A z + W phi(z) + h + C x_t;  phi = relu for P units"
    source: ClassVar[str] = "Brenner et al. 2024, arXiv:2410.14240"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="nonlinear RNN",
        transition="nonlinear",
        gate="state",
        eigenvalues="any",
        ops=("cell_scan",),
    )

    expansion: float = 1.0
    """Width E of the latent state, as a multiple of the model width."""
    relu_units: int = 4
    """Number P of units that are not linear."""

    def build(self, width: int) -> "ALRNN":
        """Build the module for a model of this width."""
        inner = inner_width(self.name, width, self.expansion)
        if not 0 <= self.relu_units <= inner:
            raise ValueError(f"al_rnn: want relu_units from 0 to {inner}, got {self.relu_units}")
        return ALRNN(width, inner, self.relu_units)


class ALRNN(Recurrent):
    """See the module docstring."""

    def __init__(self, width: int, inner: int, relu_units: int) -> None:
        super().__init__(width, inner)
        self.relu_units = relu_units
        self.decay = nn.Parameter(torch.empty(inner))
        self.recurrent_weight = nn.Parameter(torch.empty(inner, inner))
        self.bias = nn.Parameter(torch.empty(inner))
        self.input_weight = nn.Parameter(torch.empty(inner, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values."""
        bound = self.input_weight.shape[1] ** -0.5
        nn.init.uniform_(self.input_weight, -bound, bound)
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            matrix = normalized_positive_definite(self.decay.shape[0])
            self.decay.copy_(matrix.diag())
            self.recurrent_weight.copy_(matrix - matrix.diag().diag())

    def cell(self) -> AlmostLinear:
        """The weights as a cell."""
        weights = self.decay, self.recurrent_weight, self.bias, self.input_weight
        return AlmostLinear(*weights, self.relu_units)
