"""Retention (RetNet, arXiv:2307.08621): linear attention with one fixed decay per head.

    S_t = gamma_h S_{t-1} + k_t v_t^T        gamma_h = 1 - 2^(-5 - h),  h = 0 .. H - 1
    y_t = W_o (RMSNorm(S_t^T q_t) * swish(W_g x_t))        the norm per head, without weights

q and k are rotated to their positions, k is scaled by 1 / sqrt(K). As published, with the initial
values of the authors' code; the paper's division of the scores is left out, as the norm undoes it.
State: B x H x K x V floats and a count of tokens, constant in T.   Cost: O(T K V) per head.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.projection import Linear
from stepscan.layers.rotary import rotate
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.arguments import as_resets
from stepscan.ops.linear_attention import linear_attention
from stepscan.ops.positions import positions


@dataclass(frozen=True, kw_only=True)
class RetNetConfig(MixerConfig):
    """Config of retention."""

    name: ClassVar[str] = "retnet"
    equation: ClassVar[str] = "S = a_h S + k_t v_t^T;  y = S^T q_t;  a_h fixed, q and k rotated"
    source: ClassVar[str] = "Sun et al. 2023, arXiv:2307.08621"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="linear attention",
        transition="scalar",
        gate="fixed",
        eigenvalues="[0, 1]",
        ops=("linear_attention",),
    )

    heads: int = 4
    """Number of heads H, each with its own decay; width / heads must be even."""
    value_ratio: float = 2.0
    """Width of all values together, as a multiple of the model width."""

    def build(self, width: int) -> "RetNet":
        """Build the module for a model of this width."""
        values = round(width * self.value_ratio)
        if self.heads < 1 or width % (2 * self.heads) or values % self.heads or values < 1:
            raise ValueError(
                f"retnet: heads={self.heads} must divide width={width} into even parts, and the "
                f"values={values}"
            )
        return RetNet(self, width, values)


class RetNetState(NamedTuple):
    """What `RetNet` carries from one stretch to the next."""

    memory: Float[Tensor, "B H K V"]
    length: Int[Tensor, "B"]
    """Tokens since the row began: the position of the next one."""


class RetNet(Mixer[RetNetState]):
    """See the module docstring."""

    def __init__(self, config: RetNetConfig, width: int, values: int) -> None:
        super().__init__()
        self.config = config
        self.query = Linear(width, width, bias=False)
        self.key = Linear(width, width, bias=False)
        self.value = Linear(width, values, bias=False)
        self.gate = Linear(width, values, bias=False)
        self.out = Linear(values, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values, those of the authors' code."""
        for layer in (self.query, self.key, self.value, self.gate):
            nn.init.xavier_uniform_(layer.weight, gain=2**-2.5)
        nn.init.xavier_uniform_(self.out.weight, gain=0.5)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> RetNetState:
        """Empty memory at position 0."""
        weight, heads = self.out.weight, self.config.heads
        width, values = weight.shape
        device = device or weight.device
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        memory = torch.zeros(
            batch, heads, width // heads, values // heads, device=device, dtype=dtype
        )
        return RetNetState(memory, torch.zeros(batch, dtype=torch.int64, device=device))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: RetNetState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], RetNetState]:
        """Mix along T."""
        memory, length = self.init_state(x.shape[0]) if state is None else state
        q, k, v = (
            rearrange(layer(x), "b t (h k) -> b t h k", h=self.config.heads)
            for layer in (self.query, self.key, self.value)
        )
        at = positions(length, as_resets(resets, x))
        q, k = rotate(q, at), rotate(k, at) * k.shape[-1] ** -0.5
        rates = torch.arange(self.config.heads, device=x.device, dtype=memory.dtype)
        log_decay = torch.log1p(-torch.exp2(-5 - rates)).expand(v.shape[:3])
        y, memory = linear_attention(q, k, v, log_decay=log_decay, state=memory, resets=resets)
        y = F.rms_norm(y, y.shape[-1:], eps=1e-6).flatten(2) * F.silu(self.gate(x))
        length = torch.cat([length[:, None], at + 1], 1)[:, -1]
        return self.out(y), RetNetState(memory, length)
