"""Mamba-3 (arXiv:2603.15569): Mamba-2 with the trapezoid rule, turning states and rank-R writes.

    z_t, x_t, B_t, C_t, d_t, a_t, l_t, w_t = W_in u_t
    dt_t = softplus(d_t + b),  A_t = -max(softplus(a_t), 1e-4),  lambda_t = sigmoid(l_t)
    phi_t = phi_{t-1} + pi tanh(w_t) dt_t                                     mod 2 pi
    B_t, C_t = turn(RMSNorm(.) + bias, phi_t)                                 rank R of each
    S_t = exp(dt_t A_t) (S_{t-1} + (1 - lambda_t) dt_t sum_r B_{t-1,r} (X_r x_{t-1})^T)
          + lambda_t dt_t sum_r B_{t,r} (X_r x_t)^T
    y_t = W_out sum_r O_r (S_t^T C_{t,r} + D X_r x_t) * silu(Z_r z_t)

X, Z and O multiply each channel; with R = 1 there are none. B and C are shared by the heads of a
group before their biases. No convolution. As published: half of B and C turns; biases, D and Z
start at 1, X and O at 1 / R, dt log-uniform in (1e-3, 1e-1). A token turns the state by pi dt at
most: to count by turning, start from longer steps (`step_min`, `step_max`). Channels are turned in
pairs half the turned part apart: for R = 1 the authors pair neighbours, the same up to an order of
the channels.
`rate="heavy_tail"` is what the authors' code has for softplus(a) since: max(a, 0) + 1 / (1 -
min(a, 0)). Their optional norm before the output map is left out.
State: B x H x N x P floats, R tokens' B and x per head and the phases, constant in T.
Cost: O(T R N P) per head.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.projection import Linear
from stepscan.layers.rotary import turn
from stepscan.layers.step_size import check_steps, fill_step_bias
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.names import lookup
from stepscan.ops.linear_scan import linear_scan
from stepscan.ops.trapezoid_scan import TrapezoidState, trapezoid_scan

RATES = {
    "softplus": F.softplus,
    "heavy_tail": lambda a: a.clamp(min=0) + 1 / (1 - a.clamp(max=0)),
}


@dataclass(frozen=True, kw_only=True)
class Mamba3Config(MixerConfig):
    """Config of Mamba-3."""

    name: ClassVar[str] = "mamba3"
    equation: ClassVar[str] = "S = a_t (S + e_t B_{t-1} x_{t-1}^T) + l_t B_t x_t^T;  y = S^T C_t"
    source: ClassVar[str] = "Lahoti et al. 2026, arXiv:2603.15569"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="state space",
        transition="scalar",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("trapezoid_scan", "linear_scan"),
    )

    expansion: float = 2.0
    """Inner width E, as a multiple of the model width."""
    states: int = 128
    """Numbers N in the state of each inner channel: the size of a key."""
    heads: int | None = None
    """Number of heads H; None: one per 64 inner channels as published, and 4 at least."""
    groups: int = 1
    """Groups of heads that share B and C."""
    rank: int = 1
    """Writes and reads R per token (MIMO); 4 as published for more arithmetic per byte of state."""
    rotary: float = 0.5
    """The part of the state that turns by the input; 0 leaves the state real."""
    trapezoid: bool = True
    """False: Mamba's Euler step, each token written once."""
    rate: str = "softplus"
    """What makes the decay rate positive: "softplus" or "heavy_tail"."""
    step_min: float = 1e-3
    """Shortest initial step dt."""
    step_max: float = 1e-1
    """Longest initial step dt; a token turns the state by pi dt at most."""

    def build(self, width: int) -> "Mamba3":
        """Build the module for a model of this width."""
        inner = round(width * self.expansion)
        heads = max(4, inner // 64) if self.heads is None else self.heads
        lookup(RATES, self.rate, kind="rate of mamba3")
        if min(heads, self.groups, self.states, self.rank) < 1 or inner < heads:
            raise ValueError(
                f"mamba3: want at least 1 of each, got heads={heads}, groups={self.groups}, "
                f"states={self.states}, rank={self.rank}, inner width {inner}"
            )
        if inner % heads or heads % self.groups:
            raise ValueError(
                f"mamba3: heads={heads} must divide the inner width {inner}, and "
                f"groups={self.groups} the heads"
            )
        if not 0 <= self.rotary <= 1:
            raise ValueError(f"mamba3: want rotary from 0 to 1, got {self.rotary}")
        check_steps("mamba3", self.step_min, self.step_max, 1.0)
        return Mamba3(self, width, inner, heads)


class Mamba3State(NamedTuple):
    """What `Mamba3` carries from one stretch to the next."""

    memory: Float[Tensor, "B H N P"]
    key: Float[Tensor, "B R H N"]
    value: Float[Tensor, "B R H P"]
    phase: Float[Tensor, "B H A"]


class Mamba3(Mixer[Mamba3State]):
    """See the module docstring."""

    no_decay = ("D", "step_bias")

    def __init__(self, config: Mamba3Config, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.config = config
        keys = config.rank * config.groups * config.states
        self.angles = int(config.states * config.rotary) // 2
        mix = heads if config.trapezoid else 0
        self.sizes = (inner, inner, keys, keys, heads, heads, mix, self.angles)
        self.inputs = Linear(width, sum(self.sizes), bias=False)
        self.norm_B = nn.RMSNorm(config.states, eps=1e-5)
        self.norm_C = nn.RMSNorm(config.states, eps=1e-5)
        self.bias_B = nn.Parameter(torch.ones(config.rank, heads, config.states))
        self.bias_C = nn.Parameter(torch.ones(config.rank, heads, config.states))
        self.step_bias = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.ones(heads))
        if config.rank > 1:
            shape, even = (config.rank, heads, inner // heads), 1 / config.rank
            self.spread = nn.Parameter(torch.full(shape, even))
            self.spread_gate = nn.Parameter(torch.ones(shape))
            self.gather = nn.Parameter(torch.full(shape, even))
        self.out = Linear(inner, width, bias=False)
        fill_step_bias(self.step_bias, config.step_min, config.step_max)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Mamba3State:
        """Empty memory, no token before the first, all phases 0."""
        weight, (R, H, N) = self.out.weight, self.bias_B.shape
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        P = weight.shape[1] // H
        shapes = (batch, H, N, P), (batch, R, H, N), (batch, R, H, P), (batch, H, self.angles)
        zeros = (torch.zeros(s, device=device or weight.device, dtype=dtype) for s in shapes)
        return Mamba3State(*zeros)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: Mamba3State | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], Mamba3State]:
        """Mix along T."""
        *carried, phase = state or self.init_state(len(x), device=x.device)
        z, u, B, C, step, rate, mix, angle = self.inputs(x).split(self.sizes, -1)
        R, H, _ = self.bias_B.shape
        wide = torch.promote_types(x.dtype, torch.float32)
        dt = F.softplus(step.to(wide) + self.step_bias.to(wide))
        rate = RATES[self.config.rate](rate.to(wide)).clamp(min=1e-4)
        late = dt * torch.sigmoid(mix.to(wide)) if self.config.trapezoid else dt
        phase, last = self._phases(angle, dt, phase, resets)
        B, C = (p.unflatten(2, (R, self.config.groups, -1)) for p in (B, C))
        B, C = self._heads(self.norm_B(B)) + self.bias_B, self._heads(self.norm_C(C)) + self.bias_C
        z, u = (p.unflatten(2, (1, H, -1)) for p in (z, u))
        if R > 1:
            z, u = z * self.spread_gate, u * self.spread
        y, carried = trapezoid_scan(
            turn(C, phase),
            turn(B, phase),
            u,
            log_decay=-rate * dt,
            early=dt - late,
            late=late,
            state=TrapezoidState(*carried),
            resets=resets,
        )
        y = (y + u * self.D[:, None]) * F.silu(z)
        y = (y * self.gather).sum(2) if R > 1 else y.squeeze(2)
        return self.out(y.flatten(2)), Mamba3State(*carried, last)

    def _phases(
        self,
        angle: Float[Tensor, "B T A"],
        dt: Float[Tensor, "B T H"],
        phase: Float[Tensor, "B H A"],
        resets: Bool[Tensor, "B T"] | None,
    ) -> tuple[Float[Tensor, "B T 1 H A"], Float[Tensor, "B H A"]]:
        """The phases of all tokens, and the last; in float64, for sums over long stretches."""
        by = (math.pi * torch.tanh(angle.to(dt.dtype))[:, :, None] * dt[..., None]).double()
        start = phase.double().flatten(1)
        phases, last = linear_scan(
            torch.ones_like(by).flatten(2), by.flatten(2), state=start, resets=resets
        )
        last = last.remainder(2 * math.pi).view_as(phase).to(phase.dtype)
        return phases.view(*by.shape[:2], 1, *by.shape[2:]), last

    def _heads(self, x: Float[Tensor, "B T R G N"]) -> Float[Tensor, "B T R H N"]:
        return x.repeat_interleave(self.bias_B.shape[1] // self.config.groups, 3)
