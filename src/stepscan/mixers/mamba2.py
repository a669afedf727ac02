"""Mamba-2 (arXiv:2405.21060): Mamba with one decay per head, so that it is a linear attention.

    z_t, (x_t, B_t, C_t), d_t = W_in u_t;  x_t, B_t, C_t = silu(conv(x, B, C)_t)
    S_t = exp(dt_t A) S_{t-1} + dt_t B_t x_t^T        dt_t = softplus(d_t + b),  A = -exp(A_log)
    y_t = W_out RMSNorm((S_t^T C_t + D x_t) * silu(z_t))

B and C, the keys and queries, are shared by the heads of a group. As published, with its initial
values: A uniform in (-16, -1), D = 1, dt log-uniform in (1e-3, 1e-1). The options of
`layers/bounded_memory.py` keep the memory from overfilling.
State: B x H x N x P floats and the window's last inputs, constant in T.   Cost: O(T N P) per head.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.bounded_memory import Memory, MemoryBounds, bounded_attention, start
from stepscan.layers.convolution import ShortConv
from stepscan.layers.projection import Linear
from stepscan.layers.step_size import fill_step_bias
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy


@dataclass(frozen=True, kw_only=True)
class Mamba2Config(MemoryBounds, MixerConfig):
    """Config of Mamba-2."""

    name: ClassVar[str] = "mamba2"
    equation: ClassVar[str] = "S = exp(dt_t A) S + dt_t B_t x_t^T;  y = S^T C_t + D x_t"
    source: ClassVar[str] = "Dao and Gu 2024, arXiv:2405.21060"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="state space",
        transition="scalar",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("linear_attention", "short_conv"),
    )

    expansion: float = 2.0
    """Inner width E, as a multiple of the model width."""
    states: int = 128
    """Numbers N in the state of each inner channel: the size of a key."""
    heads: int | None = None
    """Number of heads H; None: one per 64 inner channels as published, and 4 at least."""
    groups: int = 1
    """Groups of heads that share B and C."""
    window: int = 4
    """Tokens seen by the convolution."""
    bias: bool = False
    """Add biases to the maps in and out."""
    conv_bias: bool = True
    """Add a bias to the convolution."""
    norm_eps: float = 1e-5
    """Added to the mean square in the output norm."""
    step_min: float = 0.0
    """Steps dt are raised to this."""
    step_max: float | None = None
    """Steps dt are cut to this; None: not."""

    def build(self, width: int) -> "Mamba2":
        """Build the module for a model of this width."""
        inner = round(width * self.expansion)
        heads = max(4, inner // 64) if self.heads is None else self.heads
        if min(heads, self.groups, self.states, self.window) < 1 or inner < heads:
            raise ValueError(
                f"mamba2: want at least 1 of each, got heads={heads}, groups={self.groups}, "
                f"states={self.states}, window={self.window}, inner width {inner}"
            )
        if not 0 <= self.step_min < (math.inf if self.step_max is None else self.step_max):
            raise ValueError(
                f"mamba2: want 0 <= step_min < step_max, got {self.step_min} and {self.step_max}"
            )
        if inner % heads or heads % self.groups:
            raise ValueError(
                f"mamba2: heads={heads} must divide the inner width {inner}, and "
                f"groups={self.groups} the heads"
            )
        return Mamba2(self, width, inner, heads)


class Mamba2State(NamedTuple):
    """What `Mamba2` carries from one stretch to the next."""

    memory: Memory
    window: Float[Tensor, "B W-1 E"]


class Mamba2(Mixer[Mamba2State]):
    """See the module docstring."""

    no_decay = ("A_log", "D", "step_bias")

    def __init__(self, config: Mamba2Config, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.config = config
        keys = config.groups * config.states
        self.sizes = (inner, inner + 2 * keys, heads)
        self.parts = (inner, keys, keys)
        self.inputs = Linear(width, sum(self.sizes), bias=config.bias)
        self.conv = ShortConv(sum(self.parts), config.window, bias=config.conv_bias)
        self.step_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.norm = nn.Parameter(torch.empty(inner))
        self.out = Linear(inner, width, bias=config.bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values of the state space and the norm."""
        fill_step_bias(self.step_bias)
        nn.init.ones_(self.D)
        nn.init.ones_(self.norm)
        with torch.no_grad():
            self.A_log.uniform_(1, 16).log_()

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Mamba2State:
        """Empty memory, no inputs yet."""
        window = self.conv.init_state(batch, device=device, dtype=dtype)
        heads = len(self.D)
        shape = batch, heads, self.config.states, len(self.norm) // heads
        memory = start(self.config, window.new_zeros(shape), groups=self.config.groups, decays=1)
        return Mamba2State(memory, window)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: Mamba2State | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], Mamba2State]:
        """Mix along T."""
        memory, window = (None, None) if state is None else state
        z, inputs, step = self.inputs(x).split(self.sizes, -1)
        inputs, window = self.conv(inputs, window, resets)
        u, B, C = inputs.split(self.parts, -1)
        groups, heads = self.config.groups, len(self.D)
        u, B, C = u.unflatten(2, (heads, -1)), *(p.unflatten(2, (groups, -1)) for p in (B, C))
        wide = torch.promote_types(x.dtype, torch.float32)
        A_log, D, bias = (w.to(wide) for w in (self.A_log, self.D, self.step_bias))
        dt = F.softplus(step.to(wide) + bias)
        if self.config.step_min > 0 or self.config.step_max is not None:
            dt = dt.clamp(self.config.step_min, self.config.step_max)
        y, memory = bounded_attention(
            C,
            B,
            u * dt[..., None],
            log_decay=-A_log.exp() * dt,
            bounds=self.config,
            state=memory,
            resets=resets,
        )
        y = (y + u * D[:, None]).flatten(2) * F.silu(z)
        y = F.rms_norm(
            y.unflatten(2, (groups, -1)), (y.shape[2] // groups,), eps=self.config.norm_eps
        )
        return self.out(y.flatten(2).to(x.dtype) * self.norm), Mamba2State(memory, window)
