"""RWKV-4 (arXiv:2305.13048), its time mixing: a softmax over the past that decays, per channel.

    x_* = m_* x_t + (1 - m_*) x_{t-1}                          for each of r, k, v
    r, k, v = W_r x_r, W_k x_k, W_v x_v
    wkv_t = (a_{t-1} + e^(u + k_t) v_t) / (b_{t-1} + e^(u + k_t))
    a_t = e^-w a_{t-1} + e^k_t v_t,  b_t = e^-w b_{t-1} + e^k_t         w = exp(decay)
    y_t = W_o (sigmoid(r_t) * wkv_t)

The present token is read with the bonus u, before the decay. Keys may have any size: what is kept
is not a and b, which overflow, but l = log b and the mean z = a / b,

    l_t = log(e^(l_{t-1} - w) + e^k_t)
    z_t = f z_{t-1} + (1 - f) v_t                              f = sigmoid(l_{t-1} - w - k_t)
    wkv_t = g z_{t-1} + (1 - g) v_t                            g = sigmoid(l_{t-1} - u - k_t)

so l is a scan over (log-sum-exp, +) and z a linear one with weights of at most 1.
Initial values by depth, as published; maps orthogonal, those of r and k and W_o zero in the
authors' code: here they are orthogonal too, scaled by 0.1 for r and k, so that nothing starts dead.
It goes with `rwkv4_channel` as the channel mixer: "(rwkv4 rwkv4_channel)*6" with mlp_ratio 0.
State: B x 2 x E floats and the last input, constant in T.   Cost: O(T E), besides the projections.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.linear_scan import linear_scan
from stepscan.ops.semiring_scan import semiring_scan
from stepscan.ops.shift import shift


@dataclass(frozen=True, kw_only=True)
class RWKV4Config(MixerConfig):
    """Config of RWKV-4."""

    name: ClassVar[str] = "rwkv4"
    equation: ClassVar[str] = "y = (a + e^(u+k) v) / (b + e^(u+k));  a = e^-w a + e^k v, b alike"
    source: ClassVar[str] = "Peng et al. 2023, arXiv:2305.13048"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="linear attention",
        transition="diagonal",
        gate="fixed",
        eigenvalues="[0, 1]",
        ops=("semiring_scan", "linear_scan"),
    )

    expansion: float = 1.0
    """Inner width E, as a multiple of the model width."""
    layer: int = 0
    """Index of the layer, 0 the lowest: initial values depend on it."""
    layers: int = 1
    """Number of layers of the model."""

    def build(self, width: int) -> "RWKV4":
        """Build the module for a model of this width."""
        inner = round(width * self.expansion)
        if min(width, inner) < 2:
            raise ValueError(f"rwkv4: want width and inner width at least 2: {width}, {inner}")
        if not 0 <= self.layer < self.layers:
            raise ValueError(f"rwkv4: want 0 <= layer < layers, got {self.layer} and {self.layers}")
        return RWKV4(self, width, inner)


class RWKV4State(NamedTuple):
    """What `RWKV4` carries from one stretch to the next."""

    log_weight: Float[Tensor, "B E"]
    mean: Float[Tensor, "B E"]
    last: Float[Tensor, "B D"]


class RWKV4(Mixer[RWKV4State]):
    """See the module docstring."""

    no_decay = ("mix",)

    def __init__(self, config: RWKV4Config, width: int, inner: int) -> None:
        super().__init__()
        self.config = config
        self.mix = nn.Parameter(torch.empty(3, width))  # of r, k, v
        self.receptance = Linear(width, inner, bias=False)
        self.key = Linear(width, inner, bias=False)
        self.value = Linear(width, inner, bias=False)
        self.decay = nn.Parameter(torch.empty(inner))
        self.bonus = nn.Parameter(torch.empty(inner))
        self.out = Linear(inner, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values, by channel and by depth."""
        config, (width, inner) = self.config, self.out.weight.shape
        depth, rest = config.layer / max(1, config.layers - 1), 1 - config.layer / config.layers
        channel, line = torch.arange(inner), torch.arange(width) / width
        with torch.no_grad():
            self.mix.copy_(line ** (torch.tensor([0.5, 1.0, 1.0]) * rest)[:, None])
            self.mix[2].add_(0.3 * depth)
            self.decay.copy_(-5 + 8 * (channel / (inner - 1)) ** (0.7 + 1.3 * depth))
            self.bonus.copy_(math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1))
        for linear, gain in (
            (self.receptance, 0.1),
            (self.key, 0.1),
            (self.value, 1),
            (self.out, 1),
        ):
            nn.init.orthogonal_(linear.weight, gain=gain)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> RWKV4State:
        """No weight yet, no input before the first."""
        weight, inner = self.out.weight, len(self.decay)
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        last = torch.zeros(batch, len(weight), device=device or weight.device, dtype=dtype)
        mean = last.new_zeros(batch, inner)
        return RWKV4State(torch.full_like(mean, -torch.inf), mean, last)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: RWKV4State | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], RWKV4State]:
        """Mix along T."""
        log_weight, mean, last = self.init_state(len(x)) if state is None else state
        before, last = shift(x, last, resets)
        x_r, x_k, x_v = (before + mix * (x - before) for mix in self.mix)
        wide = torch.promote_types(x.dtype, torch.float32)
        k, v = self.key(x_k).to(wide), self.value(x_v).to(wide)
        fade, bonus = self.decay.to(wide).exp(), self.bonus.to(wide)
        weights, log_weight_after = semiring_scan(
            (-fade).expand_as(k), k, "logsumexp_plus", state=log_weight, resets=resets
        )
        past = _late(weights, log_weight, resets, -torch.inf)
        odds = past - fade - k  # of the past against this token, logarithmic
        means, mean_after = linear_scan(
            torch.sigmoid(odds), torch.sigmoid(-odds) * v, state=mean, resets=resets
        )
        odds = past - bonus - k
        wkv = torch.sigmoid(odds) * _late(means, mean, resets, 0.0) + torch.sigmoid(-odds) * v
        y = self.out(torch.sigmoid(self.receptance(x_r)) * wkv.to(x.dtype))
        return y, RWKV4State(log_weight_after, mean_after, last)


def _late(x: Tensor, first: Tensor, resets: Tensor | None, fresh: float) -> Tensor:
    """What was before each token."""
    late = torch.cat([first[:, None].to(x.dtype), x[:, :-1]], 1)[:, : x.shape[1]]
    return late if resets is None else late.masked_fill(resets[..., None], fresh)
