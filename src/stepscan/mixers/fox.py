"""Forgetting attention (FoX, arXiv:2503.02130): softmax attention with a forget gate.

    f_t = sigmoid(W_f x_t + b)                                                 one per head
    y_t = W_o sum_j softmax_j(q_t^T k_j / sqrt(K) + sum_{j < m <= t} log f_m) v_j

The gates say where a token stands, so there are no rotary positions. As published, its first kind;
of the second one ("Pro") `qk_norm` and `output_gate` (RMS norm per head, times sigmoid(W_g x_t))
are here, the shift of keys and values is left out. Gates have a bias, which starts at 0.
State: keys, values and decays of all tokens, B x S x H x (2 K + 1) floats; S grows by one a token.
Cost: O(T S K) per head.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.fading_cache import FadingCache
from stepscan.ops.forgetting_attention import forgetting_attention


@dataclass(frozen=True, kw_only=True)
class FoXConfig(MixerConfig):
    """Config of forgetting attention."""

    name: ClassVar[str] = "fox"
    equation: ClassVar[str] = "y = sum_j softmax_j(q_t^T k_j / sqrt(K) + sum_(j<m<=t) log f_m) v_j"
    source: ClassVar[str] = "Lin et al. 2025, arXiv:2503.02130"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="softmax attention",
        gate="input",
        ops=("forgetting_attention",),
    )

    heads: int = 4
    """Number of heads H; must divide the width."""
    qk_norm: bool = False
    """RMS-norm queries and keys, per head."""
    output_gate: bool = False
    """RMS-norm what is read, per head, and gate it by the input."""

    def build(self, width: int) -> "FoX":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"fox: heads={self.heads} must divide width={width}")
        return FoX(self, width)


class FoX(Mixer[FadingCache]):
    """See the module docstring."""

    def __init__(self, config: FoXConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.head = width // config.heads
        self.qkv = Linear(width, 3 * width, bias=False)
        self.forget = Linear(width, config.heads)
        self.q_norm = nn.RMSNorm(self.head) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(self.head) if config.qk_norm else None
        self.norm = nn.RMSNorm(self.head) if config.output_gate else None
        self.gate = Linear(width, width, bias=False) if config.output_gate else None
        self.out = Linear(width, width, bias=False)
        nn.init.zeros_(self.forget.bias)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> FadingCache:
        """No past yet: no slots."""
        weight = self.out.weight
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        shape = batch, 0, self.config.heads, self.head
        empty = torch.zeros(shape, device=device or weight.device, dtype=dtype)
        length = torch.zeros(batch, device=empty.device, dtype=torch.int64)
        return FadingCache(empty, empty.clone(), empty[..., 0].clone(), length)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: FadingCache | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], FadingCache]:
        """Mix along T."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.config.heads, self.head)).unbind(2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        wide = torch.promote_types(x.dtype, torch.float32)
        g = F.logsigmoid(self.forget(x).to(wide))
        y, state = forgetting_attention(
            q * self.head**-0.5, k, v, log_decay=g, state=state, resets=resets
        )
        y = y if self.norm is None else self.norm(y)
        y = y.flatten(2)
        if self.gate is not None:
            y = y * torch.sigmoid(self.gate(x))
        return self.out(y), state
