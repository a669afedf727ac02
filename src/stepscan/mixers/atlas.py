"""ATLAS (arXiv:2505.23735): a memory fitted to a window of tokens by Muon, on polynomial features.

    G_t = sum_{t - context < i <= t} w_i grad_W |f(phi(k_i); W_start) - v_i|^2 / 2
    S_t = m_t S_{t-1} + G_t
    W_t = a_t W_{t-1} - rate_t NS(S_t)                      NS: 5 steps of Newton-Schulz (Muon)
    y_t = W_o (RMSNorm(f(phi(q_t); W_t)) * silu(W_g x_t))   the norm per head

phi are all monomials of a key up to `degree`, with learned coefficients that start at 1 / i!
(`layers/polynomial.py`). f is a network of `depth` layers, f(u) = u_1 + LN(W_2 gelu(W_1 u)), u_1
the monomials of degree 1, one per head. q, k, v come through a causal window of 4 with SiLU, q and
k have unit length; w, m, a and rate / `max_rate` are sigmoids of the input, one number per head.
`muon_steps=0` is OmegaNet: W_t = a_t W_{t-1} + S_t, S_t = m_t S_{t-1} - rate_t G_t. W_start is the
memory after the last whole chunk, counted from the last reset: the chunk is a part of the model.
Deviations: the weight of a token in a window does not depend on where the window ends; where the
gates start is not published: m near 0.9, a near 0.98, w near 0.9. The memory as a layer only.
State: three times the memory, C(K + 2, 2) x K + K x K floats each (degree 2), the windows.
Cost: with Muon every token's memory is written out and orthogonalised: the slowest of its family.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.memory import LearnedMemory, MemoryInputs
from stepscan.layers.polynomial import Polynomial
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.memory_network import Rule
from stepscan.ops.test_time_scan import MemoryState


@dataclass(frozen=True, kw_only=True)
class AtlasConfig(MixerConfig):
    """Config of the memory of ATLAS."""

    name: ClassVar[str] = "atlas"
    equation: ClassVar[str] = (
        "S = m_t S + sum_i w_i grad |f(p(k_i)) - v_i|^2;  W = a_t W - r_t NS(S)"
    )
    source: ClassVar[str] = "Behrouz et al. 2025, arXiv:2505.23735"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="test-time memory",
        transition="nonlinear",
        gate="state",
        eigenvalues="[0, 1]",
        ops=("test_time_scan", "short_conv"),
    )

    heads: int = 2
    """Number of heads H; must divide the width."""
    context: int = 4
    """Tokens whose losses one step lowers together."""
    degree: int = 2
    """Degree of the polynomial features of queries and keys; 1 for none."""
    muon_steps: int = 5
    """Steps of Newton-Schulz; 0 leaves the momentum as it is (OmegaNet)."""
    depth: int = 2
    """Layers of the memory; 1 is a matrix."""
    expansion: int = 1
    """Width inside the memory over the head size."""
    chunk: int = 16
    """Tokens whose gradients are taken at the same memory."""
    max_rate: float = 0.1
    """Largest step of a token."""
    window: int = 4
    """Tokens seen by the convolution of queries, keys and values."""

    def build(self, width: int) -> "Atlas":
        """Build the module for a model of this width."""
        if self.depth < 1 or self.expansion < 1 or not self.max_rate > 0:
            raise ValueError(
                "atlas: want depth and expansion at least 1 and max_rate above 0, got "
                f"depth={self.depth}, expansion={self.expansion}, max_rate={self.max_rate}"
            )
        return Atlas(self, width)


class AtlasState(NamedTuple):
    """What `Atlas` carries from one stretch to the next."""

    memory: MemoryState
    window: Float[Tensor, "B window E"]


class Atlas(Mixer[AtlasState]):
    """See the module docstring."""

    def __init__(self, config: AtlasConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.inputs = MemoryInputs(
            width, heads=config.heads, window=config.window, gates=(0.0, 2.0, 4.0, 2.0)
        )
        size = width // config.heads
        self.features = Polynomial(size, config.degree)
        self.memory = LearnedMemory(
            [self.features.size, *[config.expansion * size] * (config.depth - 1), size],
            heads=config.heads, momentum=True,
            rule=Rule(chunk=config.chunk, window=config.context, orthogonalize=config.muon_steps),
        )  # fmt: skip
        self.norm = nn.RMSNorm(size, eps=1e-5)
        self.gate = Linear(width, width, bias=False)
        self.out = Linear(width, width, bias=False)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> AtlasState:
        """The memory's first values, no momentum, no inputs yet."""
        return AtlasState(
            self.memory.init_state(batch, device=device, dtype=dtype),
            self.inputs.init_state(batch, device=device, dtype=dtype),
        )

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: AtlasState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], AtlasState]:
        """Mix along T."""
        memory, window = (None, None) if state is None else state
        (q, k, v), (rate, momentum, keep, weight), window = self.inputs(x, window, resets)
        y, memory = self.memory(
            self.features(q), self.features(k), v,
            rate=self.config.max_rate * torch.sigmoid(rate), momentum=torch.sigmoid(momentum),
            log_decay=F.logsigmoid(keep), weight=torch.sigmoid(weight), state=memory, resets=resets,
        )  # fmt: skip
        y = self.norm(y).flatten(-2) * F.silu(self.gate(x))
        return self.out(y), AtlasState(memory, window)
