"""Routing attention (Routing Transformer, arXiv:2003.05997): attention within clusters of keys.

    k_t = LayerNorm(W_k x_t), without weights, scaled to length 1;  q_t = k_t, as published for
    causal models
    c_t = argmax_c k_t . mu_c                               `clusters` centroids mu per head
    y_t = W_o sum_j softmax_j(sqrt(K) q_t . k_j) v_j        over j <= t with c_j = c_t

The published layer gives each cluster the `w` tokens of the *whole* sequence nearest to its
centroid: which past tokens a token meets then depends on later ones, and there is no form for one
token at a time. Here each token goes to its own nearest centroid, so clusters may be of unequal
size, and one centroid is full attention.
The centroids are buffers, first random directions. Published: after each training step they move
to the mean of their keys, with 0.999; that is `learn_centroids(x)`, which the trainer calls, since
`forward` changes nothing but its result.
State: keys, values and clusters of all tokens, S x (K + V + 1) numbers per head: it grows.
Cost: O(T^2 K / C) per head for C clusters of equal size, so O(T^1.5 K) with C = sqrt(T); T tokens
after more than T others, and inside `torch.compile`, O(T S K).
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.arguments import as_resets
from stepscan.ops.attention import attention
from stepscan.ops.compress_select import compress_each, expand, select
from stepscan.ops.positions import positions
from stepscan.ops.quantize import moved_codes, nearest


@dataclass(frozen=True, kw_only=True)
class RoutingAttentionConfig(MixerConfig):
    """Config of routing attention."""

    name: ClassVar[str] = "routing_attention"
    equation: ClassVar[str] = "y = sum_j softmax_j(k_t^T k_j) v_j  over j in the cluster of t"
    source: ClassVar[str] = "Roy et al. 2020, arXiv:2003.05997"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="softmax attention",
        ops=("attention",),
    )

    clusters: int = 4
    """Centroids C per head; about the root of the length costs least."""
    heads: int = 4
    """Number of heads H; must divide the width."""
    centroid_decay: float = 0.999
    """What a centroid keeps of itself in one step of `learn_centroids`."""

    def build(self, width: int) -> "RoutingAttention":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads or width // self.heads < 2:
            raise ValueError(
                f"{self.name}: heads={self.heads} must divide width={width} into 2 or more each"
            )
        if self.clusters < 1:
            raise ValueError(f"{self.name}: want clusters at least 1, got {self.clusters}")
        if not 0 <= self.centroid_decay < 1:
            raise ValueError(
                f"{self.name}: want 0 <= centroid_decay < 1, got {self.centroid_decay}"
            )
        return RoutingAttention(self, width)


class RoutingAttentionState(NamedTuple):
    """Keys, values and clusters of the past, newest last; a row's unused slots come first."""

    keys: Float[Tensor, "B S H K"]
    values: Float[Tensor, "B S H V"]
    clusters: Int[Tensor, "B S H"]
    length: Int[Tensor, "B"]
    """Tokens since the row's last reset."""

    GROWS = ("keys", "values", "clusters")  # unannotated: a NamedTuple allows no class variables


class RoutingAttention(Mixer[RoutingAttentionState]):
    """See the module docstring."""

    centroids: Tensor

    def __init__(self, config: RoutingAttentionConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.key_value = Linear(width, 2 * width, bias=False)
        self.out = Linear(width, width, bias=False)
        centroids = torch.randn(config.heads, config.clusters, width // config.heads)
        self.register_buffer("centroids", F.normalize(centroids, dim=-1))

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> RoutingAttentionState:
        """No past yet: no slots."""
        weight = self.out.weight
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        heads = self.config.heads
        shape = batch, 0, heads, len(weight) // heads
        empty = weight.new_zeros(shape, device=device, dtype=dtype)
        none = torch.zeros(shape[:3], device=empty.device, dtype=torch.int64)
        return RoutingAttentionState(empty, empty.clone(), none, none.new_zeros(batch))

    @torch.no_grad()
    def learn_centroids(self, x: Float[Tensor, "B T D"]) -> None:
        """Move the centroids towards the keys of these inputs."""
        keys, _ = self._keys_values(x)
        decay = self.config.centroid_decay
        self.centroids.copy_(moved_codes(self.centroids, keys, decay=decay, unit=True))

    def _keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k, v = rearrange(self.key_value(x), "b t (n h k) -> n b t h k", n=2, h=self.config.heads)
        k = F.layer_norm(k.to(torch.promote_types(k.dtype, torch.float32)), k.shape[-1:])
        return k * k.shape[-1] ** -0.5, v

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: RoutingAttentionState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], RoutingAttentionState]:
        """Mix along T."""
        state = self.init_state(len(x)) if state is None else state
        T, before = x.shape[1], state.keys.shape[1]
        if T == 0:
            return x, state
        k, v = self._keys_values(x)
        keys = torch.cat([state.keys, k.to(state.keys.dtype)], 1)
        values = torch.cat([state.values, v.to(state.keys.dtype)], 1)
        clusters = torch.cat([state.clusters, nearest(k, self.centroids)], 1)
        resets = as_resets(resets, x)
        place = positions(state.length, resets)
        segment = F.pad(resets.cumsum(1), (before, 0))
        slot = torch.arange(before + T, device=x.device)
        used = slot >= before - state.length[:, None]
        if T < before or torch.compiler.is_compiling():
            y = _masked(keys, values, clusters, place)
        else:
            y = _by_cluster(keys, values, clusters, used, segment, self.config.clusters)[:, before:]
        gone = (segment != segment[:, -1:])[..., None]
        state = RoutingAttentionState(
            keys.masked_fill(gone[..., None], 0.0),
            values.masked_fill(gone[..., None], 0.0),
            clusters.masked_fill(gone, 0),
            place[:, -1] + 1,
        )
        return self.out(y.flatten(2).to(x.dtype)), state


def _masked(
    keys: Float[Tensor, "B S H K"],
    values: Float[Tensor, "B S H V"],
    clusters: Int[Tensor, "B S H"],
    place: Int[Tensor, "B T"],
) -> Float[Tensor, "B T H V"]:
    """All pairs of the last T tokens with all: the definition, and the form for few queries."""
    T, S, K = place.shape[1], keys.shape[1], keys.shape[-1]
    slot = torch.arange(S, device=keys.device)
    age = slot[S - T :, None] - slot
    hidden = ((age < 0) | (age > place[..., None]))[:, None]
    c = clusters.movedim(2, 1)
    hidden = hidden | (c[:, :, S - T :, None] != c[:, :, None])
    scores = torch.einsum("bthk,bshk->bhts", keys[:, S - T :], keys) * K**0.5
    return torch.einsum(
        "bhts,bshv->bthv", scores.masked_fill(hidden, -torch.inf).softmax(-1), values
    )


def _by_cluster(
    keys: Float[Tensor, "B S H K"],
    values: Float[Tensor, "B S H V"],
    clusters: Int[Tensor, "B S H"],
    used: Bool[Tensor, "B S"],
    segment: Int[Tensor, "B S"],
    count: int,
) -> Float[Tensor, "B S H V"]:
    """Attention over the tokens of each cluster of each head, as rows of one batch."""
    B, S, H, K = keys.shape
    sent = (F.one_hot(clusters, count) > 0) & used[..., None, None]
    starts = segment.diff(dim=1, prepend=torch.zeros_like(segment[:, :1])) > 0
    selection = select(sent.flatten(2), starts)
    each = (
        compress_each(z[:, :, :, None].expand(-1, -1, -1, count, -1).flatten(2, 3), selection)
        for z in (keys, values)
    )
    k, v = (z.flatten(0, 1)[:, :, None] for z in each)  # [B H C, S, 1, K]
    y, _ = attention(k * K**0.5, k, v, resets=selection.resets.flatten(0, 1))
    y = y.squeeze(2).unflatten(0, (B, H, count))
    selection = type(selection)(*(z.unflatten(1, (H, count)).flatten(0, 1) for z in selection))
    return expand(y.flatten(0, 1), selection, S).unflatten(0, (B, H)).transpose(1, 2)
