"""pLSTM (arXiv:2506.11997): linear recurrence with source, transition and mark gates, on a grid.

    c = silu(conv(x));  q, k = W c;  v = W_v x
    sequence:  E_{t+1} = T_t E_t + s_t k_t v_t^T;  o_t = m_t E_t^T q_t + d_t (q_t . k_t) v_t
    grid:      the same with an edge from the left and one from above, see `ops/grid_scan.py`
    y = W_o RMSNorm(o) + p x                              the norm per head, p a number per channel

s, m, d are sigmoids of c, T = sigmoid(10 e) of a linear e of c; per head. With `columns` the tokens
are a grid (`layers/grid.py`) that is read from all four corners, each with gates of its own; their
normed outputs are averaged. "P" propagates in a direction: what leaves an edge is T in all, and
angle = sigmoid(.) shares it between right and down. "D" distributes: right, down, and one turn
(from above to the right) have gates of their own, so that one path leads from a node to another.
Published initial values: gates of s, m, d at -5, e at 1, angles from -2 to 2 over the heads, all of
their weights zero. Deviations: (1 - angle) T goes down, where the authors' code lets 1 - angle T
pass, which never forgets (the two agree at T = 1); T is positive, not a tanh; one state per head
(no state-tracking dimensions); how the authors activate the convolution is not known to us.
Causal as a sequence; a grid is not causal, and no state goes on from it.
State: B x H x K x V floats and the window's last inputs, constant in T.   Cost: O(T K V) per head.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.convolution import ShortConv
from stepscan.layers.grid import GridConv, as_grid, check_grid, from_grid
from stepscan.layers.linear_reads import read_before_write
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.names import lookup
from stepscan.ops.grid_scan import grid_scan

FLIPS: tuple[tuple[int, ...], ...] = ((), (1,), (2,), (1, 2))
"""Axes of a grid that are turned round to read it from each corner."""
GATES: dict[str, tuple[str, ...]] = {
    "P": ("source", "mark", "transition", "angle"),
    "D": ("right", "down", "left", "up", "pass_right", "pass_down", "turn"),
}
SEQUENCE = ("source", "mark", "transition")
OPEN = ("transition", "pass_right", "pass_down", "turn")  # the gates that start near 1


@dataclass(frozen=True, kw_only=True)
class PLSTMConfig(MixerConfig):
    """Config of pLSTM."""

    name: ClassVar[str] = "plstm"
    equation: ClassVar[str] = "E' = T_t E + s_t k_t v_t^T;  y = m_t E^T q_t + d_t (q_t . k_t) v_t"
    source: ClassVar[str] = "Poeppel et al. 2025, arXiv:2506.11997"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="linear attention",
        transition="scalar",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("linear_attention", "short_conv"),
    )

    heads: int = 4
    """Number of heads H; must divide the width."""
    window: int = 4
    """Tokens that the convolution of a sequence sees; in a grid it sees 3 x 3."""
    rows: int | None = None
    """Rows of a grid; None: one grid per stretch."""
    columns: int | None = None
    """Columns of a grid; None: a sequence."""
    mode: str = "P"
    """In a grid: "P", directed propagation, or "D", distribution."""
    gate_bias: float = -5.0
    """Where the logits of the source, mark and direct gates start; near 0 small models learn
    sooner."""

    def build(self, width: int) -> "PLSTM":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"plstm: heads={self.heads} must divide width={width}")
        check_grid("plstm", self.rows, self.columns)
        lookup(GATES, self.mode, kind="mode of plstm")
        return PLSTM(self, width)


class PLSTMState(NamedTuple):
    """What `PLSTM` carries from one stretch to the next."""

    memory: Float[Tensor, "B H K V"]
    window: Float[Tensor, "B W-1 D"]


class PLSTM(Mixer[PLSTMState]):
    """See the module docstring."""

    def __init__(self, config: PLSTMConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.causal = config.columns is None
        self.gates = SEQUENCE if self.causal else GATES[config.mode]
        self.corners = 1 if self.causal else len(FLIPS)
        self.conv = ShortConv(width, config.window) if self.causal else GridConv(width, 3)
        self.qk = Linear(width, 2 * width, bias=False)
        self.value = Linear(width, width, bias=False)
        self.gate = Linear(width, config.heads * (self.corners * len(self.gates) + 1))
        self.norm = nn.RMSNorm(width // config.heads, eps=1e-7)
        self.out = Linear(width, width, bias=False)
        self.through = nn.Parameter(torch.ones(width))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fresh initial values of the gates."""
        nn.init.zeros_(self.gate.weight)
        self.gate.bias.fill_(self.config.gate_bias)
        heads = self.config.heads
        own = self.gate.bias[heads:].view(len(self.gates), self.corners, heads)
        for name, bias in zip(self.gates, own, strict=True):
            if name in OPEN:
                bias.fill_(1.0)
            if name == "angle":
                bias.copy_(torch.linspace(-2, 2, heads) if heads > 1 else torch.zeros(1))

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> PLSTMState:
        """Empty memory, no inputs yet."""
        weight, heads = self.out.weight, self.config.heads
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        size = len(weight) // heads
        memory = torch.zeros(batch, heads, size, size, device=device or weight.device, dtype=dtype)
        window = memory.new_zeros(batch, self.config.window - 1, len(weight))
        return PLSTMState(memory, window)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: PLSTMState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], PLSTMState]:
        """Mix along T, or in the grids of T."""
        if self.config.columns is not None:
            nodes = as_grid(x, self.config.rows, self.config.columns)
            y = from_grid(self._grid(nodes), len(x))
            return y + self.through * x, self.init_state(len(x), device=x.device)
        memory, window = (None, None) if state is None else state
        assert isinstance(self.conv, ShortConv)
        local, window = self.conv(x, window, resets)
        q, k, v, direct, gates = self._select(x, local)
        source, mark = (gates[name].squeeze(-2)[..., None] for name in ("source", "mark"))
        log_decay = F.logsigmoid(10 * gates["transition"].squeeze(-2))
        y, memory = read_before_write(
            q, k * source.sigmoid(), v, log_decay=log_decay, state=memory, resets=resets
        )
        y = mark.sigmoid() * y + (direct * (q * k).sum(-1))[..., None] * v
        y = self.out(self.norm(y.to(x.dtype)).flatten(2)) + self.through * x
        return y, PLSTMState(memory, window)

    def _grid(self, x: Float[Tensor, "N R C D"]) -> Float[Tensor, "N R C D"]:
        """All four corners in one scan."""
        q, k, v, direct, logits = self._select(x, F.silu(self.conv(x)))
        gates = {
            name: (10 * part if name in OPEN else part).sigmoid() for name, part in logits.items()
        }
        if self.config.mode == "P":
            angle = torch.stack([gates["angle"], 1 - gates["angle"]], -1)  # right, down
            source = gates["source"][..., None] * angle
            mark = gates["mark"][..., None].expand_as(source)
            out = gates["transition"][..., None] * angle
            transition = torch.stack([out, out], -1)  # wherever it came from
        else:
            source = torch.stack([gates["right"], gates["down"]], -1)
            mark = torch.stack([gates["left"], gates["up"]], -1)
            never = torch.zeros_like(gates["turn"])
            right = torch.stack([gates["pass_right"], gates["turn"]], -1)
            transition = torch.stack([right, torch.stack([never, gates["pass_down"]], -1)], -2)
        q, k, v, direct = (torch.cat([p.flip(axes) for axes in FLIPS]) for p in (q, k, v, direct))
        source, mark, transition = (
            torch.cat([part[:, :, :, i].flip(axes) for i, axes in enumerate(FLIPS)])
            for part in (source, mark, transition)
        )
        gates = {"source": source, "mark": mark, "transition": transition, "direct": direct}
        y, _ = grid_scan(q, k, v, state=None, resets=None, form="auto", **gates)
        y = self.norm(y.to(x.dtype)).chunk(len(FLIPS))
        back = [part.flip(axes) for part, axes in zip(y, FLIPS, strict=True)]
        return self.out(torch.stack(back).mean(0).flatten(3))

    def _select(
        self, x: Float[Tensor, "*n D"], local: Float[Tensor, "*n D"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Queries, keys, values, the direct gate, and the logits of the others per corner."""
        heads = self.config.heads
        q, k = (part.unflatten(-1, (heads, -1)) for part in self.qk(local).chunk(2, -1))
        v = self.value(x).unflatten(-1, (heads, -1))
        wide = torch.promote_types(x.dtype, torch.float32)
        direct, rest = self.gate(local).to(wide).tensor_split([heads], -1)
        parts = rest.unflatten(-1, (len(self.gates), self.corners, heads)).unbind(-3)
        logits = dict(zip(self.gates, parts, strict=True))
        return q / math.sqrt(q.shape[-1]), k, v, direct.sigmoid(), logits
