"""Linear attention (arXiv:2006.16236): softmax's exponential replaced by a product of features.

    S_t = S_{t-1} + phi(k_t) v_t^T;  n_t = n_{t-1} + phi(k_t)        phi(x) = elu(x) + 1
    y_t = W_o (S_t^T phi(q_t) / (phi(q_t) . n_t))

As published: no decay, no positions, biases on every map.
State: B x H x K x (K + 1) floats, constant in T.   Cost: O(T K^2) per head.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.linear_attention import linear_attention


@dataclass(frozen=True, kw_only=True)
class LinearAttentionConfig(MixerConfig):
    """Config of linear attention."""

    name: ClassVar[str] = "linear_attention"
    equation: ClassVar[str] = "S = S + f(k_t) v_t^T;  n = n + f(k_t);  y = S^T f(q_t) / n.f(q_t)"
    source: ClassVar[str] = "Katharopoulos et al. 2020, arXiv:2006.16236"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="linear attention",
        transition="scalar",
        gate="fixed",
        eigenvalues="1",
        ops=("linear_attention",),
    )

    heads: int = 4
    """Number of heads H; must divide the width."""

    def build(self, width: int) -> "LinearAttention":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"linear_attention: heads={self.heads} must divide width={width}")
        return LinearAttention(self, width)


class LinearAttentionState(NamedTuple):
    """What `LinearAttention` carries from one stretch to the next."""

    memory: Float[Tensor, "B H K K+1"]


class LinearAttention(Mixer[LinearAttentionState]):
    """See the module docstring."""

    def __init__(self, config: LinearAttentionConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> LinearAttentionState:
        """Empty memory."""
        weight, heads = self.out.weight, self.config.heads
        head = len(weight) // heads
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        shape = batch, heads, head, head + 1
        return LinearAttentionState(torch.zeros(shape, device=device or weight.device, dtype=dtype))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: LinearAttentionState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], LinearAttentionState]:
        """Mix along T."""
        memory = None if state is None else state.memory
        q, k, v = rearrange(self.qkv(x), "b t (n h k) -> n b t h k", n=3, h=self.config.heads)
        y, memory = linear_attention(
            F.elu(q) + 1, F.elu(k) + 1, v, normalize=True, state=memory, resets=resets
        )
        return self.out(y.flatten(2)), LinearAttentionState(memory)
