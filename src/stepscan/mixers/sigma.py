"""The block of SIGMA (Liu et al. 2024, arXiv:2408.11451), its mixing along a history.

    m_t = g_t Mamba(x)_t + (1 - g_t) flip(Mamba(flip(x)))_t       g = sigmoid(W_g x + c)
    u_t = GRU(conv3(x))_t                                          features of the newest items
    y_t = W_o (a_0 m_t + a_1 u_t)                                  a = softmax of two numbers

The flip leaves the last r items in place, see `bi_mamba`, which is m. The GRU is for histories
that are too short for Mamba's state to settle; the window of 3 looks one item ahead.
What differs from the authors' code, as far as it is known here: there the two directions are scaled
by gates of their own and added with fixed weights; here one gate shares between them, so that 0 and
1 are the pure directions, and the weight of the GRU is learned, from the published 0.1 : 0.9.
Not causal: a stretch sees the past through the state, but not the stretch after.
State: Mamba's, one input, E numbers of the GRU.   Cost: twice Mamba's, and a GRU's.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepscan.layers.bidirectional import CentredConv
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer
from stepscan.mixers.bi_mamba import BiMamba, BiMambaConfig
from stepscan.mixers.gru import GRUConfig, GRUState
from stepscan.mixers.mamba import MambaState
from stepscan.mixers.taxonomy import Taxonomy

GRU_SHARE = 0.1  # of what is mixed, at first


@dataclass(frozen=True, kw_only=True)
class SigmaConfig(BiMambaConfig):
    """Config of SIGMA's block: Mamba's options, and `keep`."""

    name: ClassVar[str] = "sigma"
    equation: ClassVar[str] = "y = W (a_0 bi_mamba(x) + a_1 GRU(conv(x)))"
    source: ClassVar[str] = "Liu et al. 2024, arXiv:2408.11451"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="state space",
        transition="diagonal",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("selective_scan", "short_conv", "cell_scan"),
    )

    def build(self, width: int) -> "Sigma":  # type: ignore[override]
        """Build the module for a model of this width."""
        return Sigma(self, width)


class SigmaState(NamedTuple):
    """What `Sigma` carries from one stretch to the next."""

    mamba: MambaState
    window: Float[Tensor, "B 1 D"]
    short: GRUState


class Sigma(Mixer[SigmaState]):
    """See the module docstring."""

    causal = False
    no_decay = tuple(f"flipped.{name}" for name in BiMamba.no_decay)

    def __init__(self, config: SigmaConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.flipped = BiMambaConfig.build(config, width)
        self.conv = CentredConv(width, 3)
        self.gru = GRUConfig().build(width)
        self.shares = nn.Parameter(torch.empty(2))
        self.out = Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values of the shares."""
        with torch.no_grad():
            self.shares.copy_(torch.tensor([math.log(1 - GRU_SHARE), math.log(GRU_SHARE)]))

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> SigmaState:
        """Empty memory, no inputs yet."""
        return SigmaState(
            self.flipped.init_state(batch, device=device, dtype=dtype),
            self.conv.init_state(batch, device=device, dtype=dtype),
            self.gru.init_state(batch, device=device, dtype=dtype),
        )

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: SigmaState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], SigmaState]:
        """Mix along T, both ways."""
        before = (None, None, None) if state is None else state
        wide, mamba = self.flipped(x, before[0], resets)
        near, window = self.conv(x, before[1], resets)
        near, short = self.gru(near, before[2], resets)
        shares = self.shares.softmax(0).to(x.dtype)
        y = shares[0] * wide + shares[1] * near.to(x.dtype)
        return self.out(y), SigmaState(mamba, window, short)
