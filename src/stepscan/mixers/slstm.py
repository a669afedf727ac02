"""sLSTM (xLSTM, arXiv:2405.04517): an LSTM with exponential gates and a recurrence per head.

    u_t = SiLU(conv(x)_t);  i~, f~ = W u_t + R h_{t-1} + b;  z~, o~ = W x_t + R h_{t-1} + b
    m_t = max(i~, logsigmoid(f~) + m_{t-1})
    i = exp(i~ - m_t);  f = exp(logsigmoid(f~) + m_{t-1} - m_t)
    c_t = f * c_{t-1} + i * tanh(z~);  n_t = f * n_{t-1} + i
    h_t = sigmoid(o~) * c_t / n_t;  y_t = LayerNorm(h_t) per head

As published: W and R per head, R starts at 0, the forget bias falls from 5 to -7 along a head, the
steeper at its start the lower the layer. The up- and down-projection of the paper's block is the
channel mixer of the model. The first step starts afresh row by row: see `ops/cells.py`.
State: B x (4 D + (window - 1) D) floats, constant in T.   Cost: O(T D K), one token after another.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.convolution import ShortConv
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops import cells


@dataclass(frozen=True, kw_only=True)
class SLSTMConfig(MixerConfig):
    """Config of sLSTM."""

    name: ClassVar[str] = "slstm"
    equation: ClassVar[str] = "c = f c + i tanh(z);  n = f n + i;  h = o c/n;  i = exp(W x + R h)"
    source: ClassVar[str] = "Beck et al. 2024, arXiv:2405.04517"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="gated RNN",
        transition="nonlinear",
        gate="state",
        eigenvalues="any",
        ops=("cell_scan", "short_conv"),
    )

    heads: int = 4
    """Number of heads H, each with a recurrence of its own; must divide the width."""
    window: int = 4
    """Window of the convolution in front of the input and forget gates; 0 for none."""
    layer: int = 0
    """Which layer of the model this is, 0 the lowest: shapes the forget bias."""
    layers: int = 1
    """How many layers the model has."""

    def build(self, width: int) -> "SLSTM":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads or width < 2 * self.heads:
            raise ValueError(
                f"slstm: heads={self.heads} must divide width={width} into 2 or more channels each"
            )
        if self.window < 0:
            raise ValueError(f"slstm: want a window of 0 (no convolution) or more: {self.window}")
        if not 0 <= self.layer < self.layers:
            raise ValueError(f"slstm: want 0 <= layer < layers, got {self.layer} of {self.layers}")
        return SLSTM(self, width)


class SLSTMState(NamedTuple):
    """What `SLSTM` carries from one stretch to the next."""

    hidden: Float[Tensor, "B H K"]
    cell: Float[Tensor, "B H K"]
    normalizer: Float[Tensor, "B H K"]
    log_scale: Float[Tensor, "B H K"]
    inputs: Float[Tensor, "B W-1 D"]
    """What the convolution still sees; without one, no slots."""


class SLSTM(Mixer[SLSTMState]):
    """See the module docstring."""

    def __init__(self, config: SLSTMConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.size = width // config.heads
        shape = config.heads, self.size
        self.conv = ShortConv(width, config.window) if config.window else None
        self.gates = nn.Parameter(torch.empty(4, *shape, self.size))  # i, f, z, o: out, in
        self.recurrent = nn.Parameter(torch.empty(*shape, 4, self.size))
        self.bias = nn.Parameter(torch.empty(4, *shape))
        self.norm = nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values, those of xLSTM."""
        config, width = self.config, self.norm.numel()
        nn.init.normal_(self.gates, std=(2 / (5 * width)) ** 0.5)
        nn.init.zeros_(self.recurrent)
        nn.init.zeros_(self.bias)
        nn.init.ones_(self.norm)
        height = config.layer / max(config.layers - 1, 1)
        ramp = torch.linspace(0, 1, self.size) ** (0.3 + 1.3 * height)
        with torch.no_grad():
            self.bias[1] = 5 - 12 * ramp

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> SLSTMState:
        """No memory, and no inputs."""
        weight, width = self.recurrent, self.norm.numel()
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        device = device or weight.device
        fresh = cells.SLSTM(torch.empty_like(weight, device=device, dtype=dtype)).init(batch)
        slots = max(self.config.window - 1, 0)
        return SLSTMState(*fresh, torch.zeros(batch, slots, width, device=device, dtype=dtype))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: SLSTMState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], SLSTMState]:
        """Mix along T."""
        state = self.init_state(x.shape[0]) if state is None else state
        seen, inputs = x, state.inputs
        if self.conv is not None:
            seen, inputs = self.conv(x, inputs, resets)
        sources = rearrange(
            torch.stack([seen, seen, x, x], 2), "b t g (h k) -> b t g h k", k=self.size
        )
        gates = torch.einsum("btghk,ghlk->btghl", sources, self.gates) + self.bias
        h, memory = cells.cell_scan(
            cells.SLSTM(self.recurrent),
            gates.flatten(2),
            state=cells.SLSTMState(*state[:-1]),
            resets=resets,
        )
        y = F.layer_norm(rearrange(h, "b t (h k) -> b t h k", k=self.size), (self.size,))
        return (y * self.norm).flatten(2), SLSTMState(*memory, inputs=inputs)
