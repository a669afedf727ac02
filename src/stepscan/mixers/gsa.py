"""Gated slot attention (GSA, arXiv:2409.07146): softmax attention over slots that forget.

    alpha_t = sigmoid(W_f x_t)^(1/8),   s_t = 1 - alpha_t                one per slot and head
    A_t = A_{t-1} diag(alpha_t) + k_t s_t^T;   C_t = diag(alpha_t) C_{t-1} + s_t v_t^T
    y_t = W_o RMSNorm(silu(C_t^T softmax(A_t^T q_t)))                    the norm over all heads

q, k and v are SiLUs of linear maps. As published: as many slots as a head has channels, no
convolution, no positions, no scale on q.
State: B x H x (K x M + M x K) floats for M slots, constant in T.   Cost: O(T K M) per head.
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
from stepscan.ops.slot_attention import SlotState, slot_attention


@dataclass(frozen=True, kw_only=True)
class GSAConfig(MixerConfig):
    """Config of gated slot attention."""

    name: ClassVar[str] = "gsa"
    equation: ClassVar[str] = (
        "A = A diag(a_t) + k_t s_t^T;  C = diag(a_t) C + s_t v_t^T;  y = C^T softmax(A^T q_t)"
    )
    source: ClassVar[str] = "Zhang et al. 2024, arXiv:2409.07146"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="linear attention",
        transition="diagonal",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("slot_attention",),
    )

    heads: int = 4
    """Number of heads H; must divide the width."""
    slots: int | None = None
    """Slots M per head. None: as many as a head has channels."""
    decay_power: float = 8.0
    """alpha = sigmoid(logit)^(1 / decay_power): the higher, the longer the memory."""

    def build(self, width: int) -> "GSA":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"gsa: heads={self.heads} must divide width={width}")
        slots = width // self.heads if self.slots is None else self.slots
        if slots < 1 or not self.decay_power > 0:
            raise ValueError(
                f"gsa: want slots at least 1 and decay_power above 0, got {slots} and "
                f"{self.decay_power}"
            )
        return GSA(self, width, slots)


class GSA(Mixer[SlotState]):
    """See the module docstring."""

    def __init__(self, config: GSAConfig, width: int, slots: int) -> None:
        super().__init__()
        self.config = config
        self.sizes = (width, width, width, config.heads * slots)
        self.inputs = Linear(width, sum(self.sizes), bias=False)
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.out = Linear(width, width, bias=False)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> SlotState:
        """Empty slots."""
        weight, heads = self.out.weight, self.config.heads
        head, slots = len(weight) // heads, self.sizes[3] // heads
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        shape = batch, heads, head, slots
        keys = torch.zeros(shape, device=device or weight.device, dtype=dtype)
        return SlotState(keys, torch.zeros_like(keys).mT.contiguous())

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: SlotState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], SlotState]:
        """Mix along T."""
        parts = (p.unflatten(-1, (self.config.heads, -1)) for p in self._inputs(x))
        q, k, v, f = parts
        g = F.logsigmoid(f.to(torch.promote_types(f.dtype, torch.float32)))
        g = g / self.config.decay_power
        y, state = slot_attention(
            F.silu(q),
            F.silu(k),
            F.silu(v),
            s=-torch.expm1(g),
            log_decay=g,
            state=state,
            resets=resets,
        )
        return self.out(self.norm(F.silu(y.flatten(2)))), state

    def _inputs(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.inputs(x).split(self.sizes, -1)
