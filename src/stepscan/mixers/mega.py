"""MEGA (arXiv:2209.10655): a damped moving average feeds a gated attention inside chunks.

    h_t = (1 - a d) * h_{t-1} + a * (beta x_t)        h: n numbers for each channel; a, d in (0, 1)
    m_t = silu(sum_n eta h_t / sqrt(n) + omega * x_t)
    y_t = u_t * (silu(W_h m_t + W_o (r_t * attention_t)) - x_t)      gates u, r and q, k from m

The attention has one head, a learned bias by distance, and sees its own chunk; the average carries
what came before. `layers/chunked_attention.py` has its equations and its difference: y is what the
block adds to its input. Initial values as published: logits of a and d normal with 0.2, beta
alternating 1, -1 plus normal 0.02, eta and omega standard normal.
State: B x D x n floats, keys and values of C - 1 tokens and the chunk's length.
Cost: O(T (D^2 + D n + C D)).
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.chunked_attention import ChunkedAttention
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.chunk_attention import ChunkState
from stepscan.ops.ssm_conv import ssm_conv


@dataclass(frozen=True, kw_only=True)
class MegaConfig(MixerConfig):
    """Config of MEGA."""

    name: ClassVar[str] = "mega"
    equation: ClassVar[str] = "h = (1 - a d) h + a beta x_t;  y = attention in chunks of h, gated"
    source: ClassVar[str] = "Ma et al. 2022, arXiv:2209.10655"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="hybrid",
        transition="diagonal",
        gate="fixed",
        eigenvalues="[0, 1]",
        ops=("ssm_conv", "chunk_attention"),
    )

    states: int = 16
    """Numbers n in the average of each channel."""
    chunk: int = 64
    """Tokens C of a chunk."""
    attention: str = "softmax"
    """"softmax", "laplace" or "relu2"."""
    key_ratio: float = 0.25
    """Width of the keys, as a part of the model width."""
    expansion: float = 2.0
    """Width of the values, as a multiple of the model width."""

    def build(self, width: int) -> "Mega":
        """Build the module for a model of this width."""
        if self.states < 1:
            raise ValueError(f"mega: want states at least 1, got {self.states}")
        return Mega(self, width)


class MegaState(NamedTuple):
    """What `Mega` carries from one stretch to the next."""

    memory: Float[Tensor, "B D N"]
    chunk: ChunkState


class Mega(Mixer[MegaState]):
    """See the module docstring."""

    no_decay = ("rate", "damping", "expand", "project", "skip")

    def __init__(self, config: MegaConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.rate = nn.Parameter(torch.empty(width, config.states))
        self.damping = nn.Parameter(torch.empty(width, config.states))
        self.expand = nn.Parameter(torch.empty(width, config.states))
        self.project = nn.Parameter(torch.empty(width, config.states))
        self.skip = nn.Parameter(torch.empty(width))
        self.attention = ChunkedAttention(
            width,
            keys=round(width * config.key_ratio),
            values=round(width * config.expansion),
            chunk=config.chunk,
            function=config.attention,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values of the average."""
        for logit in (self.rate, self.damping):
            nn.init.normal_(logit, std=0.2)
        with torch.no_grad():
            signs = 1.0 - 2.0 * (torch.arange(self.config.states) % 2)
            self.expand.normal_(std=0.02).add_(signs.to(self.expand))
        nn.init.normal_(self.project)
        nn.init.normal_(self.skip)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> MegaState:
        """An empty average, the start of a chunk."""
        chunk = self.attention.init_state(batch, device=device, dtype=dtype)
        return MegaState(chunk.keys.new_zeros(batch, *self.rate.shape), chunk)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: MegaState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], MegaState]:
        """Mix along T."""
        memory, chunk = (None, None) if state is None else state
        wide = torch.promote_types(self.rate.dtype, torch.float32)
        a, d = (torch.sigmoid(logit.to(wide)) for logit in (self.rate, self.damping))
        h, memory = ssm_conv(
            x,
            log_a=torch.log1p(-a * d),
            b=a * self.expand.to(wide),
            c=self.project.to(wide) * self.config.states**-0.5,
            state=memory,
            resets=resets,
        )
        y, chunk = self.attention(x, F.silu(h + self.skip * x), chunk, resets)
        return y, MegaState(memory, chunk)
