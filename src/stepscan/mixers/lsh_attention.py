"""Reformer's attention (arXiv:2001.04451): each token meets those that random directions put near.

    k_t = q_t / |q_t|                       one map for queries and keys
    c_t = argmax [R k_t; -R k_t]            the bucket, for each round a random R of its own
    y_t = W_o sum_j softmax_j(q_t . k_j / sqrt(K)) v_j     over j < t in t's bucket in any round

and over t itself only where there is no other, as published. The directions R are buffers, drawn
once; published is to draw them afresh for each batch, and to sort tokens by bucket and cut them
into chunks of equal size, in which a token sees its own and the one before: whom it meets then
depends on later tokens. Here buckets may be of unequal size, and no more is seen than they say.
Scores are less log(rounds that a pair shares), so that what the rounds find adds up to one softmax.
State: queries and values of all tokens, S x 2 D floats, and S x rounds buckets per head: it grows.
Cost: O(rounds T^2 K / C) per head for C buckets of equal size; T tokens after more than T others,
and inside `torch.compile`, O(T S (K + rounds)).
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.arguments import as_resets
from stepscan.ops.compress_select import Selection, compress_each, expand, select
from stepscan.ops.positions import positions

ITSELF = -1e5
"""Score of a token with itself: nothing, unless there is nothing else."""


@dataclass(frozen=True, kw_only=True)
class LSHAttentionConfig(MixerConfig):
    """Config of attention by locality-sensitive hashing."""

    name: ClassVar[str] = "lsh_attention"
    equation: ClassVar[str] = "y = sum_j softmax_j(q_t^T k_j / sqrt(K)) v_j  over j in t's buckets"
    source: ClassVar[str] = "Kitaev et al. 2020, arXiv:2001.04451"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="softmax attention",
    )

    heads: int = 4
    """Number of heads H; must divide the width."""
    buckets: int = 4
    """Buckets C, an even number; about the root of the length costs least."""
    rounds: int = 2
    """How many times every token is hashed: more rounds miss fewer neighbours."""

    def build(self, width: int) -> "LSHAttention":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"lsh_attention: heads={self.heads} must divide width={width}")
        if self.buckets < 2 or self.buckets % 2 or self.rounds < 1:
            raise ValueError(
                "lsh_attention: want an even number of buckets, and rounds at least 1, got "
                f"{self.buckets} and {self.rounds}"
            )
        return LSHAttention(self, width)


class LSHAttentionState(NamedTuple):
    """Queries, values and buckets of the past, newest last; a row's unused slots come first."""

    queries: Float[Tensor, "B S H K"]
    values: Float[Tensor, "B S H K"]
    buckets: Int[Tensor, "B S H R"]
    length: Int[Tensor, "B"]
    """Tokens since the row's last reset."""

    GROWS = ("queries", "values", "buckets")  # unannotated: a NamedTuple allows no class variables


class LSHAttention(Mixer[LSHAttentionState]):
    """See the module docstring."""

    directions: Tensor

    def __init__(self, config: LSHAttentionConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.query_value = Linear(width, 2 * width, bias=False)
        self.out = Linear(width, width, bias=False)
        shape = config.rounds, config.heads, width // config.heads, config.buckets // 2
        self.register_buffer("directions", torch.randn(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values of the maps."""
        for weight in (*self.query_value.weight.chunk(2), self.out.weight):
            nn.init.xavier_uniform_(weight)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> LSHAttentionState:
        """No past yet: no slots."""
        weight, heads = self.out.weight, self.config.heads
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        shape = batch, 0, heads, len(weight) // heads
        empty = weight.new_zeros(shape, device=device, dtype=dtype)
        none = empty.new_zeros((*shape[:3], self.config.rounds), dtype=torch.int64)
        return LSHAttentionState(empty, empty.clone(), none, none.new_zeros(batch))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: LSHAttentionState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], LSHAttentionState]:
        """Mix along T."""
        state = self.init_state(len(x)) if state is None else state
        T, before = x.shape[1], state.queries.shape[1]
        if T == 0:
            return x, state
        wide = state.queries.dtype
        q, v = rearrange(self.query_value(x), "b t (n h k) -> n b t h k", n=2, h=self.config.heads)
        turned = torch.einsum("bthk,rhkc->bthrc", q.to(wide), self.directions.to(wide))
        hashed = torch.cat([turned, -turned], -1).argmax(-1)
        queries = torch.cat([state.queries, q.to(wide)], 1)
        values = torch.cat([state.values, v.to(wide)], 1)
        buckets = torch.cat([state.buckets, hashed], 1)
        resets = as_resets(resets, x)
        place = positions(state.length, resets)
        segment = F.pad(resets.cumsum(1), (before, 0))
        used = torch.arange(before + T, device=x.device) >= before - state.length[:, None]
        segment = segment.masked_fill(~used, -1)
        if T < before or torch.compiler.is_compiling():
            y = all_pairs(queries, values, buckets, segment, T)
        else:
            y = by_bucket(queries, values, buckets, segment, self.config.buckets)[:, before:]
        gone = (segment != segment[:, -1:])[..., None, None]
        state = LSHAttentionState(
            queries.masked_fill(gone, 0.0),
            values.masked_fill(gone, 0.0),
            buckets.masked_fill(gone, 0),
            place[:, -1] + 1,
        )
        return self.out(y.flatten(2).to(x.dtype)), state


def all_pairs(
    queries: Float[Tensor, "B S H K"],
    values: Float[Tensor, "B S H K"],
    buckets: Int[Tensor, "B S H R"],
    segment: Int[Tensor, "B S"],
    T: int,
) -> Float[Tensor, "B T H K"]:
    """The last T tokens with all: the definition, and the form for few queries."""
    q, k, c = (z.transpose(1, 2) for z in (queries, _unit(queries), buckets))
    age = _ages(q)[-T:]
    together = (c[:, :, -T:, None] == c[:, :, None]).any(-1)
    same = segment[:, -T:, None] == segment[:, None]
    scores = _scores(q[:, :, -T:], k, age)
    scores = scores.masked_fill(~(together & (same & (age >= 0))[:, None]), -torch.inf)
    return (scores.softmax(-1) @ values.transpose(1, 2)).transpose(1, 2)


def by_bucket(
    queries: Float[Tensor, "B S H K"],
    values: Float[Tensor, "B S H K"],
    buckets: Int[Tensor, "B S H R"],
    segment: Int[Tensor, "B S"],
    count: int,
) -> Float[Tensor, "B S H K"]:
    """Round after round over the tokens of each bucket; their sums are weighed at the end."""
    B, S, H, _ = queries.shape
    found, totals = [], []
    for own in buckets.unbind(-1):
        sent = F.one_hot(own, count).flatten(2) > 0  # [B S H C]
        selection = select(sent)
        parts = queries, _unit(queries), values, buckets, segment[..., None].expand(-1, -1, H)
        q, k, v, c, part = (_places(z, count, selection) for z in parts)
        age = _ages(q)
        shared = (c[..., :, None, :] == c[..., None, :, :]).sum(-1)
        seen = (part[..., :, None] == part[..., None, :]) & (age >= 0) & (shared > 0)
        scores = _scores(q, k, age) - shared.clamp(min=1).to(q.dtype).log()
        scores = scores.masked_fill(~seen, -torch.inf)
        total = scores.logsumexp(-1, keepdim=True)
        y = torch.cat([(scores - total).exp() @ v, total], -1)
        y = y.unflatten(1, (H, count)).flatten(0, 1)
        selection = Selection(*(z.unflatten(1, (H, count)).flatten(0, 1) for z in selection))
        y, total = expand(y, selection, S).unflatten(0, (B, H)).split([v.shape[-1], 1], -1)
        found.append(y)
        totals.append(total)
    weights = torch.stack(totals).softmax(0)
    return (weights * torch.stack(found)).sum(0).transpose(1, 2)


def _places(
    z: Shaped[Tensor, "B S H *rest"], count: int, selection: Selection
) -> Shaped[Tensor, "B G P *rest"]:
    """What stands at the places of each bucket of each head, G = H * count of them."""
    spread = z[:, :, :, None].expand(-1, -1, -1, count, *z.shape[3:])
    return compress_each(spread.flatten(2, 3), selection)


def _unit(queries: Tensor) -> Tensor:
    return F.normalize(queries, dim=-1)


def _ages(q: Float[Tensor, "*n S K"]) -> Int[Tensor, "S S"]:
    slot = torch.arange(q.shape[-2], device=q.device)
    return slot[:, None] - slot


def _scores(
    q: Float[Tensor, "*n T K"], k: Float[Tensor, "*n S K"], age: Int[Tensor, "T S"]
) -> Float[Tensor, "*n T S"]:
    return (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(age == 0, ITSELF)
