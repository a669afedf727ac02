"""Oryx (arXiv:2605.28769): attention and a linear recurrence over the same keys and values.

    k, v  = conv(W_k x), conv(W_v x)                        shared, as the gate, norm and output map
    a_t   = attention of q^a = conv(W_a x) over all k, v    RMS-normed, rotated; learned scale
    r_t   = gated delta rule of unit(k), v, read at unit(q^r), q^r = conv(W_r x)
    y_t   = W_o (RMSNorm(a_t or r_t) * silu(W_g x_t))       the norm per head

Every token enters both memories, whatever answers it, so the mode may change at any token:
`mode` of the module is "attention", "recurrent", or "alternate" (spans of `span` tokens in turn,
from the last reset, recurrent first); it may be changed between calls, say per training step.
`forward(..., attend=)` says it for each token instead.
Nothing but the abstract and summaries was at hand: shared keys and values, queries of their own,
both states updated by every token and at least 90 % of a block's parameters shared are published
(with the default MLP beside the mixer 92 %), the rest is `gated_delta_net`'s and is chosen here.
State: keys and values of all tokens, 2 x S x H x (K + V) / 2 floats, which grows; K x V floats per
head and the window's last inputs.
Cost: O(T S (K + V) + T K V) per head; "recurrent" O(T K V).
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.convolution import ShortConv
from stepscan.layers.decay_gate import DecayGate
from stepscan.layers.delta_inputs import unit
from stepscan.layers.projection import Linear
from stepscan.layers.rotary import rotate
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.names import lookup
from stepscan.ops.arguments import as_resets
from stepscan.ops.attention import AttentionState, attention, remember
from stepscan.ops.delta_rule import delta_rule
from stepscan.ops.positions import positions

MODES = ("attention", "recurrent", "alternate")


@dataclass(frozen=True, kw_only=True)
class OryxConfig(MixerConfig):
    """Config of Oryx."""

    name: ClassVar[str] = "oryx"
    equation: ClassVar[str] = "y = softmax(q_a^T k) v  or  S = a_t S + b_t k_t (v_t - S^T k_t)^T"
    source: ClassVar[str] = "Li et al. 2026, arXiv:2605.28769"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="hybrid",
        transition="householder",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("delta_rule", "attention", "short_conv"),
    )

    mode: str = "alternate"
    """"attention", "recurrent" or "alternate": what answers at first."""
    span: int = 8
    """Tokens answered in turn with "alternate"."""
    heads: int = 4
    """Number of heads H; must divide the widths of keys and values."""
    key_ratio: float = 0.5
    """Width of all keys together, as a multiple of the model width."""
    value_ratio: float = 1.5
    """Width of all values together, as a multiple of the model width."""
    window: int = 4
    """Tokens seen by the convolution of queries, keys and values."""
    rotary_base: float = 10000.0
    """Base of the rotations of the attention's queries and keys."""

    def build(self, width: int) -> "Oryx":
        """Build the module for a model of this width."""
        keys, values = round(width * self.key_ratio), round(width * self.value_ratio)
        lookup(dict.fromkeys(MODES), self.mode, kind=f"mode of {self.name}")
        if self.heads < 1 or not keys or not values or keys % self.heads or values % self.heads:
            raise ValueError(
                f"oryx: heads={self.heads} must divide keys={keys} and values={values}"
            )
        if keys // self.heads % 2:
            size = keys // self.heads
            raise ValueError(f"oryx: rotations want an even head size, keys / heads is {size}")
        if self.span < 1:
            raise ValueError(f"oryx: want span at least 1, got {self.span}")
        return Oryx(self, width, keys, values)


class OryxState(NamedTuple):
    """What `Oryx` carries from one stretch to the next."""

    attention: AttentionState
    memory: Float[Tensor, "B H K V"]
    window: Float[Tensor, "B window E"]


class Oryx(Mixer[OryxState]):
    """See the module docstring."""

    no_decay = ("decay.log_rate", "decay.step_bias")

    def __init__(self, config: OryxConfig, width: int, keys: int, values: int) -> None:
        super().__init__()
        self.config = config
        self.mode = config.mode
        self.sizes = keys, keys, keys, values
        self.qqkv = Linear(width, sum(self.sizes), bias=False)
        self.conv = ShortConv(sum(self.sizes), config.window, bias=False)
        self.scale = nn.Parameter(torch.ones(config.heads))  # of the attention's queries
        self.strength = Linear(width, config.heads, bias=False)
        self.decay = DecayGate(width, config.heads)
        self.norm = nn.RMSNorm(values // config.heads, eps=1e-5)
        self.gate = Linear(width, values, bias=False)
        self.out = Linear(values, width, bias=False)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> OryxState:
        """Empty memories, no inputs yet."""
        window = self.conv.init_state(batch, device=device, dtype=dtype)
        heads = self.config.heads
        keys, values = self.sizes[0] // heads, self.sizes[3] // heads
        return OryxState(
            AttentionState(
                window.new_zeros(batch, 0, heads, keys),
                window.new_zeros(batch, 0, heads, values),
                torch.zeros(batch, device=window.device, dtype=torch.int64),
            ),
            window.new_zeros(batch, heads, keys, values),
            window,
        )

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: OryxState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
        attend: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], OryxState]:
        """Mix along T; `attend` says which tokens attention answers."""
        state = self.init_state(len(x)) if state is None else state
        place = positions(state.attention.length, as_resets(resets, x))
        if attend is None and self.mode == "alternate":
            attend = place // self.config.span % 2 == 1
        qqkv, window = self.conv(self.qqkv(x), state.window, resets)
        q_a, q_r, k, v = (
            rearrange(z, "b t (h k) -> b t h k", h=self.config.heads)
            for z in qqkv.split(self.sizes, -1)
        )
        read, memory = delta_rule(
            unit(q_r) * k.shape[-1] ** -0.5, unit(k), v, beta=torch.sigmoid(self.strength(x)),
            log_decay=self.decay(x), state=state.memory, resets=resets,
        )  # fmt: skip
        keys = rotate(unit(k) * k.shape[-1] ** 0.5, place, self.config.rotary_base)
        if attend is None and self.mode == "recurrent":
            kept = remember(keys, v, state=state.attention, resets=resets)
        else:
            q = rotate(unit(q_a) * self.scale[:, None], place, self.config.rotary_base)
            seen, kept = attention(q, keys, v, state=state.attention, resets=resets)
            read = seen if attend is None else torch.where(attend[..., None, None], seen, read)
        y = self.norm(read).flatten(-2) * F.silu(self.gate(x))
        return self.out(y), OryxState(kept, memory, window)
