"""RWKV-6 "Finch" (arXiv:2404.05892), its time mixing: decays by the input, a bonus for the present.

    x_* = x_t + m_* (x_{t-1} - x_t)                            for each of w, k, v, r, g
    m_* = mix_* + tanh((x_t + mix_x (x_{t-1} - x_t)) A_*) B_*
    w_t = exp(-exp(w_0 + tanh(x_w W_1) W_2))                   decay, one per key channel
    y_t = W_o ((GroupNorm((S_{t-1} + diag(u) k_t v_t^T)^T r_t)) * silu(W_g x_g))
    S_t = diag(w_t) S_{t-1} + k_t v_t^T                        r, k, v linear in x_r, x_k, x_v

The present token is read with the bonus u, before the decay. Initial values as in the authors'
code, by depth: maps orthogonal, those of k and g a tenth of that, W_o zero. Deviations: heads
divide the width instead of having a fixed size of 64; low ranks, 32 and 64, are at most half the
width. No scale 1 / sqrt(K), as published.
State: B x H x K x K floats and the last input, constant in T.   Cost: O(T K^2) per head.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.linear_reads import read_before_write
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.shift import shift


@dataclass(frozen=True, kw_only=True)
class RWKV6Config(MixerConfig):
    """Config of RWKV-6."""

    name: ClassVar[str] = "rwkv6"
    equation: ClassVar[str] = "y = (S + diag(u) k_t v_t^T)^T r_t;  S = diag(w_t) S + k_t v_t^T"
    source: ClassVar[str] = "Peng et al. 2024, arXiv:2404.05892"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="linear attention",
        transition="diagonal",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("linear_attention",),
    )

    heads: int = 4
    """Number of heads H; must divide the width."""
    layer: int = 0
    """Index of the layer, 0 the lowest: initial values depend on it."""
    layers: int = 1
    """Number of layers of the model."""

    def build(self, width: int) -> "RWKV6":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads or width < 2:
            raise ValueError(f"rwkv6: heads={self.heads} must divide width={width}, at least 2")
        if not 0 <= self.layer < self.layers:
            raise ValueError(f"rwkv6: want 0 <= layer < layers, got {self.layer} and {self.layers}")
        return RWKV6(self, width)


class RWKV6State(NamedTuple):
    """What `RWKV6` carries from one stretch to the next."""

    memory: Float[Tensor, "B H K K"]
    last: Float[Tensor, "B D"]


class RWKV6(Mixer[RWKV6State]):
    """See the module docstring."""

    no_decay = ("mix", "mix_down.weight", "mix_up", "decay_down.weight", "decay_up.weight", "bonus")

    def __init__(self, config: RWKV6Config, width: int) -> None:
        super().__init__()
        self.config = config
        mix_rank, decay_rank = (min(rank, width // 2) for rank in (32, 64))
        self.mix = nn.Parameter(torch.empty(6, width))  # of x, w, k, v, r, g
        self.mix_down = Linear(width, 5 * mix_rank, bias=False)
        self.mix_up = nn.Parameter(torch.empty(5, mix_rank, width))
        self.receptance = Linear(width, width, bias=False)
        self.key = Linear(width, width, bias=False)
        self.value = Linear(width, width, bias=False)
        self.gate = Linear(width, width, bias=False)
        self.decay_bias = nn.Parameter(torch.empty(width))
        self.decay_down = Linear(width, decay_rank, bias=False)
        self.decay_up = Linear(decay_rank, width, bias=False)
        self.bonus = nn.Parameter(torch.empty(config.heads, width // config.heads))
        self.norm_weight = nn.Parameter(torch.ones(width))
        self.norm_bias = nn.Parameter(torch.zeros(width))
        self.out = Linear(width, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values, by channel and by depth."""
        config, width = self.config, len(self.decay_bias)
        depth, rest = config.layer / max(1, config.layers - 1), 1 - config.layer / config.layers
        channel = torch.arange(width)
        line = channel / (width - 1)
        powers = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5, 0.5]) * rest
        zigzag = ((channel + 1) % 3 - 1) * 0.1
        with torch.no_grad():
            self.mix.copy_(1 - (channel / width) ** powers[:, None])
            self.mix[3].sub_(0.3 * depth)
            self.decay_bias.copy_(-6 + 5 * line ** (0.7 + 1.3 * depth))
            self.bonus.copy_((depth * (1 - line) + zigzag).view_as(self.bonus))
        low_rank = self.mix_down.weight, self.mix_up, self.decay_down.weight, self.decay_up.weight
        for weight in low_rank:
            nn.init.uniform_(weight, -1e-4, 1e-4)
        for linear, gain in (
            (self.receptance, 1),
            (self.key, 0.1),
            (self.value, 1),
            (self.gate, 0.1),
        ):
            nn.init.orthogonal_(linear.weight, gain=gain)
        nn.init.zeros_(self.out.weight)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> RWKV6State:
        """Empty memory, no input before the first."""
        weight, (heads, head) = self.out.weight, self.bonus.shape
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        zeros = torch.zeros(batch, weight.shape[0], device=device or weight.device, dtype=dtype)
        return RWKV6State(zeros.new_zeros(batch, heads, head, head), zeros)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: RWKV6State | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], RWKV6State]:
        """Mix along T."""
        memory, last = self.init_state(len(x), device=x.device) if state is None else state
        before, last = shift(x, last, resets)
        step = before - x
        seen = torch.tanh(self.mix_down(x + self.mix[0] * step)).unflatten(-1, (5, -1))
        mixes = torch.einsum("btnr,nrd->btnd", seen, self.mix_up) + self.mix[1:]
        x_w, x_k, x_v, x_r, x_g = (x[:, :, None] + mixes * step[:, :, None]).unbind(2)
        decay = self.decay_up(torch.tanh(self.decay_down(x_w))) + self.decay_bias
        log_decay = -decay.to(torch.promote_types(x.dtype, torch.float32)).exp()
        parts = self.receptance(x_r), self.key(x_k), self.value(x_v), log_decay
        r, k, v, log_decay = (p.unflatten(-1, self.bonus.shape) for p in parts)
        y, memory = read_before_write(r, k, v, log_decay=log_decay, state=memory, resets=resets)
        y = y + (r * self.bonus * k).sum(-1, keepdim=True) * v
        y = F.layer_norm(y, y.shape[-1:], eps=64e-5).flatten(-2)  # GroupNorm, published epsilon
        y = y * self.norm_weight + self.norm_bias
        return self.out(y * F.silu(self.gate(x_g))), RWKV6State(memory, last)
