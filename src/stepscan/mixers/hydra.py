"""Hydra (arXiv:2407.09941): Mamba-2 both ways, as one quasiseparable matrix.

    z_t, (x_t, B_t, C_t, B'_t, C'_t), d_t, d'_t = W_in u_t
    x, B, C, B', C' = silu(conv(.))                             a window of 7 around each token
    y_t = SSM(x; B, C, d)_{t-1} + SSM'(x; B', C', d')_{t+1} + (W_D x_t + D) x_t
    out_t = W_out (RMSNorm(y_t) * silu(z_t))

SSM is Mamba-2's, S_t = exp(dt_t A) S_{t-1} + dt_t B_t x_t^T read by C_t, and SSM' the same from
right to left with the same A and step bias. Both are shifted by a token: what is below and above
the diagonal has rank N at the most, the diagonal is free. As published: A = -1 and D = 1 at the
start, dt log-uniform in (1e-3, 1e-1). `combine` has the two-way mixers it was compared with: there
the passes are not shifted, and all keep the free diagonal, so that their parameters are equal in
number (those of "concatenate" are more).
Not causal: a stretch sees the past through the state, but not the stretch after.
State: B x H x N x P floats, the last output, and 3 inputs of the window, constant in T.
Cost: O(T N P) per head and direction.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.bidirectional import CentredConv, both_ways
from stepscan.layers.projection import Linear
from stepscan.layers.step_size import fill_step_bias
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.names import lookup
from stepscan.ops.linear_attention import linear_attention
from stepscan.ops.shift import shift

COMBINE = {name: name for name in ("quasiseparable", "add", "multiply", "concatenate")}


@dataclass(frozen=True, kw_only=True)
class HydraConfig(MixerConfig):
    """Config of Hydra."""

    name: ClassVar[str] = "hydra"
    equation: ClassVar[str] = "y_t = SSM(x)_{t-1} + SSM'(x)_{t+1} + D_t x_t"
    source: ClassVar[str] = "Hwang et al. 2024, arXiv:2407.09941"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="state space",
        transition="scalar",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("linear_attention", "short_conv"),
    )

    expansion: float = 2.0
    """Inner width E, as a multiple of the model width."""
    states: int = 64
    """Numbers N in the state of each inner channel: the size of a key."""
    heads: int | None = None
    """Number of heads H; None: one per 64 inner channels as published, and 4 at least."""
    groups: int = 1
    """Groups of heads that share B and C."""
    window: int = 7
    """Tokens around each token that the convolution sees; odd."""
    combine: str = "quasiseparable"
    """How the two passes become one: "quasiseparable", "add", "multiply" or "concatenate"."""

    def build(self, width: int) -> "Hydra":
        """Build the module for a model of this width."""
        inner = round(width * self.expansion)
        heads = max(4, inner // 64) if self.heads is None else self.heads
        lookup(COMBINE, self.combine, kind="way for hydra to combine")
        if min(heads, self.groups, self.states) < 1 or inner < heads:
            raise ValueError(
                f"hydra: want at least 1 of each, got heads={heads}, groups={self.groups}, "
                f"states={self.states}, inner width {inner}"
            )
        if inner % heads or heads % self.groups:
            raise ValueError(
                f"hydra: heads={heads} must divide the inner width {inner}, and "
                f"groups={self.groups} the heads"
            )
        return Hydra(self, width, inner, heads)


class HydraState(NamedTuple):
    """What `Hydra` carries from one stretch to the next."""

    memory: Float[Tensor, "B H N P"]
    last: Float[Tensor, "B H P"]
    window: Float[Tensor, "B W F"]


class Selection(NamedTuple):
    """What mixes the values: with it given, `Hydra.mix` is linear in them."""

    forward: tuple[Tensor, Tensor, Tensor, Tensor]
    """C, B, dt and log decay."""
    backward: tuple[Tensor, Tensor, Tensor, Tensor]
    diagonal: Float[Tensor, "B T H"]


class Hydra(Mixer[HydraState]):
    """See the module docstring."""

    causal = False
    no_decay = ("A_log", "D", "step_bias")

    def __init__(self, config: HydraConfig, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.config = config
        keys = config.groups * config.states
        self.parts = (inner, keys, keys, keys, keys)
        self.sizes = (inner, sum(self.parts), 2 * heads)
        self.inputs = Linear(width, sum(self.sizes), bias=False)
        self.conv = CentredConv(sum(self.parts), config.window)
        self.step_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.diagonal = Linear(inner, heads, bias=False)
        double = config.combine == "concatenate"
        self.join = Linear(2 * inner, inner, bias=False) if double else None
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out = Linear(inner, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values of the state space."""
        fill_step_bias(self.step_bias)
        nn.init.ones_(self.D)
        nn.init.zeros_(self.A_log)

    @property
    def is_matrix(self) -> bool:
        """Whether `mix` is one matrix per head, see `analyze/matrix_mixer.py`."""
        return self.config.combine in ("quasiseparable", "add")

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> HydraState:
        """Empty memory, no inputs yet."""
        window = self.conv.init_state(batch, device=device, dtype=dtype)
        heads = len(self.D)
        size = self.parts[0] // heads
        memory = window.new_zeros(batch, heads, self.config.states, size)
        return HydraState(memory, window.new_zeros(batch, heads, size), window)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: HydraState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], HydraState]:
        """Mix along T, both ways."""
        window = None if state is None else state.window
        values, selection, gate, window = self.select(x, window, resets)
        carried = None if state is None else (state.memory, state.last)
        y, (memory, last) = self.mix(values, selection, carried, resets)
        return self.finish(y, gate), HydraState(memory, last, window)

    def select(
        self,
        x: Float[Tensor, "B T D"],
        window: Float[Tensor, "B W F"] | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T H P"], Selection, Float[Tensor, "B T E"], Tensor]:
        """Values, what mixes them, the output gate, and the window's inputs."""
        gate, inputs, step = self.inputs(x).split(self.sizes, -1)
        inputs, window = self.conv(inputs, window, resets)
        u, *keys = F.silu(inputs).split(self.parts, -1)
        B, C, B_back, C_back = (k.unflatten(2, (self.config.groups, -1)) for k in keys)
        wide = torch.promote_types(x.dtype, torch.float32)
        A_log, D, bias = (w.to(wide) for w in (self.A_log, self.D, self.step_bias))
        dt, dt_back = F.softplus(step.to(wide).unflatten(2, (2, -1)) + bias).unbind(2)
        ahead, back = ((p, -A_log.exp() * p) for p in (dt, dt_back))
        diagonal = self.diagonal(u).to(wide) + D
        selection = Selection((C, B, *ahead), (C_back, B_back, *back), diagonal)
        return u.unflatten(2, (len(D), -1)), selection, gate, window

    def mix(
        self,
        values: Float[Tensor, "B T H P"],
        selection: Selection,
        state: tuple[Tensor, Tensor] | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T H P"], tuple[Tensor, Tensor]]:
        """Both passes and the diagonal; "multiply" alone is not linear in the values."""
        ahead, back, state = both_ways(
            self._scan,
            (values, *selection.forward),
            (values, *selection.backward),
            state,
            resets,
        )
        if self.join is not None:
            both = torch.cat([ahead.flatten(2), back.flatten(2)], -1)
            y = self.join(both.to(self.join.weight.dtype)).view_as(ahead)
        else:
            y = ahead * back if self.config.combine == "multiply" else ahead + back
        return y + values * selection.diagonal[..., None], state

    def _scan(
        self,
        inputs: tuple[Tensor, ...],
        state: tuple[Tensor, Tensor] | None,
        resets: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        values, C, B, dt, log_decay = inputs
        memory, last = (None, None) if state is None else state
        y, memory = linear_attention(
            C, B, values * dt[..., None], log_decay=log_decay, state=memory, resets=resets
        )
        last = y.new_zeros(y[:, 0].shape) if last is None else last
        before, last = shift(y, last, resets)
        return before if self.config.combine == "quasiseparable" else y, (memory, last)

    def finish(
        self, y: Float[Tensor, "B T H P"], gate: Float[Tensor, "B T E"]
    ) -> Float[Tensor, "B T D"]:
        """Norm, gate and output map, each token on its own."""
        return self.out(self.norm(y.flatten(2).to(gate.dtype)) * F.silu(gate))
