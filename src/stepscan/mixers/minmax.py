"""MinMax neurons (MinMax recurrent cascades, arXiv:2605.06384): memory that max and min select.

    r_t = W_r u_t + b_r;  s_t = W_s u_t + b_s
    x_t = max(min(r_t, x_{t-1}), s_t)                           size 1: per channel
    x_t[i] = max(max_j min(r_t[i, j], x_{t-1}[j]), s_t[i])      size N: a matrix per neuron
    y_t = W_o (x_t * sigmoid(W_g u_t))                          x_0 = 0

States never leave the range of the r and s seen so far, and the gradient along the path that was
selected is exactly one, however long it is. The neurons of size 1 are those of the published code;
the paper's algebra is that of matrices, which a neuron needs to permute its states (parity). The
layer's convolution over two tokens, its feed-forward part and its norms are left to the backbone.
A state that starts level comes to rest under equal tokens: to follow parity, let a token come first
that writes.
Initial values: those of a linear map, but 1 for b_s, since at s < 0 < r a state would stay 0; how a
matrix starts is not published: large on its diagonal (b_r = 1), so that states are kept at first,
and b_s = -1/2, so that few tokens write (with 1 all do, and nothing is kept).
State: B x E floats, constant in T.   Cost: O(T E N).
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.semiring_matrix_scan import semiring_matrix_scan
from stepscan.ops.semiring_scan import semiring_scan


@dataclass(frozen=True, kw_only=True)
class MinMaxConfig(MixerConfig):
    """Config of MinMax neurons."""

    name: ClassVar[str] = "minmax"
    equation: ClassVar[str] = "x = max(min(r_t, x), s_t);  y = W (x * sigmoid(g_t))"
    source: ClassVar[str] = "Ronca 2026, arXiv:2605.06384"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="gated RNN",
        transition="nonlinear",
        gate="state",
        eigenvalues="[0, 1]",
        ops=("semiring_scan",),
    )

    expansion: float = 1.0
    """Numbers E in all neurons together, as a multiple of the model width."""
    size: int = 1
    """Numbers N in a neuron; must divide E. Above 1 its transitions are N x N matrices."""
    gate: bool = True
    """Gate the states by the input before they are mapped back."""

    def build(self, width: int) -> "MinMax":
        """Build the module for a model of this width."""
        inner = round(width * self.expansion)
        if self.size < 1 or inner < 1 or inner % self.size:
            raise ValueError(
                f"minmax: size={self.size} must divide the width of the states, {inner}; "
                "change size or expansion"
            )
        return MinMax(self, width, inner)


class MinMaxState(NamedTuple):
    """What `MinMax` carries from one stretch to the next."""

    hidden: Float[Tensor, "B E"]


class MinMax(Mixer[MinMaxState]):
    """See the module docstring."""

    def __init__(self, config: MinMaxConfig, width: int, inner: int) -> None:
        super().__init__()
        self.config = config
        self.inner = inner
        self.upper = Linear(width, inner * config.size)
        self.lower = Linear(width, inner)
        self.gate = Linear(width, inner, bias=False) if config.gate else None
        self.out = Linear(inner, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values of the biases."""
        diagonal = torch.eye(self.config.size).expand(self.inner // self.config.size, -1, -1)
        with torch.no_grad():
            self.upper.bias.zero_()
            if self.config.size > 1:
                self.upper.bias.copy_(diagonal.flatten())
            self.lower.bias.fill_(1.0 if self.config.size == 1 else -0.5)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> MinMaxState:
        """All states 0."""
        weight = self.out.weight
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        return MinMaxState(weight.new_zeros((batch, self.inner), device=device, dtype=dtype))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: MinMaxState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], MinMaxState]:
        """Mix along T."""
        hidden = None if state is None else state.hidden
        r, s, size = self.upper(x), self.lower(x), self.config.size
        options = {"semiring": "min_max", "initial": 0.0, "resets": resets}
        if size == 1:
            h, hidden = semiring_scan(r, s, **options, state=hidden)
        else:
            neurons = (-1, size)
            h, hidden = semiring_matrix_scan(
                r.unflatten(-1, (-1, size, size)),
                s.unflatten(-1, neurons),
                **options,
                state=None if hidden is None else hidden.unflatten(-1, neurons),
            )
            h, hidden = h.flatten(2), hidden.flatten(1)
        h = h if self.gate is None else h * torch.sigmoid(self.gate(x))
        return self.out(h), MinMaxState(hidden)
