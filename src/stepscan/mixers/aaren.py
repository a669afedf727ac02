"""Aaren (arXiv:2405.13956): attention as a recurrent network, by a query that is learned.

    s_t = q . W_k x_t / sqrt(K);  v_t = W_v x_t        q: [H, K], the same for all tokens
    y_t = W_o sum_{j<=t} softmax_j(s_j) v_j            as a scan over (max, sum of weights, sum)

No positions and no biases. The paper says that the query is learned, not how it starts: here
normal, std 1, and the maps Xavier uniform, as in the first Transformer.
State: B x H x (V + 2) floats, constant in T.   Cost: O(T H V).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.softmax_scan import SoftmaxSum, softmax_scan


@dataclass(frozen=True, kw_only=True)
class AarenConfig(MixerConfig):
    """Config of Aaren."""

    name: ClassVar[str] = "aaren"
    equation: ClassVar[str] = "y = sum_j softmax_j(q.k_j / sqrt(K)) v_j, q learned"
    source: ClassVar[str] = "Feng et al. 2024, arXiv:2405.13956"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="softmax attention",
        transition="scalar",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("softmax_scan",),
    )

    heads: int = 4
    """Number of heads H; must divide the width."""

    def build(self, width: int) -> "Aaren":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"aaren: heads={self.heads} must divide width={width}")
        return Aaren(self, width)


class Aaren(Mixer[SoftmaxSum]):
    """See the module docstring."""

    no_decay = ("query",)

    def __init__(self, config: AarenConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Parameter(torch.empty(config.heads, width // config.heads))
        self.keys = Linear(width, width, bias=False)
        self.values = Linear(width, width, bias=False)
        self.out = Linear(width, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values."""
        nn.init.normal_(self.query)
        for map_ in (self.keys, self.values, self.out):
            nn.init.xavier_uniform_(map_.weight)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> SoftmaxSum:
        """No tokens: no weight, and a largest score below all others."""
        dtype = torch.promote_types(dtype or self.query.dtype, torch.float32)
        total = self.query.new_zeros((batch, *self.query.shape), device=device, dtype=dtype)
        weight = total[..., 0].clone()
        return SoftmaxSum(torch.full_like(weight, -torch.inf), weight, total)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: SoftmaxSum | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], SoftmaxSum]:
        """Mix along T."""
        heads, size = self.query.shape
        k, v = (map_(x).unflatten(-1, (heads, size)) for map_ in (self.keys, self.values))
        scores = torch.einsum("hk,bthk->bth", self.query, k) * size**-0.5
        y, state = softmax_scan(scores, v, state=state, resets=resets)
        return self.out(y.flatten(2)), state
