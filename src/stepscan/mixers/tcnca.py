"""TCNCA (arXiv:2312.05605): MEGA with dilated convolutions in place of the moving average.

    m_t^0 = x_t,  m_t^b = m_t^{b-1} + silu(bias + sum_j w_j m_{t - j f^{b-1}}^{b-1})    b = 1 .. B
    y_t = u_t * (silu(W_h m_t + W_o (r_t * attention_t)) - x_t)      gates u, r and q, k from m^B

j = 0 .. W - 1. The convolutions reach 1 + (W - 1) (f^B - 1) / (f - 1) tokens back, f the dilation
factor; the attention is MEGA's, in chunks (`layers/chunked_attention.py`). Cost linear in T.
Uncertain: the paper's abstract fixes the idea; one filter per channel, one convolution a block and
the residual silu are choices made here, as are the sizes. Filters start uniform in +-1/sqrt(W).
State: (W - 1) f^b inputs of each block, keys and values of C - 1 tokens and the chunk's length.
Cost: O(T (D^2 + D B W + C D)).
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
from stepscan.ops.dilated_conv import dilated_conv


@dataclass(frozen=True, kw_only=True)
class TCNCAConfig(MixerConfig):
    """Config of TCNCA."""

    name: ClassVar[str] = "tcnca"
    equation: ClassVar[str] = "m = x + silu(sum_j w_j x_{t - j f^b}), B times;  attention in chunks"
    source: ClassVar[str] = "Terzic et al. 2023, arXiv:2312.05605"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="hybrid",
        ops=("dilated_conv", "chunk_attention"),
    )

    blocks: int = 4
    """Convolutions B, one after the other."""
    window: int = 4
    """Taps W of a filter."""
    dilation: int = 3
    """Factor f: the taps of block b = 0, 1, .. are f^b tokens apart."""
    chunk: int = 64
    """Tokens C of a chunk."""
    attention: str = "softmax"
    """"softmax", "laplace" or "relu2"."""
    key_ratio: float = 0.25
    """Width of the keys, as a part of the model width."""
    expansion: float = 2.0
    """Width of the values, as a multiple of the model width."""

    @property
    def reach(self) -> int:
        """Tokens that the convolutions see, the current one included."""
        return 1 + (self.window - 1) * sum(self.dilation**b for b in range(self.blocks))

    def build(self, width: int) -> "TCNCA":
        """Build the module for a model of this width."""
        if min(self.blocks, self.dilation) < 1 or self.window < 2:
            raise ValueError(
                "tcnca: want blocks and dilation at least 1, window at least 2, "
                f"got {self.blocks}, {self.dilation} and {self.window}"
            )
        return TCNCA(self, width)


class TCNCAState(NamedTuple):
    """What `TCNCA` carries from one stretch to the next."""

    inputs: tuple[Tensor, ...]
    """Of each block, [B, (W - 1) f^b, D]."""
    chunk: ChunkState


class TCNCA(Mixer[TCNCAState]):
    """See the module docstring."""

    def __init__(self, config: TCNCAConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.filters = nn.ParameterList(
            torch.empty(width, config.window) for _ in range(config.blocks)
        )
        self.biases = nn.ParameterList(torch.empty(width) for _ in range(config.blocks))
        self.attention = ChunkedAttention(
            width,
            keys=round(width * config.key_ratio),
            values=round(width * config.expansion),
            chunk=config.chunk,
            function=config.attention,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values of the convolutions."""
        bound = self.config.window**-0.5
        for weight in (*self.filters, *self.biases):
            nn.init.uniform_(weight, -bound, bound)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> TCNCAState:
        """No inputs yet, the start of a chunk."""
        chunk = self.attention.init_state(batch, device=device, dtype=dtype)
        (D, W), f = self.filters[0].shape, self.config.dilation
        inputs = (chunk.keys.new_zeros(batch, (W - 1) * f**b, D) for b in range(len(self.filters)))
        return TCNCAState(tuple(inputs), chunk)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: TCNCAState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], TCNCAState]:
        """Mix along T."""
        state = self.init_state(len(x)) if state is None else state
        m, inputs = x, []
        for b, (weight, bias) in enumerate(zip(self.filters, self.biases, strict=True)):
            c, last = dilated_conv(
                m, weight, bias, dilation=self.config.dilation**b, state=state.inputs[b],
                resets=resets,
            )  # fmt: skip
            m = m + F.silu(c)
            inputs.append(last)
        y, chunk = self.attention(x, m, state.chunk, resets)
        return y, TCNCAState(tuple(inputs), chunk)
