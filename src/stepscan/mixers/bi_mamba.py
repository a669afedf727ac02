"""Partially flipped bidirectional Mamba (SIGMA, arXiv:2408.11451), its mixing along a sequence.

    f = Mamba(x_1, ..., x_T)
    b = Mamba(x_{T-r}, ..., x_1, x_{T-r+1}, ..., x_T)          put back in order
    g_t = sigmoid(W x_t + c)
    y_t = g_t f_t + (1 - g_t) b_t                              one gate per channel

One Mamba reads both. The last r tokens stay in place in the flipped history as well, so that the
most recent ones remain next to what is asked for; r = 5 as published (of histories of 50).
Deviations: SIGMA scales each direction by 1 plus a gate of its own, sums of a SiLU and a sigmoid,
and adds the two with fixed weights; here one gate shares between them, so that 1 and 0 are the pure
directions. Its flipped outputs are not put back in order (its answer is read at the last token,
which does not move). Its GRU for short-term features is a mixer of its own here, `gru`.
Not causal: a stretch sees the past through the state, but not the stretch after.
State: that of Mamba, constant in T.   Cost: twice Mamba's.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepscan.layers.bidirectional import both_ways
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer
from stepscan.mixers.mamba import Mamba, MambaConfig, MambaState
from stepscan.mixers.taxonomy import Taxonomy


@dataclass(frozen=True, kw_only=True)
class BiMambaConfig(MambaConfig):
    """Config of partially flipped bidirectional Mamba: Mamba's, and `keep`."""

    name: ClassVar[str] = "bi_mamba"
    equation: ClassVar[str] = "y = g_t Mamba(x) + (1 - g_t) flip(Mamba(flip(x)))"
    source: ClassVar[str] = "Liu et al. 2024, arXiv:2408.11451"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="state space",
        transition="diagonal",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("selective_scan", "short_conv"),
    )

    keep: int = 5
    """Tokens r at the end that are not flipped; 0 flips all."""

    def build(self, width: int) -> "BiMamba":  # type: ignore[override]
        """Build the module for a model of this width."""
        if self.keep < 0:
            raise ValueError(f"bi_mamba: want keep at least 0, got {self.keep}")
        return BiMamba(self, width)


class BiMamba(Mixer[MambaState]):
    """See the module docstring."""

    causal = False
    no_decay = tuple(f"mamba.{name}" for name in Mamba.no_decay)

    def __init__(self, config: BiMambaConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.mamba = MambaConfig.build(config, width)
        self.gate = Linear(width, width)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> MambaState:
        """Empty memory, no inputs yet."""
        return self.mamba.init_state(batch, device=device, dtype=dtype)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: MambaState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], MambaState]:
        """Mix along T, both ways."""

        def run(
            inputs: tuple[Tensor, ...], state: MambaState | None, resets: Tensor | None
        ) -> tuple[Tensor, MambaState]:
            return self.mamba(inputs[0], state, resets)

        ahead, back, state = both_ways(run, (x,), (x,), state, resets, keep=self.config.keep)
        return torch.lerp(back, ahead, torch.sigmoid(self.gate(x))), state
