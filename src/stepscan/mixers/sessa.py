"""Sessa (selective state space attention, arXiv:2604.18580): attention inside a feedback loop.

    a_t, g_t = W_in x_t;  a_t = gelu(a_t)
    f_t = sum_{j<=t} softmax_j(q_t^T k_j / sqrt(K)) v_j           causal, with rotary positions
    s_t = f_t + c_t sum_{j<t} softmax_j(q'_t^T k'_j / sqrt(D)) s_j        one head, no positions
    c_t = 0.999 tanh(w . a_t + b);  y_t = W_out (s_t * g_t)

q, k, v, q', k' are affine maps of a_t. As published: one head, b starts at 1; with more heads a map
W_f without biases joins those of f. Initial values: those of a linear map.
State: four tensors of S x D floats, S the tokens so far; grows.   Cost: O(T S D).
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.projection import Linear
from stepscan.layers.rotary import rotate
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.arguments import as_resets
from stepscan.ops.attention import AttentionState, attention
from stepscan.ops.feedback_attention import feedback_attention
from stepscan.ops.positions import positions


@dataclass(frozen=True, kw_only=True)
class SessaConfig(MixerConfig):
    """Config of Sessa."""

    name: ClassVar[str] = "sessa"
    equation: ClassVar[str] = (
        "s = f_t + c_t sum_{j<t} softmax_j(q'.k'_j) s_j;  f = sum_j softmax_j(q.k_j) v_j"
    )
    source: ClassVar[str] = "Horbatko 2026, arXiv:2604.18580"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="softmax attention",
        ops=("feedback_attention", "attention"),
    )

    heads: int = 1
    """Heads H of the attention that feeds the loop; must divide the width."""
    rotary: bool = True
    """Rotate the queries and keys of that attention to their positions."""
    max_gain: float = 0.999
    """Bound of the loop's gain; below 1."""

    def build(self, width: int) -> "Sessa":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"sessa: heads={self.heads} must divide width={width}")
        if self.rotary and width // self.heads % 2:
            size = width // self.heads
            raise ValueError(f"sessa: rotary wants an even head size, width / heads is {size}")
        if not 0 < self.max_gain < 1:
            raise ValueError(f"sessa: want max_gain between 0 and 1, got {self.max_gain}")
        return Sessa(self, width)


class SessaState(NamedTuple):
    """What `Sessa` carries from one stretch to the next."""

    forward: AttentionState
    feedback: AttentionState


class Sessa(Mixer[SessaState]):
    """See the module docstring."""

    no_decay = ("gain_bias",)

    def __init__(self, config: SessaConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.width = width
        self.inputs = Linear(width, 2 * width)
        self.qkv = Linear(width, 3 * width)
        self.feedback = Linear(width, 2 * width)
        self.join = Linear(width, width, bias=False) if config.heads > 1 else None
        self.gain = Linear(width, 1, bias=False)
        self.gain_bias = nn.Parameter(torch.empty(1))
        self.out = Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial value of the gain."""
        nn.init.ones_(self.gain_bias)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> SessaState:
        """No past yet: no slots."""
        weight, heads = self.out.weight, self.config.heads
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        length = torch.zeros(batch, device=device or weight.device, dtype=torch.int64)
        parts = []
        for h in (heads, 1):
            past = weight.new_zeros((batch, 0, h, self.width // h), device=device, dtype=dtype)
            parts.append(AttentionState(past, past.clone(), length.clone()))
        return SessaState(*parts)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: SessaState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], SessaState]:
        """Mix along T."""
        state = self.init_state(len(x)) if state is None else state
        a, g = self.inputs(x).chunk(2, -1)
        a = F.gelu(a)
        q, k, v = (p.unflatten(-1, (self.config.heads, -1)) for p in self.qkv(a).chunk(3, -1))
        if self.config.rotary:
            place = positions(state.forward.length, as_resets(resets, x))
            q, k = rotate(torch.cat([q, k], 2), place).chunk(2, 2)
        q = q * q.shape[-1] ** -0.5
        f, forward = attention(q, k, v, state=state.forward, resets=resets)
        f = f.flatten(2) if self.join is None else self.join(f.flatten(2))
        q, k = self.feedback(a)[:, :, None].chunk(2, -1)
        gain = self.config.max_gain * torch.tanh(self.gain(a) + self.gain_bias)
        s, feedback = feedback_attention(
            f[:, :, None],
            q * self.width**-0.5,
            k,
            gain=gain,
            state=state.feedback,
            resets=resets,
        )
        return self.out(s[:, :, 0] * g), SessaState(forward, feedback)
