"""Softmax attention cut off: the Taylor polynomial of its exponential, as one linear recurrence.

    phi(q) . phi(k) = sum_n (q . k)^n / n!                                    n = 0 .. order
    S_t = S_{t-1} + phi(k_t) v_t^T;  z_t = z_{t-1} + phi(k_t)
    y_t = W_o (S_t^T phi(q_t) * G_t)        q scaled by 1 / sqrt(K)

G is what softmax attention is as a recurrent network: `read="denominator"`, 1 / (z_t . phi(q_t)),
which becomes softmax as the order grows; or, as the authors put in its place, `"norm"`, an RMS norm
per head, and `"gate"`, sigmoid(W_g x_t), a number per head. The denominator wants an even order: a
polynomial of odd order may be zero. No positions; which initial values the authors take is not
known here: those of a linear map.
State: B x H x C(K + order, order) x (V + 1) floats, V without a denominator; constant in T.
Cost: O(T C(K + order, order) V) per head, so K is small.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepscan.layers.projection import Linear
from stepscan.layers.taylor import TaylorFeatures
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.linear_attention import linear_attention

READS = ("denominator", "norm", "gate")


@dataclass(frozen=True, kw_only=True)
class TaylorSoftmaxConfig(MixerConfig):
    """Config of softmax attention's Taylor polynomial."""

    name: ClassVar[str] = "taylor_softmax"
    equation: ClassVar[str] = (
        "S = S + f(k_t) v_t^T;  y = S^T f(q_t) / z.f(q_t);  f(q).f(k) = sum_n (q.k)^n / n!"
    )
    source: ClassVar[str] = "Mongaras and Larson 2025, arXiv:2507.23632"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="linear attention",
        transition="scalar",
        gate="fixed",
        eigenvalues="1",
        ops=("linear_attention",),
    )

    heads: int = 4
    """Number of heads H; must divide the width."""
    key_size: int = 8
    """Size K of queries and keys, per head."""
    order: int = 2
    """Highest power of q . k; even with a denominator."""
    read: Literal["denominator", "norm", "gate"] = "denominator"
    """What keeps the sum over the past in bounds."""

    def build(self, width: int) -> "TaylorSoftmax":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"taylor_softmax: heads={self.heads} must divide width={width}")
        if self.key_size < 1 or self.order < 1:
            raise ValueError(
                "taylor_softmax: want key_size and order at least 1, "
                f"got {self.key_size} and {self.order}"
            )
        if self.read not in READS:
            raise ValueError(f"taylor_softmax: want read one of {READS}, got {self.read!r}")
        if self.read == "denominator" and self.order % 2:
            raise ValueError(
                f"taylor_softmax: a denominator of order={self.order} may be zero; take an even "
                "order, or read='norm' or 'gate'"
            )
        features = math.comb(self.key_size + self.order, self.order)
        if features > 2**16:
            raise ValueError(
                f"taylor_softmax: {features:,} features per head are too many; lower key_size="
                f"{self.key_size} or order={self.order}"
            )
        return TaylorSoftmax(self, width)


class TaylorSoftmaxState(NamedTuple):
    """What `TaylorSoftmax` carries from one stretch to the next."""

    memory: Float[Tensor, "B H P V"]


class TaylorSoftmax(Mixer[TaylorSoftmaxState]):
    """See the module docstring."""

    def __init__(self, config: TaylorSoftmaxConfig, width: int) -> None:
        super().__init__()
        self.config = config
        keys = config.heads * config.key_size
        self.sizes = (keys, keys, width)
        self.qkv = Linear(width, sum(self.sizes), bias=False)
        self.features = TaylorFeatures(config.key_size, config.order)
        self.norm = nn.RMSNorm(width // config.heads) if config.read == "norm" else None
        self.gate = Linear(width, config.heads) if config.read == "gate" else None
        self.out = Linear(width, width, bias=False)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> TaylorSoftmaxState:
        """Empty memory."""
        weight, heads = self.out.weight, self.config.heads
        columns = len(weight) // heads + (self.config.read == "denominator")
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        shape = batch, heads, self.features.size, columns
        return TaylorSoftmaxState(torch.zeros(shape, device=device or weight.device, dtype=dtype))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: TaylorSoftmaxState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], TaylorSoftmaxState]:
        """Mix along T."""
        memory = None if state is None else state.memory
        q, k, v = (part.unflatten(-1, (self.config.heads, -1)) for part in self._qkv(x))
        y, memory = linear_attention(
            self.features(q * q.shape[-1] ** -0.5),
            self.features(k),
            v,
            normalize=self.config.read == "denominator",
            state=memory,
            resets=resets,
        )
        if self.norm is not None:
            y = self.norm(y)
        if self.gate is not None:
            y = y * torch.sigmoid(self.gate(x))[..., None]
        return self.out(y.flatten(2)), TaylorSoftmaxState(memory)

    def _qkv(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x).split(self.sizes, -1)
