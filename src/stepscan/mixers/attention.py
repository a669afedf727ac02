"""Softmax attention with rotary positions and grouped heads, as in today's decoders.

    q, k = rotate(W_q x_t, t), rotate(W_k x_t, t)           t = tokens since the row's last reset
    y_t  = W_o sum_j softmax_j(q_t^T k_j / sqrt(K)) v_j     j over the last `window` tokens, or all

Transformer (arXiv:1706.03762) with rotary positions (arXiv:2104.09864) and, as options, fewer
key-value heads (arXiv:2305.13245), a sliding window (arXiv:2310.06825) and RMS-normed queries and
keys (as in Qwen3, arXiv:2505.09388; before the rotation). Biases are optional, and so is a gate,
y = W_o (sigmoid(W_g x_t) * ...), one per channel of each head (arXiv:2505.06708). With
`causal=False` j runs over the whole stretch, and over the past before it through the state. Initial
values as in the first Transformer's code: Xavier uniform, each map for itself.
State: keys (rotated already) and values of the visible past, 2 x B x S x G x K floats; S grows with
every token, to window - 1 at most.   Cost: O(T S H K).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepscan.layers.bidirectional import attend_both_ways
from stepscan.layers.projection import Linear
from stepscan.layers.rotary import Stretch, rotate
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.attention import AttentionState, attention
from stepscan.ops.positions import positions


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(MixerConfig):
    """Config of softmax attention."""

    name: ClassVar[str] = "attention"
    equation: ClassVar[str] = "y = sum_j softmax_j(q_t^T k_j / sqrt(K)) v_j"
    source: ClassVar[str] = "Vaswani et al. 2017, arXiv:1706.03762"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="softmax attention",
        ops=("attention",),
    )

    heads: int = 4
    """Number of query heads H; must divide the model width, unless `head_size` is given."""
    head_size: int | None = None
    """Channels K of a head. None: width / heads."""
    key_value_heads: int | None = None
    """Number of key and value heads G; must divide `heads`. None: as many."""
    window: int | None = None
    """How many tokens a query sees, its own included. None: all of them."""
    rotary: bool = True
    """Rotate queries and keys to their positions."""
    rotary_base: float = 10000.0
    """Base of the rotations: the slowest takes about 2 pi * base tokens for a turn."""
    rotary_part: float = 1.0
    """The part of each head's channels that is rotated."""
    rotary_stretch: tuple[float, ...] | None = None
    """Slow the slow rotations for long texts, as Llama 3.1 does: (factor, low, high, original
    length), see `layers/rotary.py`. None: not."""
    qk_norm: bool = False
    """RMS-norm queries and keys, per head."""
    qk_norm_whole: bool = False
    """Norm all heads of the queries at once, and of the keys, as in OLMo 2; with `qk_norm`."""
    norm_eps: float | None = None
    """Added to their mean square; None: the machine's."""
    qkv_bias: bool = False
    """Add biases to queries, keys and values."""
    out_bias: bool = False
    """Add a bias to the output."""
    output_gate: bool = False
    """Gate what the heads read, by the input, before the output map."""
    dropout: float = 0.0
    """Probability of dropping a weight of the softmax while training."""
    causal: bool = True
    """Look back only. False: at the whole stretch, both ways, as BERT does (arXiv:1810.04805)."""

    def build(self, width: int) -> "Attention":
        """Build the module for a model of this width."""
        groups = self.heads if self.key_value_heads is None else self.key_value_heads
        if self.heads < 1 or (self.head_size is None and width % self.heads):
            raise ValueError(f"attention: heads={self.heads} must divide width={width}")
        size = width // self.heads if self.head_size is None else self.head_size
        if size < 1:
            raise ValueError(f"attention: want head_size at least 1 or None, got {size}")
        if groups < 1 or self.heads % groups:
            raise ValueError(f"attention: key_value_heads={groups} must divide heads={self.heads}")
        turned = round(size * self.rotary_part)
        if self.rotary and (not 0 < turned <= size or turned % 2):
            raise ValueError(
                f"attention: rotary wants an even head size, width / heads is {size}, of which "
                f"rotary_part={self.rotary_part} turns {turned}"
            )
        _check_stretch(self.rotary_stretch)
        if self.qk_norm_whole and not self.qk_norm:
            raise ValueError("attention: qk_norm_whole wants qk_norm; set it too")
        if self.window is not None and self.window < 2:
            raise ValueError(f"attention: want window at least 2 or None, got {self.window}")
        if self.window is not None and not self.causal:
            raise ValueError("attention: want window None with causal=False; leave one of them out")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"attention: want 0 <= dropout < 1, got {self.dropout}")
        return Attention(self, width, size, groups)


class Attention(Mixer[AttentionState]):
    """See the module docstring."""

    def __init__(self, config: AttentionConfig, width: int, size: int, groups: int) -> None:
        super().__init__()
        self.config = config
        self.causal = config.causal
        self.head_size = size
        self.groups = groups
        self.turned = round(size * config.rotary_part)
        self.stretch = Stretch(*config.rotary_stretch) if config.rotary_stretch else None
        self.sizes = (config.heads * size, groups * size, groups * size)
        self.qkv = Linear(width, sum(self.sizes), bias=config.qkv_bias)
        normed = self.sizes[:2] if config.qk_norm_whole else (size, size)
        self.q_norm, self.k_norm = (
            nn.RMSNorm(n, eps=config.norm_eps) if config.qk_norm else None for n in normed
        )
        gate = Linear(width, self.sizes[0], bias=config.qkv_bias) if config.output_gate else None
        self.gate = gate
        self.out = Linear(self.sizes[0], width, bias=config.out_bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values."""
        for weight in (*self.qkv.weight.split(self.sizes), self.out.weight):
            nn.init.xavier_uniform_(weight)
        if self.gate is not None:
            nn.init.xavier_uniform_(self.gate.weight)
        for layer in (self.qkv, self.gate, self.out):
            if layer is not None and layer.bias is not None:
                nn.init.zeros_(layer.bias)
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
        q, k, v = self.qkv(x).split(self.sizes, -1)
        if self.config.qk_norm_whole:
            q, k = self._normed(q, k)
        q, k, v = (rearrange(y, "b t (h k) -> b t h k", k=self.head_size) for y in (q, k, v))
        if not self.config.qk_norm_whole:
            q, k = self._normed(q, k)
        if self.config.rotary:
            place = _positions(x, state, resets)
            base, both = self.config.rotary_base, torch.cat([q, k], 2)
            both = rotate(both, place, base, size=self.turned, stretch=self.stretch)
            q, k = both.split((self.config.heads, self.groups), 2)
        q = q * self.head_size**-0.5
        dropout = self.config.dropout if self.training else 0.0
        if self.causal:
            y, state = attention(
                q,
                k,
                v,
                window=self.config.window,
                state=state,
                resets=resets,
                dropout=dropout,
            )
        else:
            y, state = attend_both_ways(q, k, v, state=state, resets=resets, dropout=dropout)
        y = rearrange(y, "b t h k -> b t (h k)")
        if self.gate is not None:
            y = torch.sigmoid(self.gate(x)) * y
        return self.out(y), state

    def _normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.q_norm is None or self.k_norm is None:
            return q, k
        return self.q_norm(q), self.k_norm(k)


def _check_stretch(stretch: tuple[float, ...] | None) -> None:
    if stretch is None:
        return
    if len(stretch) != 4 or min(stretch) <= 0 or stretch[1] >= stretch[2]:
        raise ValueError(
            "attention: want rotary_stretch (factor, low, high, original length), all above 0 and "
            f"low < high, got {stretch}"
        )


def _positions(x: Tensor, state: AttentionState | None, resets: Tensor | None) -> Tensor:
    """Positions [B T], or [1 T] where all rows agree."""
    if resets is not None:
        before = x.new_zeros(len(x), dtype=torch.int64) if state is None else state.length
        return positions(before, resets)
    steps = torch.arange(x.shape[1], device=x.device)
    return steps[None] if state is None else state.length[:, None] + steps
