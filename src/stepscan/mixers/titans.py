"""Titans (arXiv:2501.00663), its long-term memory: surprise with momentum, and forgetting.

    S_t = m_t S_{t-1} - rate_t grad_W |f(k_t; W_start) - v_t|^2 / 2
    W_t = (1 - a_t) W_{t-1} + S_t
    y_t = W_o (RMSNorm(f(q_t; W_t)) * silu(W_g x_t))                    the norm per head

f is a network of `depth` layers with a residual norm, f(k) = k + LN(W_2 gelu(W_1 k)), twice as wide
inside, one per head. q, k, v come through a causal window of 4 with SiLU, q and k have unit length;
m, a and rate / `max_rate` are sigmoids of the input, one number per head. W_start is the memory
after the last whole chunk, counted from the last reset, so that a chunk's steps are sums: the chunk
is a part of the model. A read sees its own token and all before it, as in the paper.
The paper leaves open the width inside, the residual norm and where the gates start: here m starts
near 0.9, a near 0.02, rates near `max_rate` / 2. Memory as a layer only: no attention
branch and no persistent tokens, which a model adds as layers.
State: three times the memory, 4 B x H x K x K floats each, the window, the place in the chunk.
Cost: O(T K (12 K + 3 C)) per head, a chunk of C tokens at a time.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.memory import LearnedMemory, MemoryInputs
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.memory_network import Rule
from stepscan.ops.test_time_scan import MemoryState


@dataclass(frozen=True, kw_only=True)
class TitansConfig(MixerConfig):
    """Config of the memory of Titans."""

    name: ClassVar[str] = "titans"
    equation: ClassVar[str] = "S = m_t S - r_t grad |f(k_t; W) - v_t|^2;  W = (1 - a_t) W + S"
    source: ClassVar[str] = "Behrouz et al. 2025, arXiv:2501.00663"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="test-time memory",
        transition="nonlinear",
        gate="state",
        eigenvalues="[0, 1]",
        ops=("test_time_scan", "short_conv"),
    )

    heads: int = 2
    """Number of heads H; must divide the width."""
    depth: int = 2
    """Layers of the memory; 1 is a matrix."""
    expansion: int = 2
    """Width inside the memory over the head size."""
    chunk: int = 16
    """Tokens whose gradients are taken at the same memory."""
    max_rate: float = 0.1
    """Largest step of a token."""
    window: int = 4
    """Tokens seen by the convolution of queries, keys and values."""

    def build(self, width: int) -> "Titans":
        """Build the module for a model of this width."""
        if self.depth < 1 or self.expansion < 1 or not self.max_rate > 0:
            raise ValueError(
                "titans: want depth and expansion at least 1 and max_rate above 0, got "
                f"depth={self.depth}, expansion={self.expansion}, max_rate={self.max_rate}"
            )
        return Titans(self, width)


class TitansState(NamedTuple):
    """What `Titans` carries from one stretch to the next."""

    memory: MemoryState
    window: Float[Tensor, "B window E"]


class Titans(Mixer[TitansState]):
    """See the module docstring."""

    def __init__(self, config: TitansConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.inputs = MemoryInputs(
            width, heads=config.heads, window=config.window, gates=(0.0, 2.0, 4.0)
        )
        size = width // config.heads
        self.memory = LearnedMemory(
            [size, *[config.expansion * size] * (config.depth - 1), size],
            heads=config.heads, rule=Rule(chunk=config.chunk), momentum=True,
        )  # fmt: skip
        self.norm = nn.RMSNorm(size, eps=1e-5)
        self.gate = Linear(width, width, bias=False)
        self.out = Linear(width, width, bias=False)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> TitansState:
        """The memory's first values, no momentum, no inputs yet."""
        return TitansState(
            self.memory.init_state(batch, device=device, dtype=dtype),
            self.inputs.init_state(batch, device=device, dtype=dtype),
        )

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: TitansState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], TitansState]:
        """Mix along T."""
        memory, window = (None, None) if state is None else state
        (q, k, v), (rate, momentum, keep), window = self.inputs(x, window, resets)
        y, memory = self.memory(
            q, k, v, rate=self.config.max_rate * torch.sigmoid(rate),
            momentum=torch.sigmoid(momentum), log_decay=F.logsigmoid(keep), state=memory,
            resets=resets,
        )  # fmt: skip
        y = self.norm(y).flatten(-2) * F.silu(self.gate(x))
        return self.out(y), TitansState(memory, window)
