"""Miras (arXiv:2504.13173): memories with other losses and other ways to forget.

    A_t = a_t A_{t-1} - rate_t grad_W loss(f(k_t; W_start), v_t)
    y_t = W_o (RMSNorm(f(q_t; W_t)) * silu(W_g x_t))                    the norm per head

    preset    loss                                              W, layer by layer
    moneta    sum |f(k) - v|^3, smooth                          A / |A|_4^2
    yaad      Huber of |f(k) - v|, its threshold by the input   A
    memora    |f(k) - v|^2 / 2                                  softmax of A over a layer's inputs

f is a network of two layers with a residual norm, f(k) = k + LN(W_2 gelu(W_1 k)), four times as
wide inside, one per head. q, k, v come through a causal window of 4 with SiLU, q and k have unit
length. W_start is the memory after the last whole chunk, counted from the last reset: the chunk is
a part of the model. A chunk's steps are sums in A, and each read sees the norm or the softmax of
its own A. Memora's softmax(a log W - rate grad) is the softmax of that same A.
Deviations: rates, decays and thresholds are one number per head, where the paper has one per
channel by maps of low rank; where they start is not published: rates near `max_rate` / 2, decays
near 0.98, thresholds near 1.3. Over what Memora's softmax goes is our reading.
State: twice the memory, 8 B x H x K x K floats each, the window, the place in the chunk.
Cost: O(T K (24 K + 5 C)) per head for yaad; the others write out each token's memory.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.memory import LearnedMemory, MemoryInputs
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.names import lookup
from stepscan.ops.memory_network import Rule
from stepscan.ops.test_time_scan import MemoryState

PRESETS = {
    "moneta": Rule(loss="lp", power=3.0, retention="q_norm", norm_power=4.0),
    "yaad": Rule(loss="huber"),
    "memora": Rule(retention="softmax"),
}


@dataclass(frozen=True, kw_only=True)
class MirasConfig(MixerConfig):
    """Config of the memories of Miras."""

    name: ClassVar[str] = "miras"
    equation: ClassVar[str] = "A = a_t A - r_t grad loss(f(k_t; W), v_t);  W = link(A)"
    source: ClassVar[str] = "Behrouz et al. 2025, arXiv:2504.13173"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="test-time memory",
        transition="nonlinear",
        gate="state",
        eigenvalues="[0, 1]",
        ops=("test_time_scan", "short_conv"),
    )

    preset: str = "yaad"
    """"moneta", "yaad" or "memora"."""
    heads: int = 2
    """Number of heads H; must divide the width."""
    expansion: int = 4
    """Width inside the memory over the head size."""
    chunk: int = 16
    """Tokens whose gradients are taken at the same memory."""
    max_rate: float = 0.1
    """Largest step of a token."""
    window: int = 4
    """Tokens seen by the convolution of queries, keys and values."""

    def build(self, width: int) -> "Miras":
        """Build the module for a model of this width."""
        if self.expansion < 1 or not self.max_rate > 0:
            raise ValueError(
                "miras: want expansion at least 1 and max_rate above 0, got "
                f"expansion={self.expansion}, max_rate={self.max_rate}"
            )
        return Miras(self, width)


class MirasState(NamedTuple):
    """What `Miras` carries from one stretch to the next."""

    memory: MemoryState
    window: Float[Tensor, "B window E"]


class Miras(Mixer[MirasState]):
    """See the module docstring."""

    def __init__(self, config: MirasConfig, width: int) -> None:
        super().__init__()
        self.config = config
        rule = replace(lookup(PRESETS, config.preset, kind="preset of miras"), chunk=config.chunk)
        gates = (0.0, 4.0, 1.0) if rule.loss == "huber" else (0.0, 4.0)
        self.inputs = MemoryInputs(width, heads=config.heads, window=config.window, gates=gates)
        size = width // config.heads
        self.memory = LearnedMemory(
            [size, config.expansion * size, size], heads=config.heads, rule=rule
        )
        self.norm = nn.RMSNorm(size, eps=1e-5)
        self.gate = Linear(width, width, bias=False)
        self.out = Linear(width, width, bias=False)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> MirasState:
        """The memory's first values, no inputs yet."""
        return MirasState(
            self.memory.init_state(batch, device=device, dtype=dtype),
            self.inputs.init_state(batch, device=device, dtype=dtype),
        )

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: MirasState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], MirasState]:
        """Mix along T."""
        memory, window = (None, None) if state is None else state
        (q, k, v), (rate, keep, *threshold), window = self.inputs(x, window, resets)
        y, memory = self.memory(
            q, k, v, rate=self.config.max_rate * torch.sigmoid(rate), log_decay=F.logsigmoid(keep),
            threshold=F.softplus(threshold[0]) if threshold else None, state=memory, resets=resets,
        )  # fmt: skip
        y = self.norm(y).flatten(-2) * F.silu(self.gate(x))
        return self.out(y), MirasState(memory, window)
