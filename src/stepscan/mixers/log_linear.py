"""Log-linear Mamba-2 (arXiv:2506.04761): Mamba-2 with a memory per power of two of the past.

    z_t, (x_t, B_t, C_t), d_t, l_t = W_in u_t;  x_t, B_t, C_t = silu(conv(x, B, C)_t)
    S^l_t, the memory of block l, decays by exp(dt_t A) and is written dt_t B_t x_t^T
    y_t = W_out RMSNorm((sum_l softplus(lambda_l l_t[l]) S^l_t^T C_t + D x_t) * silu(z_t))

Recent tokens have small blocks, older ones large blocks: `ops/log_linear_attention.py`. dt, A and D
are Mamba-2's, with its initial values; lambda starts at 1. As published, with one group of B and C;
but for a fixed number of levels (the last takes all that is older, so the state does not grow) and
64 states where the paper has 128, as every level has its own.
State: B x L x H x N x P floats, the window's last inputs, a counter; constant in T.
Cost: O(T N P L) per head.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.convolution import ShortConv
from stepscan.layers.projection import Linear
from stepscan.layers.step_size import fill_step_bias
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.log_linear_attention import LogLinearState, log_linear_attention


@dataclass(frozen=True, kw_only=True)
class LogLinearConfig(MixerConfig):
    """Config of log-linear Mamba-2."""

    name: ClassVar[str] = "log_linear"
    equation: ClassVar[str] = (
        "S^l = exp(dt_t A) S^l + dt_t B_t x_t^T, per block l;  y = sum_l c_t[l] S^l^T C_t + D x_t"
    )
    source: ClassVar[str] = "Guo et al. 2025, arXiv:2506.04761"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="linear attention",
        transition="scalar",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("log_linear_attention", "short_conv"),
    )

    expansion: float = 2.0
    """Inner width E, as a multiple of the model width."""
    states: int = 64
    """Numbers N in the state of each inner channel and level: the size of a key."""
    heads: int | None = None
    """Number of heads H; None: one per 64 inner channels as published, and 4 at least."""
    levels: int = 10
    """Memories L per head: blocks of 1, 2, 4 ... tokens, the last one for all that is older."""
    window: int = 4
    """Tokens seen by the convolution."""

    def build(self, width: int) -> "LogLinear":
        """Build the module for a model of this width."""
        inner = round(width * self.expansion)
        heads = max(4, inner // 64) if self.heads is None else self.heads
        if min(heads, self.states, self.levels, self.window) < 1 or inner < heads or inner % heads:
            raise ValueError(
                f"log_linear: want at least 1 of each, got heads={heads}, states={self.states}, "
                f"levels={self.levels}, window={self.window}; heads must divide the inner width "
                f"{inner}"
            )
        return LogLinear(self, width, inner, heads)


class LogLinearMixerState(NamedTuple):
    """What `LogLinear` carries from one stretch to the next."""

    memory: Float[Tensor, "B L H N P"]
    length: Int[Tensor, "B"]
    window: Float[Tensor, "B W-1 E"]


class LogLinear(Mixer[LogLinearMixerState]):
    """See the module docstring."""

    no_decay = ("A_log", "D", "step_bias", "level")

    def __init__(self, config: LogLinearConfig, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.config = config
        self.parts = (inner, config.states, config.states)
        self.sizes = (inner, sum(self.parts), heads, heads * (config.levels + 1))
        self.inputs = Linear(width, sum(self.sizes), bias=False)
        self.conv = ShortConv(sum(self.parts), config.window)
        self.step_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.level = nn.Parameter(torch.empty(heads, config.levels + 1))
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out = Linear(inner, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values of the state space and the levels."""
        fill_step_bias(self.step_bias)
        nn.init.ones_(self.D)
        nn.init.ones_(self.level)
        with torch.no_grad():
            self.A_log.uniform_(1, 16).log_()

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> LogLinearMixerState:
        """Empty memories, no inputs yet."""
        window = self.conv.init_state(batch, device=device, dtype=dtype)
        heads, levels = len(self.D), self.config.levels
        shape = batch, levels, heads, self.config.states, self.sizes[0] // heads
        length = torch.zeros(batch, device=window.device, dtype=torch.int64)
        return LogLinearMixerState(window.new_zeros(shape), length, window)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: LogLinearMixerState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], LogLinearMixerState]:
        """Mix along T."""
        memory, length, window = self.init_state(len(x)) if state is None else state
        z, inputs, step, level = self.inputs(x).split(self.sizes, -1)
        inputs, window = self.conv(inputs, window, resets)
        u, B, C = inputs.split(self.parts, -1)
        u = u.unflatten(-1, (len(self.D), -1))
        B, C = (p[:, :, None].expand(-1, -1, len(self.D), -1) for p in (B, C))
        wide = torch.promote_types(x.dtype, torch.float32)
        A_log, D, bias = (w.to(wide) for w in (self.A_log, self.D, self.step_bias))
        dt = F.softplus(step.to(wide) + bias)
        y, last = log_linear_attention(
            C,
            B,
            u * dt[..., None],
            level_scale=F.softplus(level.to(wide).unflatten(-1, self.level.shape) * self.level),
            log_decay=-A_log.exp() * dt,
            state=LogLinearState(memory, length),
            resets=resets,
        )
        y = (y + u * D[:, None]).flatten(2) * F.silu(z)
        return self.out(self.norm(y.to(x.dtype))), LogLinearMixerState(*last, window)
