"""The shallow piecewise-linear RNN (shPLRNN, arXiv:2306.04406): a linear map plus one ReLU layer.

    z_t = A z_{t-1} + W1 relu(W2 z_{t-1} + h2) + h1 + C x_t       A diagonal, F = hidden_ratio E
    y = z, or W_o z where the latent width E is not the model width

Made to reconstruct dynamical systems from data: `cell()` gives each state's linear region and
Jacobian. Nothing bounds z: what is learned decides whether it stays finite. The generalised teacher
forcing that it is trained with there is no part of the mixer: see train/forcing.py.
First values as published: A the diagonal of a positive definite matrix of norm 1, W1 and W2 uniform
in +-1/sqrt(inputs), h1 = h2 = 0. C, of which the paper says nothing, as W2.
State: B x E floats, constant in T.   Cost: O(T E (D + F)), one token after another.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from stepscan.layers.normalized_matrix import normalized_positive_definite
from stepscan.mixers.base import MixerConfig
from stepscan.mixers.recurrent import Recurrent, inner_width
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.dynamics_cells import ShallowPLRNN


@dataclass(frozen=True, kw_only=True)
class PLRNNConfig(MixerConfig):
    """Config of the shallow piecewise-linear RNN."""

    name: ClassVar[str] = "plrnn"
    equation: ClassVar[str] = "z = A z + W1 relu(W2 z + h2) + h1 + C x_t"
    source: ClassVar[str] = "Hess et al. 2023, arXiv:2306.04406"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="nonlinear RNN",
        transition="nonlinear",
        gate="state",
        eigenvalues="any",
        ops=("cell_scan",),
    )

    expansion: float = 1.0
    """Width E of the latent state, as a multiple of the model width."""
    hidden_ratio: float = 2.0
    """Width F of the ReLU layer, as a multiple of E."""

    def build(self, width: int) -> "PLRNN":
        """Build the module for a model of this width."""
        inner = inner_width(self.name, width, self.expansion)
        hidden = round(inner * self.hidden_ratio)
        if hidden < 1:
            raise ValueError(
                f"plrnn: want a hidden_ratio that leaves a ReLU, got {self.hidden_ratio} of {inner}"
            )
        return PLRNN(width, inner, hidden)


class PLRNN(Recurrent):
    """See the module docstring."""

    def __init__(self, width: int, inner: int, hidden: int) -> None:
        super().__init__(width, inner)
        self.decay = nn.Parameter(torch.empty(inner))
        self.outer = nn.Parameter(torch.empty(inner, hidden))
        self.inner = nn.Parameter(torch.empty(hidden, inner))
        self.bias = nn.Parameter(torch.empty(inner))
        self.threshold = nn.Parameter(torch.empty(hidden))
        self.input_weight = nn.Parameter(torch.empty(inner, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values."""
        for p in (self.outer, self.inner, self.input_weight):
            nn.init.uniform_(p, -(p.shape[1] ** -0.5), p.shape[1] ** -0.5)
        for p in (self.bias, self.threshold):
            nn.init.zeros_(p)
        with torch.no_grad():
            self.decay.copy_(normalized_positive_definite(self.decay.shape[0]).diag())

    def cell(self) -> ShallowPLRNN:
        """The weights as a cell."""
        return ShallowPLRNN(
            self.decay, self.outer, self.inner, self.bias, self.threshold, self.input_weight
        )
