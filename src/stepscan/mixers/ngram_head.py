"""N-gram heads (arXiv:2401.12973): what came after the last n tokens when they came before.

    f_t    = unit(W_f x_t)                                  a head's view of a token
    s_tj   = beta (sum_{i < n} f_{t-i} . f_{j-1-i} - n)     0 where the n tokens up to t are those
                                                            before j, below it everywhere else
    y_t    = W_1 x_t + W_2 concat_n sum_j w_tj W_v x_j      w: softmax over j <= t, and a sink

One head for every n in `orders`; `sink` is a learned score without a value, so that a head without
a match is silent. The published layer compares token ids, w_tj then being 1 / matches or 0; here
tokens are vectors, and that is the limit of a large beta (`sharpness`, which is learned) and of
inputs that are equal where the ids are. Positions before the row's first token match nothing.
State: keys and values of all tokens, S x (max(orders) F + D) floats per head, which grows; f of
the last max(orders) tokens.   Cost: O(T S (max(orders) F + D)) per head.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepscan.layers.delta_inputs import unit
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.arguments import as_resets
from stepscan.ops.attention import AttentionState, attention
from stepscan.ops.positions import positions


@dataclass(frozen=True, kw_only=True)
class NgramHeadConfig(MixerConfig):
    """Config of n-gram heads."""

    name: ClassVar[str] = "ngram_head"
    equation: ClassVar[str] = "y = W_1 x_t + W_2 mean of x_j whose last n tokens equal mine"
    source: ClassVar[str] = "Akyurek et al. 2024, arXiv:2401.12973"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="softmax attention",
        ops=("attention",),
    )

    orders: tuple[int, ...] = (1, 2)
    """How many tokens each head compares."""
    features: int = 16
    """Size F of a head's view of a token."""
    sharpness: float = 10.0
    """Initial beta: how much a token that differs costs."""

    def build(self, width: int) -> "NgramHead":
        """Build the module for a model of this width."""
        if not self.orders or min(self.orders) < 1:
            raise ValueError(f"ngram_head: want orders of at least 1, got {self.orders}")
        if self.features < 1 or not self.sharpness > 0:
            raise ValueError(
                f"ngram_head: want features at least 1 and sharpness above 0, got "
                f"{self.features} and {self.sharpness}"
            )
        return NgramHead(self, width)


class NgramHeadState(NamedTuple):
    """What `NgramHead` carries from one stretch to the next."""

    past: AttentionState
    recent: Float[Tensor, "B N H F"]
    """f of the last N = max(orders) tokens, newest last; zeros before the row's first."""


class NgramHead(Mixer[NgramHeadState]):
    """See the module docstring."""

    def __init__(self, config: NgramHeadConfig, width: int) -> None:
        super().__init__()
        self.config = config
        heads = len(config.orders)
        self.view = Linear(width, heads * config.features, bias=False)
        self.log_sharpness = nn.Parameter(torch.full((heads,), config.sharpness).log())
        self.sink = nn.Parameter(torch.full((heads,), -0.5))  # in units of the sharpness
        self.value = Linear(width, heads * width, bias=False)
        self.own = Linear(width, width, bias=False)
        self.out = Linear(heads * width, width, bias=False)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> NgramHeadState:
        """No past yet."""
        weight, config = self.own.weight, self.config
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        heads, n = len(config.orders), max(config.orders)
        recent = weight.new_zeros((batch, n, heads, config.features), device=device, dtype=dtype)
        keys = recent.new_zeros(batch, 0, heads, n * config.features)
        values = recent.new_zeros(batch, 0, heads, len(weight))
        length = torch.zeros(batch, device=recent.device, dtype=torch.int64)
        return NgramHeadState(AttentionState(keys, values, length), recent)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: NgramHeadState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], NgramHeadState]:
        """Mix along T."""
        state = self.init_state(len(x)) if state is None else state
        T, heads, n = x.shape[1], len(self.config.orders), max(self.config.orders)
        if T == 0:
            return x, state
        place = positions(state.past.length, as_resets(resets, x))
        view = unit(self.view(x).unflatten(-1, (heads, -1)).to(state.recent.dtype))
        both = torch.cat([state.recent, view], 1)
        order = torch.tensor(self.config.orders, device=x.device)
        back = []  # f of the token i steps back, zero before the row and beyond a head's order
        for i in range(n + 1):
            there = place[..., None] >= i
            back.append(both[:, n - i : n - i + T].masked_fill(~there[..., None], 0.0))
        used = [(order > i)[:, None] for i in range(n)]
        q = torch.cat([f * u for f, u in zip(back[:n], used, strict=True)], -1)
        k = torch.cat([f * u for f, u in zip(back[1:], used, strict=True)], -1)
        beta = self.log_sharpness.to(q.dtype).exp()
        # The scores without their constant -beta n, which the sink then has to make up for.
        y, past = attention(
            beta[:, None] * q, k, self.value(x).unflatten(-1, (heads, -1)),
            sink=beta * (order + self.sink), state=state.past, resets=resets,
        )  # fmt: skip
        age = torch.arange(n, device=x.device).flip(0)
        old = age > place[:, -1:]
        recent = both[:, T:].masked_fill(old[..., None, None], 0.0)
        return self.own(x) + self.out(y.flatten(2)), NgramHeadState(past, recent)
