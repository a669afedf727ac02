"""Linformer (arXiv:2006.04768): attention over k sums of the keys and values, instead of all T.

    K' = E K,  V' = F V                       E, F: [k, n], a weight for each sum and position
    y_t = W_o sum_i softmax_i(q_t^T K'_i / sqrt(K)) V'_i                            i = 1 .. k

E and F are shared by the heads, normal with variance 1 / k as in the paper's theorem; what its
code starts from is not known here. Positions beyond n, the published length of every sequence, use
the weights again from the first on. Not causal: every token sees the whole stretch, and the past
through the sums, which are the state.
State: k sums of keys and values, 2 x B x k x H x K floats, and a counter, constant in T.
Cost: O(T k K) per head; with resets O(T^2 k), for then each segment has sums of its own.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.arguments import as_resets
from stepscan.ops.positions import positions


@dataclass(frozen=True, kw_only=True)
class LinformerConfig(MixerConfig):
    """Config of attention over sums."""

    name: ClassVar[str] = "linformer"
    equation: ClassVar[str] = "y = sum_i softmax_i(q_t^T (E K)_i / sqrt(K)) (F V)_i"
    source: ClassVar[str] = "Wang et al. 2020, arXiv:2006.04768"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="softmax attention",
    )

    heads: int = 4
    """Number of heads H; must divide the width."""
    sums: int = 32
    """How many sums k there are."""
    length: int = 512
    """Positions n that have weights of their own."""

    def build(self, width: int) -> "Linformer":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"linformer: heads={self.heads} must divide width={width}")
        if min(self.sums, self.length) < 1:
            raise ValueError(
                f"linformer: want sums and length at least 1, got {self.sums} and {self.length}"
            )
        return Linformer(self, width)


class LinformerState(NamedTuple):
    """What `Linformer` carries from one stretch to the next."""

    keys: Float[Tensor, "B k H K"]
    values: Float[Tensor, "B k H K"]
    length: Int[Tensor, "B"]
    """Tokens since the row's last reset."""


class Linformer(Mixer[LinformerState]):
    """See the module docstring."""

    causal = False

    def __init__(self, config: LinformerConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.qkv = Linear(width, 3 * width, bias=False)
        self.key_sums = nn.Parameter(torch.empty(config.sums, config.length))
        self.value_sums = nn.Parameter(torch.empty(config.sums, config.length))
        self.out = Linear(width, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values."""
        for weight in (*self.qkv.weight.chunk(3), self.out.weight):
            nn.init.xavier_uniform_(weight)
        for weight in (self.key_sums, self.value_sums):
            nn.init.normal_(weight, std=self.config.sums**-0.5)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> LinformerState:
        """Nothing in the sums."""
        weight, heads = self.out.weight, self.config.heads
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        shape = batch, self.config.sums, heads, len(weight) // heads
        zeros = torch.zeros(shape, device=device or weight.device, dtype=dtype)
        length = torch.zeros(batch, device=zeros.device, dtype=torch.int64)
        return LinformerState(zeros, zeros.clone(), length)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: LinformerState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], LinformerState]:
        """Mix along T."""
        state = self.init_state(len(x)) if state is None else state
        if x.shape[1] == 0:
            return x, state
        wide = state.keys.dtype
        q, k, v = rearrange(self.qkv(x), "b t (n h k) -> n b t h k", n=3, h=self.config.heads)
        q, k, v = q.to(wide) * q.shape[-1] ** -0.5, k.to(wide), v.to(wide)
        place = positions(state.length, as_resets(resets, x))
        ours = place.remainder(self.config.length)
        by_key, by_value = (w.to(wide).mT[ours] for w in (self.key_sums, self.value_sums))  # B T k
        if resets is None:
            y, keys, values = _together(q, k, v, by_key, by_value, state)
        else:
            y, keys, values = _apart(q, k, v, by_key, by_value, state, resets)
        return self.out(y.flatten(2).to(x.dtype)), LinformerState(keys, values, place[:, -1] + 1)


def _together(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H K"],
    by_key: Float[Tensor, "B T k"],
    by_value: Float[Tensor, "B T k"],
    state: LinformerState,
) -> tuple[Tensor, Tensor, Tensor]:
    """One segment: everyone reads the same sums."""
    keys = state.keys + torch.einsum("bti,bthk->bihk", by_key, k)
    values = state.values + torch.einsum("bti,bthk->bihk", by_value, v)
    weights = torch.einsum("bthk,bihk->bhti", q, keys).softmax(-1)
    return torch.einsum("bhti,bihk->bthk", weights, values), keys, values


def _apart(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H K"],
    by_key: Float[Tensor, "B T k"],
    by_value: Float[Tensor, "B T k"],
    state: LinformerState,
    resets: Bool[Tensor, "B T"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of each token's own segment, without writing them out for every token."""
    segment = resets.cumsum(1)
    same = (segment[:, :, None] == segment[:, None]).to(q.dtype)[:, None]
    first = (segment == 0).to(q.dtype)[:, None, :, None]
    scores = torch.einsum("bthk,bshk->bhts", q, k) * same @ by_key[:, None]
    scores = scores + first * torch.einsum("bthk,bihk->bhti", q, state.keys)
    weights = scores.softmax(-1)
    y = torch.einsum("bhts,bshk->bthk", weights @ by_value.mT[:, None] * same, v)
    y = y + torch.einsum("bhti,bihk->bthk", first * weights, state.values)
    last = (segment == segment[:, -1:]).to(q.dtype)[..., None]
    whole = (segment[:, -1] == 0).to(q.dtype)[:, None, None, None]
    keys = whole * state.keys + torch.einsum("bti,bthk->bihk", last * by_key, k)
    values = whole * state.values + torch.einsum("bti,bthk->bihk", last * by_value, v)
    return y, keys, values
