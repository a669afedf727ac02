"""Softmax attention with rotary positions and grouped heads, as in today's decoders.

    q, k = rotate(W_q x_t, t), rotate(W_k x_t, t)           t = tokens since the row's last reset
    y_t  = W_o sum_j softmax_j(q_t^T k_j / sqrt(K)) v_j     j over the last `window` tokens, or all

Transformer (arXiv:1706.03762) with rotary positions (arXiv:2104.09864) and, as options, fewer
key-value heads (arXiv:2305.13245), a sliding window (arXiv:2310.06825) and RMS-normed queries and
keys (as in Qwen3, arXiv:2505.09388; before the rotation). No biases. Initial values as in the
first Transformer's code: Xavier uniform, each map for itself.
State: keys (rotated already) and values of the visible past, 2 x B x S x G x K floats; S grows with
every token, to window - 1 at most.   Cost: O(T S H K).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepscan.layers.projection import Linear
from stepscan.layers.rotary import rotate
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.ops.attention import AttentionState, attention
from stepscan.ops.positions import positions


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(MixerConfig):
    """Config of softmax attention."""

    name: ClassVar[str] = "attention"
    equation: ClassVar[str] = "y = sum_j softmax_j(q_t^T k_j / sqrt(K)) v_j"
    source: ClassVar[str] = "Vaswani et al. 2017, arXiv:1706.03762"

    heads: int = 4
    """Number of query heads H; must divide the model width."""
    key_value_heads: int | None = None
    """Number of key and value heads G; must divide `heads`. None: as many."""
    window: int | None = None
    """How many tokens a query sees, its own included. None: all of them."""
    rotary: bool = True
    """Rotate queries and keys to their positions."""
    rotary_base: float = 10000.0
    """Base of the rotations: the slowest takes about 2 pi * base tokens for a turn."""
    qk_norm: bool = False
    """RMS-norm queries and keys, per head."""

    def build(self, width: int) -> "Attention":
        """Build the module for a model of this width."""
        groups = self.heads if self.key_value_heads is None else self.key_value_heads
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"attention: heads={self.heads} must divide width={width}")
        if groups < 1 or self.heads % groups:
            raise ValueError(f"attention: key_value_heads={groups} must divide heads={self.heads}")
        if self.rotary and width // self.heads % 2:
            size = width // self.heads
            raise ValueError(f"attention: rotary wants an even head size, width / heads is {size}")
        if self.window is not None and self.window < 2:
            raise ValueError(f"attention: want window at least 2 or None, got {self.window}")
        return Attention(self, width, groups)


class Attention(Mixer[AttentionState]):
    """See the module docstring."""

    def __init__(self, config: AttentionConfig, width: int, groups: int) -> None:
        super().__init__()
        self.config = config
        self.head_size = width // config.heads
        self.groups = groups
        self.sizes = (width, groups * self.head_size, groups * self.head_size)
        self.qkv = Linear(width, sum(self.sizes), bias=False)
        self.q_norm = nn.RMSNorm(self.head_size) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(self.head_size) if config.qk_norm else None
        self.out = Linear(width, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values."""
        for weight in (*self.qkv.weight.split(self.sizes), self.out.weight):
            nn.init.xavier_uniform_(weight)
        for norm in (self.q_norm, self.k_norm):
            if norm is not None:
                norm.reset_parameters()

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> AttentionState:
        """No past yet: no slots."""
        weight = self.out.weight
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        empty = weight.new_zeros(
            (batch, 0, self.groups, self.head_size), device=device, dtype=dtype
        )
        length = torch.zeros(batch, device=empty.device, dtype=torch.int64)
        return AttentionState(empty, empty.clone(), length)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: AttentionState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], AttentionState]:
        """Mix along T."""
        q, k, v = (
            rearrange(part, "b t (h k) -> b t h k", k=self.head_size)
            for part in self.qkv(x).split(self.sizes, -1)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.config.rotary:
            place = _positions(x, state, resets)
            both = rotate(torch.cat([q, k], 2), place, self.config.rotary_base)
            q, k = both.split((self.config.heads, self.groups), 2)
        q = q * self.head_size**-0.5
        y, state = attention(q, k, v, window=self.config.window, state=state, resets=resets)
        return self.out(rearrange(y, "b t h k -> b t (h k)")), state


def _positions(x: Tensor, state: AttentionState | None, resets: Tensor | None) -> Tensor:
    """Positions [B T], or [1 T] where all rows agree."""
    if resets is not None:
        before = x.new_zeros(len(x), dtype=torch.int64) if state is None else state.length
        return positions(before, resets)
    steps = torch.arange(x.shape[1], device=x.device)
    return steps[None] if state is None else state.length[:, None] + steps
