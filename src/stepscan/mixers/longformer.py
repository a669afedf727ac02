"""Longformer's attention (arXiv:2004.05150), causal: the last tokens, and the first ones.

    y_t = W_o sum_j softmax_j(q_t^T k_j / sqrt(K)) v_j      j > t - window, or j < global_tokens

with j and t counted from the last reset and j <= t. Published are windows to both sides, global
tokens anywhere, in both directions and with maps of their own, and windows alone where the model is
causal; here the first tokens are the global ones, which is what a causal model can have, and keeps
a window's model on long streams as it is on short ones (attention sinks, arXiv:2309.17453).
A window of all tokens is full attention. Positions, initial values: as `attention`, whose options
without global tokens are the cheaper way to have a window.
State: keys and values of `global_tokens` and `window` - 1 tokens and a counter, constant in T.
Cost: O(T (window + global_tokens) K) per head.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stepscan.layers.projection import Linear
from stepscan.layers.rotary import rotate
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.arguments import as_resets
from stepscan.ops.positions import positions

STRETCH = 128  # queries at a time


@dataclass(frozen=True, kw_only=True)
class LongformerConfig(MixerConfig):
    """Config of attention to a window and to the first tokens."""

    name: ClassVar[str] = "longformer"
    equation: ClassVar[str] = "y = sum_j softmax_j(q_t^T k_j / sqrt(K)) v_j  over near and first j"
    source: ClassVar[str] = "Beltagy et al. 2020, arXiv:2004.05150"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="softmax attention",
    )

    heads: int = 4
    """Number of heads H; must divide the model width."""
    window: int = 64
    """How many of the last tokens a query sees, its own included."""
    global_tokens: int = 4
    """How many of the first tokens every later one sees."""
    rotary: bool = True
    """Rotate queries and keys to their positions."""
    rotary_base: float = 10000.0
    """Base of the rotations."""

    def build(self, width: int) -> "Longformer":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"longformer: heads={self.heads} must divide width={width}")
        if self.rotary and width // self.heads % 2:
            size = width // self.heads
            raise ValueError(f"longformer: rotary wants an even head size, width / heads is {size}")
        if self.window < 2 or self.global_tokens < 1:
            raise ValueError(
                "longformer: want window at least 2 and global_tokens at least 1, got "
                f"{self.window} and {self.global_tokens}; without the latter take attention"
            )
        return Longformer(self, width)


class LongformerState(NamedTuple):
    """The first tokens of the row, then the last ones, newest last; unused slots hold zeros."""

    keys: Float[Tensor, "B G+W-1 H K"]
    values: Float[Tensor, "B G+W-1 H K"]
    length: Int[Tensor, "B"]
    """Tokens since the row's last reset."""


class Longformer(Mixer[LongformerState]):
    """See the module docstring."""

    def __init__(self, config: LongformerConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.qkv = Linear(width, 3 * width, bias=False)
        self.out = Linear(width, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values."""
        for weight in (*self.qkv.weight.chunk(3), self.out.weight):
            nn.init.xavier_uniform_(weight)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> LongformerState:
        """No past yet."""
        weight, config = self.out.weight, self.config
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        slots = config.global_tokens + config.window - 1
        shape = batch, slots, config.heads, len(weight) // config.heads
        zeros = torch.zeros(shape, device=device or weight.device, dtype=dtype)
        length = torch.zeros(batch, device=zeros.device, dtype=torch.int64)
        return LongformerState(zeros, zeros.clone(), length)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: LongformerState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], LongformerState]:
        """Mix along T, a stretch at a time."""
        state = self.init_state(len(x)) if state is None else state
        resets = as_resets(resets, x)
        place = positions(state.length, resets)
        q, k, v = rearrange(self.qkv(x), "b t (n h k) -> n b t h k", n=3, h=self.config.heads)
        if self.config.rotary:
            q, k = rotate(torch.cat([q, k], 2), place, self.config.rotary_base).chunk(2, 2)
        q, k, v = (z.to(state.keys.dtype) for z in (q * q.shape[-1] ** -0.5, k, v))
        pieces = (z.split(STRETCH, 1) for z in (q, k, v, place, resets.cumsum(1)))
        ys = [x.new_zeros(x.shape).unflatten(-1, q.shape[2:])[:, :0]]
        began = resets.new_zeros(len(x), 1, dtype=torch.int64)
        for q_c, k_c, v_c, place_c, segment in zip(*pieces, strict=True):
            if not q_c.shape[1]:
                break
            y, state = self._stretch(q_c, k_c, v_c, place_c, segment - began, state)
            began = segment[:, -1:]
            ys.append(y.to(x.dtype))
        return self.out(torch.cat(ys, 1).flatten(2)), state

    def _stretch(
        self,
        q: Float[Tensor, "B C H K"],
        k: Float[Tensor, "B C H K"],
        v: Float[Tensor, "B C H K"],
        place: Int[Tensor, "B C"],
        segment: Int[Tensor, "B C"],
        state: LongformerState,
    ) -> tuple[Float[Tensor, "B C H K"], LongformerState]:
        """All queries of a stretch with the state's slots and their own."""
        first, window, C = self.config.global_tokens, self.config.window, q.shape[1]
        keys, values = torch.cat([state.keys, k], 1), torch.cat([state.values, v], 1)
        near = torch.arange(window - 1 + C, device=q.device)
        age = near[window - 1 :, None] - near
        before = state.length[:, None] + near[: window - 1] - (window - 1)
        slot_place = torch.cat([before, place], 1)  # below zero: unused
        slot_segment = torch.cat([torch.zeros_like(before), segment], 1)
        same = (slot_segment[:, None] == segment[..., None]) & (slot_place >= 0)[:, None]
        seen = (age >= 0) & same & ((age < window) | (slot_place < first)[:, None])
        start = torch.arange(first, device=q.device)
        forgotten = (start < state.length[:, None] - (window - 1))[:, None]  # and not near as well
        seen = torch.cat([forgotten & (segment == 0)[..., None], seen], -1)
        scores = torch.einsum("bqhk,bshk->bhqs", q, keys)
        weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
        y = torch.einsum("bhqs,bshk->bqhk", weights, values)
        length = place[:, -1] + 1
        final, past = segment[:, -1:], state.length[:, None]
        # Token i of the last segment: kept from before, or at its place among the new ones.
        new = first + window - 1 + C - length[:, None] + start
        ours = torch.where((final == 0) & (start < past), start, new)
        last = torch.arange(C, C + window - 1, device=q.device).expand(len(q), -1) + first
        used = torch.cat(
            [start < length[:, None], last - first - C - window + 1 >= -length[:, None]], 1
        )
        index = torch.cat([ours.clamp(max=keys.shape[1] - 1), last], 1)[..., None, None]
        keys, values = (
            z.gather(1, index.expand(-1, -1, *z.shape[2:])).masked_fill(~used[..., None, None], 0.0)
            for z in (keys, values)
        )
        return y, LongformerState(keys, values, length)
