"""RWKV-7 "Goose" (arXiv:2503.14456), its time mixing: decay, erasing and writing all by the input.

    x_* = x_t + mix_* (x_{t-1} - x_t)                          one mix for each of r, w, k, v, a, g
    w = exp(-e^(-1/2) sigmoid(w_0 + tanh(x_w W_1) W_2))        decay, one per key channel
    a = sigmoid(a_0 + x_a A_1 A_2)                             in-context learning rate
    e = unit(k * key_scale),   k = k (1 + (a - 1) key_rate)    r, k, v linear in x_r, x_k, x_v
    S_t = diag(w) S_{t-1} - (a * e) (e^T S_{t-1}) + k v^T
    y_t = W_o ((GroupNorm(S_t^T r) + (r . bonus k) v) * (sigmoid(x_g G_1) G_2))

Initial values as in the authors' code, by depth. Deviations: the value residual to the first layer
is left out (a mixer does not see other layers); `unit` divides by sqrt(|k|^2 + 1e-6), as gradients
at k = 0 explode otherwise; heads divide the width instead of having a fixed size of 64; low ranks
are at most half the width.
State: B x H x K x K floats and the last input, constant in T.   Cost: O(T K K) per head.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.delta_inputs import unit
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.dplr import dplr

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class RWKV7Config(MixerConfig):
    """Config of RWKV-7."""

    name: ClassVar[str] = "rwkv7"
    equation: ClassVar[str] = "S = diag(w_t) S - (a_t e_t) (e_t^T S) + k_t v_t^T;  y = S^T r_t"
    source: ClassVar[str] = "Peng et al. 2025, arXiv:2503.14456"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="delta rule",
        transition="householder",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("dplr",),
    )

    heads: int = 4
    """Number of heads H; must divide the width, and leave 2 channels or more to each."""
    layer: int = 0
    """Index of the layer, 0 the lowest: initial values depend on it."""
    layers: int = 1
    """Number of layers of the model."""

    def build(self, width: int) -> "RWKV7":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads or width < 2 * self.heads:
            raise ValueError(
                f"rwkv7: heads={self.heads} must divide width={width} into 2 channels or more"
            )
        if not 0 <= self.layer < self.layers:
            raise ValueError(f"rwkv7: want 0 <= layer < layers, got {self.layer} and {self.layers}")
        return RWKV7(self, width)


class RWKV7State(NamedTuple):
    """What `RWKV7` carries from one stretch to the next."""

    memory: Float[Tensor, "B H K K"]
    last: Float[Tensor, "B D"]


class RWKV7(Mixer[RWKV7State]):
    """See the module docstring."""

    no_decay = (
        "mix",
        "bonus",
        *(f"{name}.{side}.weight" for name in ("decay", "rate", "gate") for side in ("down", "up")),
    )

    def __init__(self, config: RWKV7Config, width: int) -> None:
        super().__init__()
        self.config = config
        self.mix = nn.Parameter(torch.empty(6, width))
        self.receptance = Linear(width, width, bias=False)
        self.key = Linear(width, width, bias=False)
        self.value = Linear(width, width, bias=False)
        self.decay = LowRank(width, 2.5, torch.tanh)
        self.rate = LowRank(width, 2.5, nn.Identity())
        self.gate = LowRank(width, 5.0, torch.sigmoid)
        self.decay_bias = nn.Parameter(torch.empty(width))
        self.rate_bias = nn.Parameter(torch.empty(width))
        self.key_scale = nn.Parameter(torch.empty(width))
        self.key_rate = nn.Parameter(torch.empty(width))
        self.bonus = nn.Parameter(torch.empty(config.heads, width // config.heads))
        self.norm_weight = nn.Parameter(torch.empty(width))
        self.norm_bias = nn.Parameter(torch.empty(width))
        self.out = Linear(width, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values, by channel and by depth."""
        config, width, head = self.config, len(self.key_scale), self.bonus.shape[1]
        depth, rest = config.layer / max(1, config.layers - 1), 1 - config.layer / config.layers
        channel = torch.arange(width)
        line = channel / (width - 1)
        zigzag = 2 * (channel % head) / (head - 1) - 1
        zigzag = zigzag * zigzag.abs()
        powers = torch.tensor([0.2, 0.9, 0.7, 0.7, 0.9, 0.2])  # of r, w, k, v, a, g
        with torch.no_grad():
            self.mix.copy_(1 - (channel / width) ** (powers[:, None] * rest))
            self.decay_bias.copy_(6 * line ** (1 + depth**0.3) - 5.5 + 2.5 * zigzag)
            self.rate_bias.copy_(0.3 * zigzag + 0.4 * (line - 0.5) - 0.19)
            self.key_scale.copy_(0.71 - 0.1 * (line - 0.5))
        for linear, bound in ((self.receptance, 0.5), (self.key, 0.05), (self.value, 0.5)):
            nn.init.uniform_(linear.weight, -bound * width**-0.5, bound * width**-0.5)
        nn.init.constant_(self.key_rate, 1.02)
        nn.init.constant_(self.bonus, -0.04)
        nn.init.constant_(self.norm_weight, ((1 + config.layer) / config.layers) ** 0.7)
        nn.init.zeros_(self.norm_bias)
        nn.init.zeros_(self.out.weight)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> RWKV7State:
        """Empty memory, no input before the first."""
        weight, (heads, head) = self.out.weight, self.bonus.shape
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        zeros = torch.zeros(batch, weight.shape[0], device=device or weight.device, dtype=dtype)
        return RWKV7State(zeros.new_zeros(batch, heads, head, head), zeros)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: RWKV7State | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], RWKV7State]:
        """Mix along T."""
        memory, last = self.init_state(len(x), device=x.device) if state is None else state
        past = torch.cat([last[:, None], x.to(last.dtype)], 1)
        before, last = past[:, :-1].to(x.dtype), past[:, -1].clone()
        if resets is not None:
            before = before.masked_fill(resets[..., None], 0.0)
        x_r, x_w, x_k, x_v, x_a, x_g = (x + mix * (before - x) for mix in self.mix)
        r, k, v = self.receptance(x_r), self.key(x_k), self.value(x_v)
        rate = torch.sigmoid(self.rate(x_a) + self.rate_bias)
        log_decay = -math.exp(-0.5) * torch.sigmoid(self.decay(x_w) + self.decay_bias)
        erased = unit(self._heads(k * self.key_scale))
        k = k * (1 + (rate - 1) * self.key_rate)
        r, k, v, rate, log_decay = map(self._heads, (r, k, v, rate, log_decay))
        y, memory = dplr(
            r,
            k,
            v,
            a=-erased,
            b=erased * rate,
            log_decay=log_decay,
            undecayed=True,
            state=memory,
            resets=resets,
        )
        y = F.layer_norm(y, y.shape[-1:], eps=64e-5)  # GroupNorm of the published epsilon
        y = y * self._heads(self.norm_weight) + self._heads(self.norm_bias)
        y = y + (r * self.bonus * k).sum(-1, keepdim=True) * v
        return self.out(y.flatten(-2) * self.gate(x_g)), RWKV7State(memory, last)

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "... (h k) -> ... h k", h=self.config.heads)


class LowRank(nn.Module):
    """f(x W_1) W_2, the rank about `ratio` times the square root of the width.

    As published, W_1 starts at zero and W_2 orthogonal, a tenth of that.
    """

    def __init__(self, width: int, ratio: float, activation: Activation) -> None:
        super().__init__()
        published = max(32, 32 * round(ratio * width**0.5 / 32))
        rank = min(published, width // 2)
        self.activation = activation
        self.down = Linear(width, rank, bias=False)
        self.up = Linear(rank, width, bias=False)
        nn.init.zeros_(self.down.weight)
        nn.init.orthogonal_(self.up.weight, gain=0.1)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Each token on its own."""
        return self.up(self.activation(self.down(x)))
