"""HGRN2 (arXiv:2404.07904): gated linear attention whose key is what the decay leaves free.

    alpha_t = gamma + (1 - gamma) sigmoid(W_f x_t)        gamma = 0 in the lowest layer
    S_t = diag(alpha_t) S_{t-1} + (1 - alpha_t) v_t^T
    y_t = W_o RMSNorm(S_t^T silu(W_q x_t) / sqrt(K))

The lower bound gamma rises with the layer, so that higher layers remember longer. As published, but
that the paper keeps one table of bounds for the whole model, gamma_l = sum of softmax over the
layers below l: here each layer learns its own, from the same initial value l / L.
State: B x H x K x V floats, constant in T.   Cost: O(T K V) per head.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.ops.linear_attention import linear_attention


@dataclass(frozen=True, kw_only=True)
class HGRN2Config(MixerConfig):
    """Config of HGRN2."""

    name: ClassVar[str] = "hgrn2"
    equation: ClassVar[str] = "S = diag(a_t) S + (1 - a_t) v_t^T;  y = S^T q_t"
    source: ClassVar[str] = "Qin et al. 2024, arXiv:2404.07904"

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
        if not 0 <= self.layer < self.layers:
            raise ValueError(f"hgrn2: want 0 <= layer < layers, got {self.layer} of {self.layers}")
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
        self.qfv = nn.Linear(width, 3 * width, bias=False)
        self.bound = nn.Parameter(torch.empty(width)) if config.layer else None
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.out = nn.Linear(width, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The lower bound sigmoid(bound) is layer / layers; none in the lowest layer."""
        if self.bound is not None:
            low = self.config.layer / self.config.layers
            nn.init.constant_(self.bound, math.log(low / (1 - low)))

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
        g = F.logsigmoid(f.to(torch.promote_types(f.dtype, torch.float32)))
        if self.bound is not None:
            bound = self.bound.to(g.dtype)
            g = torch.logaddexp(F.logsigmoid(bound), F.logsigmoid(-bound) + g)
        q, k, v, g = map(self._heads, (F.silu(q), -torch.expm1(g), v, g))
        y, memory = linear_attention(
            q * q.shape[-1] ** -0.5, k, v, log_decay=g, state=memory, resets=resets
        )
        return self.out(self.norm(y.flatten(2))), HGRN2State(memory)

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b t (h k) -> b t h k", h=self.config.heads)
