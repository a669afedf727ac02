"""TTT (arXiv:2407.04620): a memory that is trained while it reads, averaging over mini-batches.

    q, k = rotate(W_q x, p), rotate(W_k x, p),   v = W_v x          p = place in the chunk
    f(k; W) = k + LN(g(k; W))                                       LN with weights per head
    W_t = W_start - s_p sum_i rate_i grad_W |f(k_i; W_start) - v_i|^2 / 2       i in the chunk, <= t
    rate_i = base sigmoid(theta x_i + b) / K,   s_p = max(0, 1 / (p + 1) + learned_p)
    y_t = W_o LayerNorm(f(q_t; W_t))                                over all heads together

g is one layer with a bias (TTT-Linear, base 1) or two with a gelu between and four times the width
(TTT-MLP, base 0.1). Chunks have 16 tokens, counted from the last reset; gradients are taken at the
memory of the chunk's start, W_start, whose first values are learned, normal with 0.02.
As the authors' Transformer backbone. Deviations: the optional shared projection of q and k with
convolutions is left out; pairs of the rotation are half a head apart.
State: twice the memory, B x H x (K + 1) x K floats (linear), and the place in the chunk.
Cost: O(T K (K + 16)) per head (linear), a chunk at a time.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.memory import LearnedMemory, MemoryInputs
from stepscan.layers.projection import Linear
from stepscan.layers.rotary import rotate
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.names import lookup
from stepscan.ops.memory_network import Rule
from stepscan.ops.positions import positions
from stepscan.ops.test_time_scan import MemoryState

BASE_RATE = {"linear": 1.0, "mlp": 0.1}


@dataclass(frozen=True, kw_only=True)
class TTTConfig(MixerConfig):
    """Config of TTT."""

    name: ClassVar[str] = "ttt"
    equation: ClassVar[str] = "W = W_0 - s_t sum_i r_i grad |f(k_i; W_0) - v_i|^2;  y = f(q_t; W)"
    source: ClassVar[str] = "Sun et al. 2024, arXiv:2407.04620"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="test-time memory",
        transition="nonlinear",
        gate="state",
        eigenvalues="any",
        ops=("test_time_scan",),
    )

    heads: int = 2
    """Number of heads H; must divide the width into even parts."""
    memory: str = "linear"
    """"linear": one layer; "mlp": two, four times as wide inside."""
    chunk: int = 16
    """Tokens whose gradients are taken at the same memory."""
    base_rate: float | None = None
    """Largest step of a token, times the head size. None: 1 for "linear", 0.1 for "mlp"."""
    gate: bool = False
    """Multiply the normed output by gelu(W_g x)."""
    rotary_base: float = 10000.0
    """Base of the rotations."""

    def build(self, width: int) -> "TTT":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads or width // self.heads % 2:
            raise ValueError(f"ttt: heads={self.heads} must divide width={width} into even parts")
        return TTT(self, width)


class TTT(Mixer[MemoryState]):
    """See the module docstring."""

    def __init__(self, config: TTTConfig, width: int) -> None:
        super().__init__()
        self.config = config
        base = lookup(BASE_RATE, config.memory, kind="memory of ttt")
        self.base_rate = base if config.base_rate is None else config.base_rate
        size = width // config.heads
        sizes = [size, *([4 * size] if config.memory == "mlp" else []), size]
        self.inputs = MemoryInputs(
            width, heads=config.heads, window=None, normalize=False, gates=(0.0,)
        )
        self.memory = LearnedMemory(
            sizes, heads=config.heads, rule=Rule(chunk=config.chunk), bias=True, std=0.02
        )
        self.place = nn.Parameter(torch.zeros(config.chunk))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.gate = Linear(width, width, bias=False) if config.gate else None
        self.out = Linear(width, width, bias=False)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> MemoryState:
        """The memory's first values, at the start of a chunk."""
        return self.memory.init_state(batch, device=device, dtype=dtype)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: MemoryState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], MemoryState]:
        """Mix along T."""
        state = self.init_state(len(x)) if state is None else state
        (q, k, v), (theta,), _ = self.inputs(x)
        none = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        place = positions(state.position, none if resets is None else resets) % self.config.chunk
        q, k = (rotate(part, place, self.config.rotary_base) for part in (q, k))
        scale = F.relu(1 / (place + 1).to(self.place.dtype) + self.place[place])
        y, state = self.memory(
            q, k, v, rate=self.base_rate / q.shape[-1] * torch.sigmoid(theta),
            scale=scale[..., None].expand_as(theta), state=state, resets=resets,
        )  # fmt: skip
        y = self.norm(y.flatten(-2))
        if self.gate is not None:
            y = y * F.gelu(self.gate(x), approximate="tanh")
        return self.out(y), state
