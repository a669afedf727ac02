"""Performer (arXiv:2009.14794): softmax attention estimated by random positive features (FAVOR+).

    phi(x)_i = exp(w_i . x - |x|^2 / 2) / sqrt(m)            E[phi(q) . phi(k)] = exp(q . k)
    S_t = S_{t-1} + phi(k_t) v_t^T;  n_t = n_{t-1} + phi(k_t)
    y_t = W_o (S_t^T phi(q_t) / (phi(q_t) . n_t))            q and k scaled by K^(-1/4)

m directions w, a buffer shared by the heads: random orthogonal rows in groups of K, as long as
normal vectors are. They stay as they were drawn; `redraw()` takes others, which is published for
every thousandth step of training. Published is to keep exp in range by the largest exponent of
all keys, which looks ahead; here by that of the keys so far, part of the state, which changes no
result, and without the published 1e-4 added to every feature.
State: B x H x m x (K + 1) floats and a scale per head, constant in T.   Cost: O(T m K) per head.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.linear_attention import ScaledMemory, linear_attention


@dataclass(frozen=True, kw_only=True)
class PerformerConfig(MixerConfig):
    """Config of attention by random features."""

    name: ClassVar[str] = "performer"
    equation: ClassVar[str] = (
        "S = S + f(k_t) v_t^T;  y = S^T f(q_t) / n.f(q_t);  f(x)_i = exp(w_i.x - |x|^2/2)"
    )
    source: ClassVar[str] = "Choromanski et al. 2020, arXiv:2009.14794"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="linear attention",
        transition="scalar",
        gate="fixed",
        eigenvalues="1",
        ops=("linear_attention",),
    )

    heads: int = 4
    """Number of heads H; must divide the width."""
    features: int = 64
    """Random features m per head; the error of the estimate falls with their root."""

    def build(self, width: int) -> "Performer":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"performer: heads={self.heads} must divide width={width}")
        if self.features < 1:
            raise ValueError(f"performer: want features at least 1, got {self.features}")
        return Performer(self, width)


class PerformerState(NamedTuple):
    """What `Performer` carries from one stretch to the next: e^log_scale times `memory`."""

    memory: Float[Tensor, "B H m K+1"]
    log_scale: Float[Tensor, "B H"]


class Performer(Mixer[PerformerState]):
    """See the module docstring."""

    directions: Tensor

    def __init__(self, config: PerformerConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.qkv = Linear(width, 3 * width, bias=False)
        self.out = Linear(width, width, bias=False)
        shape = config.features, width // config.heads
        self.register_buffer("directions", orthogonal_directions(*shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values of the maps."""
        for weight in (*self.qkv.weight.chunk(3), self.out.weight):
            nn.init.xavier_uniform_(weight)

    def redraw(self) -> None:
        """Other directions: a state from before does not belong to them."""
        self.directions.copy_(orthogonal_directions(*self.directions.shape))

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> PerformerState:
        """Empty memory."""
        weight, heads = self.out.weight, self.config.heads
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        shape = batch, heads, self.config.features, len(weight) // heads + 1
        memory = torch.zeros(shape, device=device or weight.device, dtype=dtype)
        return PerformerState(memory, memory.new_zeros(shape[:2]))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: PerformerState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], PerformerState]:
        """Mix along T."""
        q, k, v = rearrange(self.qkv(x), "b t (n h k) -> n b t h k", n=3, h=self.config.heads)
        scale = q.shape[-1] ** -0.25
        q, _ = positive_features(scale * q, self.directions)  # a query's own factor cancels
        k, log_scale = positive_features(scale * k, self.directions)
        # No gradient for scales: whatever they are cancels, and a maximum has none where two tie.
        y, after = linear_attention(
            q,
            k,
            v,
            log_input=log_scale,
            normalize=True,
            state=None if state is None else ScaledMemory(state.memory, state.log_scale.detach()),
            resets=resets,
        )
        assert isinstance(after, ScaledMemory)
        return self.out(y.flatten(2)), PerformerState(*after)


def positive_features(
    x: Float[Tensor, "*n K"], directions: Float[Tensor, "m K"]
) -> tuple[Float[Tensor, "*n m"], Float[Tensor, "*n"]]:
    """phi(x) is e^log_scale times the first, whose largest entry is 1 / sqrt(m)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    x, directions = x.to(wide), directions.to(wide)
    exponents = x @ directions.mT - x.square().sum(-1, keepdim=True) / 2
    log_scale = exponents.amax(-1).detach()
    features = (exponents - log_scale[..., None]).exp() * len(directions) ** -0.5
    return features, log_scale


def orthogonal_directions(count: int, size: int) -> Float[Tensor, "m K"]:
    """Normal vectors, at right angles in groups of `size`."""
    groups = -(-count // size)
    Q, R = torch.linalg.qr(torch.randn(groups, size, size))
    even = Q * R.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # QR's own signs are not random ones
    rows = even.mT.flatten(0, 1)[:count]
    return rows * torch.randn(count, size).norm(dim=-1, keepdim=True)
