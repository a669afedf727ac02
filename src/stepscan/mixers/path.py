"""PaTH attention (arXiv:2505.16381): softmax attention whose positions the tokens make themselves.

    w_t = unit(silu(conv(W_2 W_1 x)_t))                       per head, W_1 of rank 32
    beta_t = 2 sigmoid(W_b x_t + b)                           per head
    k_j <- (I - beta_t w_t w_t^T) k_j   for all j < t         then k_t = W_k x_t joins them
    y_t = W_o sum_j softmax_j(q_t^T k_j / sqrt(K) [+ sum_{j < m <= t} log f_m]) v_j

Between a query and a key stand the Householder-like matrices of all tokens in between, in the place
of RoPE's rotation by the distance: so a stack of constant depth can track states that rotations
cannot (permutations of 5 things, as the paper proves). `forget_gate` is PaTH-FoX, with
f = sigmoid(W_f x + b). As published, the convolution of 3 tokens included; `qk_norm` is an option
of the authors' code. Deviations: the low rank is at most half the width; the authors' kernels
multiply log f by 1 / sqrt(K) as well, here it is as in FoX and in the paper's equation (we are not
certain which of the two the published models had). Initial values: those of the authors' code for
the maps are not certain; they are Linear's, biases 0.
State: keys as they stand, values and decays of all tokens, B x S x H x (2 K + 1) floats, and the
window's last inputs; S grows by one a token.   Cost: O(T S K) per head.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.convolution import ShortConv
from stepscan.layers.delta_inputs import unit
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.fading_cache import FadingCache
from stepscan.ops.path_attention import path_attention

RANK = 32  # as published


@dataclass(frozen=True, kw_only=True)
class PathConfig(MixerConfig):
    """Config of PaTH attention."""

    name: ClassVar[str] = "path"
    equation: ClassVar[str] = (
        "k_j = (I - beta_t w_t w_t^T) k_j for j < t;  y = sum_j softmax_j(q_t^T k_j / sqrt(K)) v_j"
    )
    source: ClassVar[str] = "Yang et al. 2025, arXiv:2505.16381"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="softmax attention",
        transition="householder",
        gate="input",
        eigenvalues="[-1, 1]",
        ops=("path_attention", "short_conv"),
    )

    heads: int = 4
    """Number of heads H; must divide the width."""
    window: int = 3
    """Tokens seen by the convolution of the directions w."""
    forget_gate: bool = False
    """Lower every score by a decay per token and head, as in FoX."""
    qk_norm: bool = False
    """RMS-norm queries and keys, per head."""

    def build(self, width: int) -> "Path":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"path: heads={self.heads} must divide width={width}")
        if self.window < 1:
            raise ValueError(f"path: want window at least 1, got {self.window}")
        return Path(self, width)


class PathMixerState(NamedTuple):
    """What `Path` carries from one stretch to the next."""

    past: FadingCache
    window: Float[Tensor, "B W-1 D"]


class Path(Mixer[PathMixerState]):
    """See the module docstring."""

    def __init__(self, config: PathConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.head = width // config.heads
        self.qkv = Linear(width, 3 * width, bias=False)
        rank = min(RANK, max(1, width // 2))
        self.down = Linear(width, rank, bias=False)
        self.up = Linear(rank, width, bias=False)
        self.conv = ShortConv(width, config.window, bias=False)
        self.strength = Linear(width, config.heads)
        self.forget = Linear(width, config.heads) if config.forget_gate else None
        self.q_norm = nn.RMSNorm(self.head) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(self.head) if config.qk_norm else None
        self.out = Linear(width, width, bias=False)
        nn.init.zeros_(self.strength.bias)
        if self.forget is not None:
            nn.init.zeros_(self.forget.bias)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> PathMixerState:
        """No past yet: no slots."""
        window = self.conv.init_state(batch, device=device, dtype=dtype)
        empty = window.new_zeros(batch, 0, self.config.heads, self.head)
        length = torch.zeros(batch, device=empty.device, dtype=torch.int64)
        past = FadingCache(empty, empty.clone(), empty[..., 0].clone(), length)
        return PathMixerState(past, window)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: PathMixerState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], PathMixerState]:
        """Mix along T."""
        past, window = self.init_state(len(x)) if state is None else state
        q, k, v = self.qkv(x).unflatten(-1, (3, self.config.heads, self.head)).unbind(2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        w, window = self.conv(self.up(self.down(x)), window, resets)
        wide = torch.promote_types(x.dtype, torch.float32)
        g = None if self.forget is None else F.logsigmoid(self.forget(x).to(wide))
        y, past = path_attention(
            q * self.head**-0.5,
            k,
            v,
            w=unit(w.to(wide).unflatten(-1, (self.config.heads, -1))),
            beta=2 * torch.sigmoid(self.strength(x).to(wide)),
            log_decay=g,
            state=past,
            resets=resets,
        )
        return self.out(y.flatten(2)), PathMixerState(past, window)
