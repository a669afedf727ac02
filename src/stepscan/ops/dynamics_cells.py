"""Cells made to be read as dynamical systems.

    Leaky          h = a h + (1 - a) tanh(W x + R h + b);  a = exp(-1 / tau) per unit;  y = h
    ShallowPLRNN   z = A z + W1 relu(W2 z + h2) + h1 + C x;  A diagonal;  y = z
    AlmostLinear   z = A z + W phi(z) + h1 + C x;  phi = relu for the last P units, else nothing

Leaky is a rate network that relaxes towards its drive with the time constant tau, exact for a drive
that stands still over a step: Jaeger et al. 2007 (doi:10.1016/j.neunet.2007.04.016) with one tau
per unit, trained as in Quax et al. 2020 (doi:10.1038/s41598-020-68169-x).
The piecewise-linear ones are linear wherever the signs of their ReLU inputs stay the same, so
their fixed points, cycles and Jacobians are algebra: shallow PLRNN of Hess et al. 2023
(arXiv:2306.04406), almost-linear RNN of Brenner et al. 2024 (arXiv:2410.14240), which has at most
2^P linear regions.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from stepscan.ops.cells import HiddenState
from stepscan.ops.projection import project


class Leaky(NamedTuple):
    """See the module docstring."""

    input_weight: Float[Tensor, "E D"]
    recurrent_weight: Float[Tensor, "E E"]
    bias: Float[Tensor, "E"]
    log_time: Float[Tensor, "E"]
    """log tau, in steps."""

    @property
    def sizes(self) -> tuple[int, int]:
        """Features of x, and of y."""
        return self.input_weight.shape[1], self.bias.shape[0]

    def init(self, batch: int) -> HiddenState:
        """Zero."""
        return HiddenState(self.bias.new_zeros(batch, self.sizes[1]))

    def project(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T E"]:
        """W x + b."""
        return project(x, self.input_weight, self.bias)

    def step(
        self, u: Float[Tensor, "B E"], state: HiddenState
    ) -> tuple[Float[Tensor, "B E"], HiddenState]:
        """One token."""
        drive = torch.addmm(u, state.hidden, self.recurrent_weight.mT).tanh()
        left = torch.expm1(-(-self.log_time).exp())  # a - 1, to all digits where tau is long
        hidden = state.hidden + left * (state.hidden - drive)
        return hidden, HiddenState(hidden)


class ShallowPLRNN(NamedTuple):
    """See the module docstring."""

    decay: Float[Tensor, "E"]
    """A."""
    outer: Float[Tensor, "E F"]
    """W1."""
    inner: Float[Tensor, "F E"]
    """W2."""
    bias: Float[Tensor, "E"]
    """h1."""
    threshold: Float[Tensor, "F"]
    """h2."""
    input_weight: Float[Tensor, "E D"]
    """C."""

    @property
    def sizes(self) -> tuple[int, int]:
        """Features of x, and of y."""
        return self.input_weight.shape[1], self.decay.shape[0]

    def init(self, batch: int) -> HiddenState:
        """Zero."""
        return HiddenState(self.decay.new_zeros(batch, self.sizes[1]))

    def project(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T E"]:
        """C x + h1."""
        return project(x, self.input_weight, self.bias)

    def regions(self, z: Float[Tensor, "*n E"]) -> Bool[Tensor, "*n F"]:
        """Which ReLU are open: the name of the linear region that z lies in."""
        return project(z, self.inner, self.threshold) > 0

    def jacobian(self, z: Float[Tensor, "*n E"]) -> Float[Tensor, "*n E E"]:
        """That of a step from z: diag(A) + W1 diag(open) W2."""
        opened = self.regions(z).to(z.dtype)
        return self.decay.diag() + (self.outer * opened[..., None, :]) @ self.inner

    def step(
        self, u: Float[Tensor, "B E"], state: HiddenState
    ) -> tuple[Float[Tensor, "B E"], HiddenState]:
        """One token."""
        z = state.hidden
        folded = torch.addmm(self.threshold, z, self.inner.mT).relu()
        z = torch.addmm(u + self.decay * z, folded, self.outer.mT)
        return z, HiddenState(z)


class AlmostLinear(NamedTuple):
    """See the module docstring; where P is the number of units, a piecewise-linear RNN."""

    decay: Float[Tensor, "E"]
    """A."""
    recurrent_weight: Float[Tensor, "E E"]
    """W."""
    bias: Float[Tensor, "E"]
    """h1."""
    input_weight: Float[Tensor, "E D"]
    """C."""
    relu_units: int
    """P."""

    @property
    def sizes(self) -> tuple[int, int]:
        """Features of x, and of y."""
        return self.input_weight.shape[1], self.decay.shape[0]

    def init(self, batch: int) -> HiddenState:
        """Zero."""
        return HiddenState(self.decay.new_zeros(batch, self.sizes[1]))

    def project(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T E"]:
        """C x + h1."""
        return project(x, self.input_weight, self.bias)

    def regions(self, z: Float[Tensor, "*n E"]) -> Bool[Tensor, "*n P"]:
        """Which ReLU are open: the symbol of z."""
        return z[..., self.sizes[1] - self.relu_units :] > 0

    def jacobian(self, z: Float[Tensor, "*n E"]) -> Float[Tensor, "*n E E"]:
        """That of a step from z: diag(A) + W diag(open)."""
        linear = torch.ones_like(z[..., self.relu_units :])
        opened = torch.cat([linear, self.regions(z).to(z.dtype)], -1)
        return self.decay.diag() + self.recurrent_weight * opened[..., None, :]

    def step(
        self, u: Float[Tensor, "B E"], state: HiddenState
    ) -> tuple[Float[Tensor, "B E"], HiddenState]:
        """One token."""
        z = state.hidden
        linear, folded = z.split((self.sizes[1] - self.relu_units, self.relu_units), 1)
        seen = torch.cat([linear, folded.relu()], 1)
        z = torch.addmm(u + self.decay * z, seen, self.recurrent_weight.mT)
        return z, HiddenState(z)
