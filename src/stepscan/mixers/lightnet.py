"""LightNet (arXiv:2405.21022): linear attention whose decay is a running softmax of the keys.

    z_t = log sum_{j <= t} e^{k_j}                                           one per key channel
    S_t = diag(e^{z_{t-1} - z_t}) S_{t-1} + e^{k_t - z_t} v_t^T             z before the first: -inf
    y_t = W_o (RMSNorm(S_t^T silu(W_q x_t) / sqrt(K)) * silu(W_2 W_1 x_t))   the norm over all heads

So row d of S is the mean of all values so far, each weighed by e^{k_d}: an additive recurrence,
which one scan in any order computes. With `causal=False` every token reads the S of the whole
stretch, or of its segment; its order does not matter then. With `columns` the tokens are grids
(`layers/grid.py`), and `positions` tells them apart: "lrpe" in queries and keys, "tpe" in what goes
in, "both" as published, see `layers/grid_positions.py`. As published, with the first token at full
weight; the gate's rank is a head's size. Causal, the positions of the authors' later code (LRPE)
are left out.
State: B x H x K x K floats and z, constant in T.   Cost: O(T K^2) per head.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.grid import as_grid, check_grid
from stepscan.layers.grid_positions import MDToeplitz, md_lrpe
from stepscan.layers.linear_reads import prefix_read
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.names import lookup
from stepscan.ops.linear_attention import linear_attention
from stepscan.ops.semiring_scan import semiring_scan

POSITIONS = {name: name for name in ("none", "lrpe", "tpe", "both")}


@dataclass(frozen=True, kw_only=True)
class LightNetConfig(MixerConfig):
    """Config of LightNet."""

    name: ClassVar[str] = "lightnet"
    equation: ClassVar[str] = (
        "z' = log(e^z + e^k_t);  S = diag(e^(z - z')) S + e^(k_t - z') v_t^T;  y = S^T q_t"
    )
    source: ClassVar[str] = "Qin et al. 2024, arXiv:2405.21022"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="linear attention",
        transition="diagonal",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("linear_attention", "semiring_scan"),
    )

    heads: int = 4
    """Number of heads H; must divide the width."""
    causal: bool = True
    """False: every token reads all tokens."""
    rows: int | None = None
    """Rows of a grid; None: one grid per stretch."""
    columns: int | None = None
    """Columns of a grid, which is not causal; None: a sequence."""
    positions: str = "none"
    """In a grid: "none", "lrpe", "tpe" or "both"."""

    def build(self, width: int) -> "LightNet":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"lightnet: heads={self.heads} must divide width={width}")
        check_grid("lightnet", self.rows, self.columns)
        lookup(POSITIONS, self.positions, kind="positions of lightnet")
        if self.columns is not None and self.causal:
            raise ValueError("lightnet: a grid is not causal; take causal=False with columns")
        if self.columns is None and self.positions != "none":
            raise ValueError(f"lightnet: positions={self.positions!r} want a grid; give columns")
        return LightNet(self, width)


class LightNetState(NamedTuple):
    """What `LightNet` carries from one stretch to the next."""

    memory: Float[Tensor, "B H K K"]
    log_sum: Float[Tensor, "B D"]
    """z; minus infinity before the first token."""


class LightNet(Mixer[LightNetState]):
    """See the module docstring."""

    def __init__(self, config: LightNetConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.causal = config.causal
        head = width // config.heads
        toeplitz = config.positions in ("tpe", "both")
        self.toeplitz = MDToeplitz(width, config.heads) if toeplitz else None
        self.qkv = Linear(width, 3 * width, bias=False)
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.gate = nn.Sequential(Linear(width, head, bias=False), Linear(head, width, bias=False))
        self.out = Linear(width, width, bias=False)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> LightNetState:
        """Empty memory, an empty sum."""
        weight, heads = self.out.weight, self.config.heads
        width = len(weight)
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        device = device or weight.device
        shape = batch, heads, width // heads, width // heads
        memory = torch.zeros(shape, device=device, dtype=dtype)
        return LightNetState(memory, memory.new_full((batch, width), -torch.inf))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: LightNetState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], LightNetState]:
        """Mix along T, or in the grids of T."""
        if self.config.columns is not None:
            nodes = as_grid(x, self.config.rows, self.config.columns)
            nodes = nodes if self.toeplitz is None else self.toeplitz(nodes)
            y, _ = self._everywhere(nodes.flatten(1, 2), self.init_state(len(nodes)))
            return y.view_as(x), self.init_state(len(x), device=x.device)
        state = self.init_state(len(x)) if state is None else state
        if not self.causal:
            if x.shape[1] == 0:
                return x, state
            return (
                self._everywhere(x, state) if resets is None else self._segments(x, state, resets)
            )
        memory, log_sum = state
        q, k, v = self.qkv(x).chunk(3, -1)
        k = k.to(torch.promote_types(k.dtype, log_sum.dtype))
        z, last = semiring_scan(
            torch.zeros_like(k), k, "logsumexp_plus", state=log_sum, resets=resets
        )
        before = torch.cat([log_sum[:, None].to(z.dtype), z], 1)[:, :-1]
        # Where nothing came before there is nothing to decay: any number does, minus infinity
        # would only endanger gradients. After a reset the memory is empty whatever the decay.
        begins = before == -torch.inf
        if resets is not None:
            begins = begins | resets[..., None]
        g = torch.where(begins, 0.0, before.masked_fill(begins, 0.0) - z)
        parts = F.silu(q), (k - z).exp(), v, g
        q, k, v, g = (p.unflatten(-1, (self.config.heads, -1)) for p in parts)
        y, memory = linear_attention(
            q * q.shape[-1] ** -0.5, k, v, log_decay=g, state=memory, resets=resets
        )
        return self._finish(y, x), LightNetState(memory, last)

    def _everywhere(
        self, x: Float[Tensor, "B T D"], state: LightNetState
    ) -> tuple[Float[Tensor, "B T D"], LightNetState]:
        """All tokens read the whole memory: a sum, in any order."""
        memory, log_sum = state
        q, k, v = self.qkv(x).chunk(3, -1)
        k = k.to(torch.promote_types(k.dtype, log_sum.dtype))
        top = torch.maximum(k.amax(1), log_sum).detach()  # it cancels in all that follows
        weight, before = (k - top[:, None]).exp(), (log_sum - top).exp()
        total = weight.sum(1) + before
        q, k, v = (p.unflatten(-1, (self.config.heads, -1)) for p in (F.silu(q), weight, v))
        if self.config.positions in ("lrpe", "both"):
            assert self.config.columns is not None
            nodes = (-1, self.config.columns)
            q, k = (md_lrpe(p.unflatten(1, nodes)).flatten(1, 2) for p in (q, k))
        written = torch.einsum("bthk,bthv->bhkv", k, v.to(k.dtype))
        before, total = (p.view(*memory.shape[:3], 1) for p in (before, total))
        memory = (memory * before + written) / total
        y = torch.einsum("bthk,bhkv->bthv", q, (memory * q.shape[-1] ** -0.5).to(q.dtype))
        return self._finish(y, x), LightNetState(memory, top + total.flatten(1).log())

    def _segments(
        self, x: Float[Tensor, "B T D"], state: LightNetState, resets: Bool[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T D"], LightNetState]:
        """All tokens of a segment read its whole memory."""
        memory, log_sum = state
        q, k, v = self.qkv(x).chunk(3, -1)
        k = k.to(torch.promote_types(k.dtype, log_sum.dtype))
        z, last = semiring_scan(
            torch.zeros_like(k), k, "logsumexp_plus", state=log_sum, resets=resets
        )
        z = z.gather(1, _ends(resets)[..., None].expand_as(z))  # of whole segments
        held = (log_sum - z[:, 0]).masked_fill(resets[:, :1], -torch.inf).exp()
        parts = F.silu(q) * (q.shape[-1] // self.config.heads) ** -0.5, (k - z).exp(), v
        q, k, v = (p.unflatten(-1, (self.config.heads, -1)) for p in parts)
        memory = memory * held.view(*memory.shape[:3], 1)
        given = {"prefix_k": k, "prefix_v": v, "inside": torch.ones_like(resets)}
        y, memory = prefix_read(q, torch.zeros_like(k), v, **given, state=memory, resets=resets)
        return self._finish(y, x), LightNetState(memory, last)

    def _finish(self, y: Float[Tensor, "B T H K"], x: Float[Tensor, "B T D"]) -> Tensor:
        """Norm, gate and output map, each token on its own."""
        return self.out(self.norm(y.flatten(2)) * F.silu(self.gate(x)))


def _ends(resets: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """The last token of the segment of each."""
    T = resets.shape[1]
    place = torch.arange(T, device=resets.device).expand_as(resets)
    closes = F.pad(resets[:, 1:], (0, 1), value=True)
    return place.masked_fill(~closes, T).flip(1).cummin(1).values.flip(1)
