"""Gated causal convolution: a baseline that sees the last `window` tokens and nothing else.

    c_t = bias + sum_j w_j * (W_v x_{t-j})          j = 0 .. window - 1, one filter per channel
    y_t = W_o (silu(W_g x_t) * c_t)

After gated convolutional networks (arXiv:1612.08083) and the short filters of Hyena
(arXiv:2302.10866). Differs from the first: depthwise filters between two maps of the channels where
it has dense ones, silu where it has a sigmoid, and a gate without a convolution of its own.
State: B x (window - 1) x E floats, the last inputs of the filter.   Cost: O(T E (D + window)).
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from stepscan.layers.convolution import ShortConv
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy


@dataclass(frozen=True, kw_only=True)
class CausalConvConfig(MixerConfig):
    """Config of the gated causal convolution."""

    name: ClassVar[str] = "causal_conv"
    equation: ClassVar[str] = "y = W_o (silu(W_g x_t) * sum_j w_j * (W_v x_{t-j}))"
    source: ClassVar[str] = "Dauphin et al. 2016, arXiv:1612.08083"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="convolution",
        ops=("short_conv",),
    )

    window: int = 16
    """How many tokens a filter sees, the current one included."""
    expansion: float = 1.0
    """Number of channels, as a multiple of the model width."""

    def build(self, width: int) -> "CausalConv":
        """Build the module for a model of this width."""
        inner = round(width * self.expansion)
        if self.window < 2:
            raise ValueError(f"causal_conv: want window at least 2, got {self.window}")
        if inner < 1:
            raise ValueError(f"causal_conv: expansion={self.expansion} leaves no channels")
        return CausalConv(self, width, inner)


class CausalConvState(NamedTuple):
    """What `CausalConv` carries from one stretch to the next."""

    inputs: Float[Tensor, "B P E"]


class CausalConv(Mixer[CausalConvState]):
    """See the module docstring."""

    def __init__(self, config: CausalConvConfig, width: int, inner: int) -> None:
        super().__init__()
        self.config = config
        self.gate = Linear(width, inner, bias=False)
        self.value = Linear(width, inner, bias=False)
        self.conv = ShortConv(inner, config.window, activation=None)
        self.out = Linear(inner, width, bias=False)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> CausalConvState:
        """No inputs yet."""
        return CausalConvState(self.conv.init_state(batch, device=device, dtype=dtype))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: CausalConvState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], CausalConvState]:
        """Mix along T."""
        inputs = None if state is None else state.inputs
        c, inputs = self.conv(self.value(x), inputs, resets)
        return self.out(F.silu(self.gate(x)) * c), CausalConvState(inputs)
