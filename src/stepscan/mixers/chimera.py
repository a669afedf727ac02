"""Chimera (arXiv:2406.04320): two state spaces over variates and time, one of them turns.

    per variate v:  u, z = W x_v;  B1, B2, C1, C2, dt, dv = W' (u + e_v)      the same W for all v
    h1_{t,v} = A1 h1_{t-1,v} + A2 h2_{t-1,v} + dt B1 u       A1 = exp(dt A),  A2 = (1 - |A1|) a
    h2_{t,v} = A3 h1_{t,v-1} + A4 h2_{t,v-1} + dv B2 u       A4 = exp(dv A'), A3 = (1 - A4) a'
    y = W_o ((Re(C1 h1 + C2 h2) of both heads and directions + D u) * silu(z))

The channels of a token are `variates` groups, a row of the plane over time; information crosses
from one to another through h2 alone, in both directions of the variates. Two heads: the trend has
real A and steps from 1e-3 to 1e-1 as Mamba, the seasonal one complex A and steps of 1 at the start,
so that its states turn at periods from 4 to 64 tokens. A, A' < 0 and |a|, |a'| < 1: nothing grows.
The recurrence, two steps that see the input, two heads, and both directions are published. How the
published model discretises the coupled A2 and A3 could not be checked; here they see the other
state as an input that is held for the step. Deviations: diagonal complex A in place of a companion
matrix (of which it is the eigenvalues); a learned e_v tells variates apart; the initial values.
Causal in time. `cross=False` leaves every variate alone (A3 = A4 = 0).
State: V x 2 x E x N floats and as many complex numbers, for each direction, constant in T.
Cost: O(T V E N).
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.projection import Linear
from stepscan.layers.step_size import fill_step_bias
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.scan2d import scan2d


@dataclass(frozen=True, kw_only=True)
class ChimeraConfig(MixerConfig):
    """Config of Chimera."""

    name: ClassVar[str] = "chimera"
    equation: ClassVar[str] = "h1_t = A1 h1 + A2 h2 + dt B1 x;  h2_v = A3 h1 + A4 h2 + dv B2 x"
    source: ClassVar[str] = "Behrouz et al. 2024, arXiv:2406.04320"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="state space",
        transition="dense",
        gate="input",
        eigenvalues="disc",
        ops=("scan2d",),
    )

    variates: int = 4
    """Groups V of the channels; must divide the width."""
    states: int = 4
    """Numbers N in the state of each channel, per head, direction and field."""
    expansion: float = 1.0
    """Inner width E of a variate, as a multiple of its channels."""
    cross: bool = True
    """False: no information crosses from one variate to another."""

    def build(self, width: int) -> "Chimera":
        """Build the module for a model of this width."""
        if self.variates < 1 or width % self.variates:
            raise ValueError(f"chimera: variates={self.variates} must divide width={width}")
        inner = round(width // self.variates * self.expansion)
        if min(self.states, inner) < 1:
            raise ValueError(
                f"chimera: want at least 1 of each, got states={self.states}, inner width {inner}"
            )
        return Chimera(self, width, inner)


class ChimeraState(NamedTuple):
    """What `Chimera` carries from one stretch to the next: h1 and h2 of the last time."""

    trend: Float[Tensor, "B V 2 N"]
    seasonal: Float[Tensor, "B V 2 N 2"]
    """Complex numbers, as pairs."""


class Head(nn.Module):
    """One state space over the plane; `turns`: the seasonal one."""

    def __init__(self, config: ChimeraConfig, inner: int, *, turns: bool) -> None:
        super().__init__()
        self.config, self.turns = config, turns
        ways, states = 1 + config.cross, config.states
        self.sizes = (*(states,) * 4, *(inner,) * 2)
        self.select = Linear(inner, sum(self.sizes), bias=False)
        self.step_bias = nn.Parameter(torch.empty(2, inner))
        self.log_rate = nn.Parameter(torch.empty(2 if config.cross else 1, ways, inner, states))
        self.coupling = nn.Parameter(torch.empty_like(self.log_rate))
        self.frequency = nn.Parameter(torch.empty(ways, inner, states)) if turns else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fresh initial values of the dynamics."""
        fill_step_bias(self.step_bias)
        self.coupling.uniform_(-0.5, 0.5)
        states = torch.arange(1.0, self.config.states + 1)
        self.log_rate.copy_(states.log().expand_as(self.log_rate))
        if self.frequency is not None:
            self.step_bias[0] = math.log(math.expm1(1.0))  # a token is a step of 1
            self.log_rate[0] = math.log(0.02)
            period = torch.empty_like(self.frequency).uniform_(math.log(4), math.log(64)).exp()
            self.frequency.copy_(2 * math.pi / period)

    def forward(
        self,
        u: Float[Tensor, "B T V E"],
        marked: Float[Tensor, "B T V E"],
        state: Tensor,
        resets: Bool[Tensor, "B T"] | None,
    ) -> tuple[Float[Tensor, "B T V E"], Tensor]:
        """What the plane holds at each place, and the state; `marked` says whose u it is."""
        wide = torch.promote_types(u.dtype, torch.float32)
        B1, B2, C1, C2, dt, dv = self.select(marked).to(wide).split(self.sizes, -1)
        dt, dv = (F.softplus(s + b) for s, b in zip((dt, dv), self.step_bias.to(wide), strict=True))
        rate, coupling = self.log_rate.to(wide).exp(), self.coupling.to(wide).tanh()
        u = u.to(wide)
        a, b = self._transitions(dt, dv, rate, coupling), self._writes(u, B1, B2, dt, dv)
        state = torch.view_as_complex(state) if self.turns else state
        h, state = scan2d(a, b.to(a.dtype), state=state, resets=resets)
        h, state = (h.real, torch.view_as_real(state)) if self.turns else (h, state)
        h = h.unflatten(-1, rate.shape[1:])  # [B T V 2 way E N]
        h = torch.cat([h[..., :1, :, :], h[:, :, :, :, 1:].flip(2)], 4).sum(4)
        y = h[:, :, :, 0] * C1[..., None, :] + h[:, :, :, 1] * C2[..., None, :]
        return y.sum(-1), state

    def _transitions(self, dt: Tensor, dv: Tensor, rate: Tensor, coupling: Tensor) -> Tensor:
        """a of `scan2d`: the second way has the variates in reverse."""
        ways = rate.shape[1]
        in_order = lambda s: torch.stack([s, s.flip(2)][:ways], 3)[..., None]  # noqa: E731
        time = in_order(dt)  # [B T V way E 1]
        kept = (-time * rate[0]).exp()
        late = (1 - kept) * coupling[0]
        if self.frequency is not None:
            angle = time * self.frequency.to(kept.dtype)
            kept, late = torch.polar(kept, angle), torch.complex(late, torch.zeros_like(late))
        if self.config.cross:
            near = (-in_order(dv) * rate[1]).exp()
            across = ((1 - near) * coupling[1]).to(kept.dtype)
        else:
            near = across = torch.zeros_like(kept)
        rows = [torch.stack(row, 3) for row in ((kept, late), (across, near.to(kept.dtype)))]
        return torch.stack(rows, 3).flatten(-3)

    def _writes(self, u: Tensor, B1: Tensor, B2: Tensor, dt: Tensor, dv: Tensor) -> Tensor:
        """b of `scan2d`."""
        ways = self.log_rate.shape[1]
        fields = [(u * s)[..., None] * B[..., None, :] for s, B in ((dt, B1), (dv, B2))]
        both = torch.stack(fields, 3)  # [B T V 2 E N]
        return torch.stack([both, both.flip(2)][:ways], 4).flatten(-3)


class Chimera(Mixer[ChimeraState]):
    """See the module docstring."""

    no_decay = tuple(
        f"{head}.{name}"
        for head in ("trend", "seasonal")
        for name in ("step_bias", "log_rate", "coupling", "frequency")
    )

    def __init__(self, config: ChimeraConfig, width: int, inner: int) -> None:
        super().__init__()
        self.config = config
        self.inputs = Linear(width // config.variates, 2 * inner, bias=False)
        self.place = nn.Parameter(torch.randn(config.variates, inner) / 2)
        self.trend = Head(config, inner, turns=False)
        self.seasonal = Head(config, inner, turns=True)
        self.D = nn.Parameter(torch.ones(inner))
        self.out = Linear(inner, width // config.variates, bias=False)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> ChimeraState:
        """Nothing yet."""
        rate = self.trend.log_rate
        dtype = torch.promote_types(dtype or rate.dtype, torch.float32)
        shape = batch, self.config.variates, 2, rate[0].numel()
        zeros = torch.zeros(shape, device=device or rate.device, dtype=dtype)
        return ChimeraState(zeros, zeros.new_zeros(*shape, 2))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: ChimeraState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], ChimeraState]:
        """Mix along T and across the variates of each token."""
        trend, seasonal = self.init_state(len(x)) if state is None else state
        u, gate = self.inputs(x.unflatten(2, (self.config.variates, -1))).chunk(2, -1)
        marked = u + self.place
        slow, trend = self.trend(u, marked, trend, resets)
        turning, seasonal = self.seasonal(u, marked, seasonal, resets)
        y = (slow + turning).to(x.dtype) + self.D * u
        return self.out(y * F.silu(gate)).flatten(2), ChimeraState(trend, seasonal)
