"""HGRN2 (arXiv:2404.07904): gated linear attention whose key is what the decay leaves free.

    alpha_t = gamma + (1 - gamma) sigmoid(W_f x_t)        gamma = 0 in the lowest layer
    S_t = diag(alpha_t) S_{t-1} + (1 - alpha_t) v_t^T
    y_t = W_o RMSNorm(S_t^T silu(W_q x_t) / sqrt(K))

As published, but for where the bounds gamma are kept: `layers/lower_bound.py`.
State: B x H x K x V floats, constant in T.   Cost: O(T K V) per head.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.lower_bound import log_forget, lower_bound
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.linear_attention import linear_attention


@dataclass(frozen=True, kw_only=True)
class HGRN2Config(MixerConfig):
    """Config of HGRN2."""

    name: ClassVar[str] = "hgrn2"
    equation: ClassVar[str] = "S = diag(a_t) S + (1 - a_t) v_t^T;  y = S^T q_t"
    source: ClassVar[str] = "Qin et al. 2024, arXiv:2404.07904"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="linear attention",
        transition="diagonal",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("linear_attention",),
    )

    heads: int = 4
    """Number of heads H; must divide the width. Published: width / 128."""
    layer: int = 0
    """Which layer of the model this is, 0 the lowest: sets the initial lower bound."""
    layers: int = 1
    """How many layers the model has."""

    def build(self, width: int) -> "HGRN2":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"hgrn2: heads={self.heads} must divide width={width}")
        return HGRN2(self, width)


class HGRN2State(NamedTuple):
    """What `HGRN2` carries from one stretch to the next."""

    memory: Float[Tensor, "B H K K"]


class HGRN2(Mixer[HGRN2State]):
    """See the module docstring."""

    no_decay = ("bound",)

    def __init__(self, config: HGRN2Config, width: int) -> None:
        super().__init__()
        self.config = config
        self.qfv = Linear(width, 3 * width, bias=False)
        self.bound = lower_bound(width, config.layer, config.layers)
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.out = Linear(width, width, bias=False)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> HGRN2State:
        """Empty memory."""
        weight, heads = self.out.weight, self.config.heads
        head = len(weight) // heads
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        shape = batch, heads, head, head
        return HGRN2State(torch.zeros(shape, device=device or weight.device, dtype=dtype))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: HGRN2State | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], HGRN2State]:
        """Mix along T."""
        memory = None if state is None else state.memory
        q, f, v = self.qfv(x).chunk(3, -1)
        g = log_forget(f, self.bound)
        q, k, v, g = map(self._heads, (F.silu(q), -torch.expm1(g), v, g))
        y, memory = linear_attention(
            q * q.shape[-1] ** -0.5, k, v, log_decay=g, state=memory, resets=resets
        )
        return self.out(self.norm(y.flatten(2))), HGRN2State(memory)

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b t (h k) -> b t h k", h=self.config.heads)
