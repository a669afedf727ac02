"""Mamba (arXiv:2312.00752): a diagonal state space whose step, input and output maps see the token.

    x_t, z_t = W_in u_t;  x_t = silu(conv(x)_t);  d_t, B_t, C_t = W_x x_t
    h_t = exp(dt_t A) * h_{t-1} + dt_t B_t x_t      dt_t = softplus(W_dt d_t + b),  A = -exp(A_log)
    y_t = W_out ((h_t C_t + D x_t) * silu(z_t))

As published, with its initial values: A_n = -n, D = 1, dt log-uniform in (1e-3, 1e-1). Options are
biases of the maps, and norms of d, B and C by their root mean square (FalconMamba, 2410.05355).
State: B x E x N floats and the window's last inputs, constant in T.   Cost: O(T E N).
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.convolution import ShortConv
from stepscan.layers.projection import Linear
from stepscan.layers.step_size import fill_step_bias
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.selective_scan import selective_scan


@dataclass(frozen=True, kw_only=True)
class MambaConfig(MixerConfig):
    """Config of Mamba."""

    name: ClassVar[str] = "mamba"
    equation: ClassVar[str] = "h = exp(dt_t A) h + dt_t B_t x_t;  y = C_t h + D x_t"
    source: ClassVar[str] = "Gu and Dao 2023, arXiv:2312.00752"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="state space",
        transition="diagonal",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("selective_scan", "short_conv"),
    )

    expansion: float = 2.0
    """Inner width E, as a multiple of the model width."""
    states: int = 16
    """Numbers N in the state of each inner channel."""
    window: int = 4
    """Tokens seen by the convolution."""
    step_rank: int | None = None
    """Rank of the map to the step sizes; None: a sixteenth of the width, rounded up."""
    bias: bool = False
    """Add biases to the maps in and out."""
    conv_bias: bool = True
    """Add a bias to the convolution."""
    selection_norm: float | None = None
    """RMS-norm d, B and C, without weights and with this added to the mean square; None: not."""

    def build(self, width: int) -> "Mamba":
        """Build the module for a model of this width."""
        inner = round(width * self.expansion)
        rank = math.ceil(width / 16) if self.step_rank is None else self.step_rank
        if min(inner, self.states, self.window, rank) < 1:
            raise ValueError(
                f"mamba: want at least 1 of each, got inner width {inner}, states={self.states}, "
                f"window={self.window}, step_rank={rank}"
            )
        return Mamba(self, width, inner, rank)


class MambaState(NamedTuple):
    """What `Mamba` carries from one stretch to the next."""

    memory: Float[Tensor, "B E N"]
    window: Float[Tensor, "B W-1 E"]


class Mamba(Mixer[MambaState]):
    """See the module docstring."""

    no_decay = ("A_log", "D", "step_bias")

    def __init__(self, config: MambaConfig, width: int, inner: int, rank: int) -> None:
        super().__init__()
        self.config = config
        self.sizes = (rank, config.states, config.states)
        self.inputs = Linear(width, 2 * inner, bias=config.bias)
        self.conv = ShortConv(inner, config.window, bias=config.conv_bias)
        self.selection = Linear(inner, sum(self.sizes), bias=False)
        self.step = Linear(rank, inner, bias=False)
        self.step_bias = nn.Parameter(torch.empty(inner))
        self.A_log = nn.Parameter(torch.empty(inner, config.states))
        self.D = nn.Parameter(torch.empty(inner))
        self.out = Linear(inner, width, bias=config.bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values of the state space."""
        bound = self.sizes[0] ** -0.5
        nn.init.uniform_(self.step.weight, -bound, bound)
        fill_step_bias(self.step_bias)
        nn.init.ones_(self.D)
        with torch.no_grad():
            self.A_log.copy_(torch.arange(1, self.config.states + 1).log().expand_as(self.A_log))

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> MambaState:
        """Empty memory, no inputs yet."""
        window = self.conv.init_state(batch, device=device, dtype=dtype)
        return MambaState(window.new_zeros(batch, *self.A_log.shape), window)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: MambaState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], MambaState]:
        """Mix along T."""
        memory, window = (None, None) if state is None else state
        u, z = self.inputs(x).chunk(2, -1)
        u, window = self.conv(u, window, resets)
        step, B, C = self.selection(u).split(self.sizes, -1)
        if (eps := self.config.selection_norm) is not None:
            step, B, C = (F.rms_norm(part, part.shape[-1:], eps=eps) for part in (step, B, C))
        wide = torch.promote_types(x.dtype, torch.float32)
        A, D, step_bias = (w.to(wide) for w in (self.A_log, self.D, self.step_bias))
        weights = {"A": -A.exp(), "D": D, "dt_bias": step_bias}
        y, memory = selective_scan(
            u, self.step(step), B=B, C=C, z=z, **weights, state=memory, resets=resets
        )
        return self.out(y), MambaState(memory, window)
