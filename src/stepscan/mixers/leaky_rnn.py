"""The leaky rate network with a time constant of its own for each unit, trained with the weights.

    h_t = a h_{t-1} + (1 - a) tanh(W x_t + R h_{t-1} + b),   a = exp(-1 / tau),   tau = exp(log_tau)
    y = h, or W_o h where the hidden width E is not the model width

Leaky integrator units (Jaeger et al. 2007) with adaptive time constants (Quax et al. 2020). That a
decays exactly, exp(-1 / tau) rather than 1 - 1 / tau, is ours: it is stable for any tau > 0. First
values, ours too: tau log-uniform from 1 to `longest` steps, W and R uniform in +-1/sqrt(E).
State: B x E floats, constant in T.   Cost: O(T E (D + E)), one token after another.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from stepscan.mixers.base import MixerConfig
from stepscan.mixers.recurrent import Recurrent, inner_width
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.dynamics_cells import Leaky


@dataclass(frozen=True, kw_only=True)
class LeakyRNNConfig(MixerConfig):
    """Config of the leaky rate network."""

    name: ClassVar[str] = "leaky_rnn"
    equation: ClassVar[str] = "h = a h + (1 - a) tanh(W x_t + R h + b);  a = exp(-1 / tau)"
    source: ClassVar[str] = "Quax et al. 2020, doi:10.1038/s41598-020-68169-x"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="nonlinear RNN",
        transition="nonlinear",
        gate="state",
        eigenvalues="any",
        ops=("cell_scan",),
    )

    expansion: float = 1.0
    """Width E of the hidden state, as a multiple of the model width."""
    longest: float = 100.0
    """Longest initial time constant, in steps."""

    def build(self, width: int) -> "LeakyRNN":
        """Build the module for a model of this width."""
        if not self.longest > 1:
            raise ValueError(f"leaky_rnn: want longest > 1 step, got {self.longest}")
        return LeakyRNN(self, width, inner_width(self.name, width, self.expansion))


class LeakyRNN(Recurrent):
    """See the module docstring."""

    def __init__(self, config: LeakyRNNConfig, width: int, inner: int) -> None:
        super().__init__(width, inner)
        self.config = config
        self.input_weight = nn.Parameter(torch.empty(inner, width))
        self.recurrent_weight = nn.Parameter(torch.empty(inner, inner))
        self.bias = nn.Parameter(torch.empty(inner))
        self.log_time = nn.Parameter(torch.empty(inner))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values."""
        bound = self.bias.shape[0] ** -0.5
        for p in (self.input_weight, self.recurrent_weight, self.bias):
            nn.init.uniform_(p, -bound, bound)
        nn.init.uniform_(self.log_time, 0, math.log(self.config.longest))

    def cell(self) -> Leaky:
        """The weights as a cell."""
        return Leaky(self.input_weight, self.recurrent_weight, self.bias, self.log_time)
