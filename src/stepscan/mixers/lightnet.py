"""LightNet (arXiv:2405.21022): linear attention whose decay is a running softmax of the keys.

    z_t = log sum_{j <= t} e^{k_j}                                           one per key channel
    S_t = diag(e^{z_{t-1} - z_t}) S_{t-1} + e^{k_t - z_t} v_t^T             z before the first: -inf
    y_t = W_o (RMSNorm(S_t^T silu(W_q x_t) / sqrt(K)) * silu(W_2 W_1 x_t))   the norm over all heads

So row d of S is the mean of all values so far, each weighed by e^{k_d}: an additive recurrence,
which one scan in any order computes. As published, without the positions of the authors' later code
(LRPE) and with the first token at full weight; the gate's rank is a head's size.
State: B x H x K x K floats and z, constant in T.   Cost: O(T K^2) per head.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.ops.linear_attention import linear_attention
from stepscan.ops.semiring_scan import semiring_scan


@dataclass(frozen=True, kw_only=True)
class LightNetConfig(MixerConfig):
    """Config of LightNet."""

    name: ClassVar[str] = "lightnet"
    equation: ClassVar[str] = (
        "z' = log(e^z + e^k_t);  S = diag(e^(z - z')) S + e^(k_t - z') v_t^T;  y = S^T q_t"
    )
    source: ClassVar[str] = "Qin et al. 2024, arXiv:2405.21022"

    heads: int = 4
    """Number of heads H; must divide the width."""

    def build(self, width: int) -> "LightNet":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"lightnet: heads={self.heads} must divide width={width}")
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
        head = width // config.heads
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
        """Mix along T."""
        memory, log_sum = self.init_state(len(x)) if state is None else state
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
        y = self.norm(y.flatten(2)) * F.silu(self.gate(x))
        return self.out(y), LightNetState(memory, last)
