"""LongVQ (arXiv:2404.11163): attention to quantised keys, on top of a moving average.

    u_t = SiLU(EMA(x)_t)                                    MEGA's moving average
    q, k = unit(W_q u), unit(W_k u);  v = SiLU(W_v x)       tau: learned per head, at first sqrt(K)
    e_t = code nearest to k_t                               C codes per head
    a_t = sum_j softmax_j(tau q_t . e_j) v_j                over all j <= t
        = sum_c exp(tau q_t . code_c) V_tc / sum_c exp(tau q_t . code_c) n_tc
    y_t = SiLU(W_x u_t + W_a (SiLU(W_r u_t) * a_t))         V, n: sums of v and counts per code

So attention over the past is linear attention with one feature per code, at no approximation but
that of the keys. No code and no full text was at hand: what is quantised, the sums per code and
the moving average below are published; gates, sizes and the length of keys are chosen here.
Deviations: the codes learn by gradient with everything else, keys by a straight-through soft
assignment; the published moving averages of the keys are `learn_codes(x)`, for who wants them.
State: C x (V + 1) floats per head and D x N of the moving average, constant in T.
Cost: O(T (D^2 + D N + C V)) per head.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.delta_inputs import unit
from stepscan.layers.moving_average import MovingAverage
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.linear_attention import linear_attention
from stepscan.ops.quantize import closeness, moved_codes


@dataclass(frozen=True, kw_only=True)
class LongVQConfig(MixerConfig):
    """Config of LongVQ."""

    name: ClassVar[str] = "longvq"
    equation: ClassVar[str] = "y = sum_j softmax_j(q_t^T code(k_j)) v_j,  q, k, v of EMA(x)"
    source: ClassVar[str] = "Liu et al. 2024, arXiv:2404.11163"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="hybrid",
        transition="scalar",
        gate="fixed",
        eigenvalues="1",
        ops=("linear_attention", "linear_scan"),
    )

    codes: int = 64
    """Codes C per head."""
    heads: int = 4
    """Number of heads H; must divide the width."""
    states: int = 16
    """Numbers N of the moving average per channel."""
    code_decay: float = 0.99
    """What a code keeps of itself in one step of `learn_codes`."""

    def build(self, width: int) -> "LongVQ":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"longvq: heads={self.heads} must divide width={width}")
        if self.codes < 2:
            raise ValueError(f"longvq: want codes at least 2, got {self.codes}")
        if not 0 <= self.code_decay < 1:
            raise ValueError(f"longvq: want 0 <= code_decay < 1, got {self.code_decay}")
        return LongVQ(self, width)


class LongVQState(NamedTuple):
    """What `LongVQ` carries from one stretch to the next."""

    average: Float[Tensor, "B D N"]
    sums: Float[Tensor, "B H C V+1"]
    """Per code the sum of its values, and how many there were."""


class LongVQ(Mixer[LongVQState]):
    """See the module docstring."""

    def __init__(self, config: LongVQConfig, width: int) -> None:
        super().__init__()
        self.config = config
        size = width // config.heads
        self.average = MovingAverage(width, config.states)
        self.query_key = Linear(width, 2 * width, bias=False)
        self.value = Linear(width, width)
        self.gate = Linear(width, width)
        self.attended = Linear(width, width, bias=False)
        self.out = Linear(width, width)
        self.log_temperature = nn.Parameter(torch.full((config.heads,), size**0.5).log())
        self.codes = nn.Parameter(
            F.normalize(torch.randn(config.heads, config.codes, size), dim=-1)
        )

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> LongVQState:
        """Nothing yet."""
        average = self.average.init_state(batch, device=device, dtype=dtype)
        heads, codes, size = self.codes.shape
        return LongVQState(average, average.new_zeros(batch, heads, codes, size + 1))

    @torch.no_grad()
    def learn_codes(self, x: Float[Tensor, "B T D"]) -> None:
        """Move the codes towards the keys of these inputs."""
        u, _ = self.average(x, self.init_state(len(x)).average)
        _, keys = self._queries_keys(F.silu(u))
        self.codes.copy_(moved_codes(self.codes, keys, decay=self.config.code_decay))

    def _queries_keys(self, u: Tensor) -> Tensor:
        return unit(
            rearrange(self.query_key(u), "b t (n h k) -> n b t h k", n=2, h=self.config.heads)
        )

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: LongVQState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], LongVQState]:
        """Mix along T."""
        state = self.init_state(len(x)) if state is None else state
        u, average = self.average(x, state.average, resets)
        u = F.silu(u)
        q, k = self._queries_keys(u).to(state.sums.dtype)
        v = rearrange(F.silu(self.value(x)), "b t (h k) -> b t h k", h=self.config.heads)
        tau = self.log_temperature.to(q.dtype).exp()[:, None]
        # From -tau to tau for codes of length 1: nothing is subtracted before the exponential, as
        # the best of all codes may be far above the best of those that have a value yet.
        score = tau * torch.einsum("bthk,hck->bthc", q, self.codes.to(q.dtype))
        a, sums = linear_attention(
            score.exp(), self._assign(k, tau), v, normalize=True, state=state.sums, resets=resets
        )
        h = self.attended(a.flatten(2).to(x.dtype) * F.silu(self.gate(u)))
        return F.silu(self.out(u) + h), LongVQState(average, sums)

    def _assign(self, k: Tensor, tau: Tensor) -> Float[Tensor, "B T H C"]:
        """One for the nearest code, else zero; the gradient is that of a softmax."""
        near = closeness(k, self.codes)
        soft = (tau * near).softmax(-1)
        hard = F.one_hot(near.argmax(-1), near.shape[-1]).to(soft.dtype)
        return hard + soft - soft.detach()
