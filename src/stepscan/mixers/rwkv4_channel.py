"""RWKV-4's channel mixing (arXiv:2305.13048): a feed-forward layer that sees the token before, too.

    x_* = m_* x_t + (1 - m_*) x_{t-1}                          for each of r, k
    y_t = sigmoid(W_r x_r) * W_v relu(W_k x_k)^2

It has a state, so it is a mixer: "(rwkv4 rwkv4_channel)*6" with mlp_ratio 0. Initial values by
depth, as published; maps orthogonal, those of r and W_v zero in the authors' code: here they are
orthogonal too, r scaled by 0.1, so that nothing starts dead.
State: the last input, B x D floats, constant in T.   Cost: that of the projections.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.shift import shift


@dataclass(frozen=True, kw_only=True)
class RWKV4ChannelConfig(MixerConfig):
    """Config of RWKV-4's channel mixing."""

    name: ClassVar[str] = "rwkv4_channel"
    equation: ClassVar[str] = "y = sigmoid(W_r x_r) W_v relu(W_k x_k)^2, x_* between x and the last"
    source: ClassVar[str] = "Peng et al. 2023, arXiv:2305.13048"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="convolution",
    )

    expansion: float = 4.0
    """Hidden width, as a multiple of the model width."""
    layer: int = 0
    """Index of the layer, 0 the lowest: initial values depend on it."""
    layers: int = 1
    """Number of layers of the model."""

    def build(self, width: int) -> "RWKV4Channel":
        """Build the module for a model of this width."""
        hidden = round(width * self.expansion)
        if hidden < 1:
            raise ValueError(f"rwkv4_channel: want expansion above 0, got {self.expansion}")
        if not 0 <= self.layer < self.layers:
            raise ValueError(
                f"rwkv4_channel: want 0 <= layer < layers, got {self.layer} and {self.layers}"
            )
        return RWKV4Channel(self, width, hidden)


class RWKV4ChannelState(NamedTuple):
    """What `RWKV4Channel` carries from one stretch to the next."""

    last: Float[Tensor, "B D"]


class RWKV4Channel(Mixer[RWKV4ChannelState]):
    """See the module docstring."""

    no_decay = ("mix",)

    def __init__(self, config: RWKV4ChannelConfig, width: int, hidden: int) -> None:
        super().__init__()
        self.config = config
        self.mix = nn.Parameter(torch.empty(2, width))  # of r, k
        self.receptance = Linear(width, width, bias=False)
        self.key = Linear(width, hidden, bias=False)
        self.value = Linear(hidden, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values, by channel and by depth."""
        width, rest = self.mix.shape[1], 1 - self.config.layer / self.config.layers
        with torch.no_grad():
            self.mix.copy_((torch.arange(width) / width) ** rest)
        for linear, gain in ((self.receptance, 0.1), (self.key, 1), (self.value, 1)):
            nn.init.orthogonal_(linear.weight, gain=gain)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> RWKV4ChannelState:
        """No input before the first."""
        weight = self.value.weight
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        shape = batch, len(weight)
        return RWKV4ChannelState(torch.zeros(shape, device=device or weight.device, dtype=dtype))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: RWKV4ChannelState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], RWKV4ChannelState]:
        """Mix along T."""
        (last,) = self.init_state(len(x)) if state is None else state
        before, last = shift(x, last, resets)
        x_r, x_k = (before + mix * (x - before) for mix in self.mix)
        y = self.value(F.relu(self.key(x_k)).square())
        return torch.sigmoid(self.receptance(x_r)) * y, RWKV4ChannelState(last)
