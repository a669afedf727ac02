"""Long short-term memory (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al.).

    i, f, o = sigmoid(W x_t + b + R h_{t-1} + b_r);  g = tanh(W_g x_t + b_g + R_g h_{t-1} + b_rg)
    c_t = f * c_{t-1} + i * g
    h_t = o * tanh(c_t);  y = h, or W_o h where the hidden width E is not the model width

Equations, weights and initial values (uniform in +-1/sqrt(E)) are those of `torch.nn.LSTM`, whose
results the default config gives: `load_torch` takes its weights.
State: 2 x B x E floats for each of `depth` cells, constant in T.
Cost: O(T E (D + E)), one token after another.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepscan.layers.gate_weights import GateWeights, copy_torch_weights
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops import cells
from stepscan.ops.headed_cells import by_heads, heads_divide


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(MixerConfig):
    """Config of the LSTM."""

    name: ClassVar[str] = "lstm"
    equation: ClassVar[str] = "c = f c + i tanh(g);  h = o tanh(c);  i, f, o, g of x_t and h"
    source: ClassVar[str] = "Hochreiter & Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="gated RNN",
        transition="nonlinear",
        gate="state",
        eigenvalues="any",
        ops=("cell_scan",),
    )

    expansion: float = 1.0
    """Width E of the hidden state, as a multiple of the model width."""
    depth: int = 1
    """How many cells stand on top of each other (`num_layers` of `torch.nn.LSTM`)."""
    heads: int = 1
    """Number of heads H, each with a recurrence of its own (block-diagonal R); must divide E."""

    def build(self, width: int) -> "LSTM":
        """Build the module for a model of this width."""
        inner = round(width * self.expansion)
        if inner < 1 or self.depth < 1:
            raise ValueError(
                "lstm: want an expansion that leaves a hidden state and a depth of 1 or more, "
                f"got expansion={self.expansion} of width {width}, depth={self.depth}"
            )
        heads_divide(self.name, inner, self.heads)
        return LSTM(self, width, inner)


class LSTMState(NamedTuple):
    """What `LSTM` carries from one stretch to the next, for each of its cells."""

    hidden: Float[Tensor, "B depth E"]
    cell: Float[Tensor, "B depth E"]


class LSTM(Mixer[LSTMState]):
    """See the module docstring."""

    def __init__(self, config: LSTMConfig, width: int, inner: int) -> None:
        super().__init__()
        self.config = config
        self.inner = inner
        self.cells = nn.ModuleList(
            GateWeights(inputs, inner, 4, config.heads)
            for inputs in (width, *[inner] * (config.depth - 1))
        )
        self.out = Linear(inner, width, bias=False) if inner != width else None

    def load_torch(self, source: nn.LSTM) -> None:
        """Copy the weights of a one-directional `torch.nn.LSTM` of the same sizes."""
        copy_torch_weights([cell() for cell in self.cells], source, mode="LSTM")

    def cell(self) -> cells.Cell:
        """The weights as a cell, where there is one only; else `ValueError`."""
        if self.config.depth > 1:
            raise ValueError(f"lstm: want depth=1 for a single cell, got {self.config.depth}")
        return by_heads("lstm", *self.cells[0]())

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> LSTMState:
        """Zeros."""
        weight = next(self.cells.parameters())
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        shape = batch, self.config.depth, self.inner
        zeros = torch.zeros(shape, device=device or weight.device, dtype=dtype)
        return LSTMState(zeros, zeros.clone())

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: LSTMState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], LSTMState]:
        """Mix along T."""
        state = self.init_state(x.shape[0]) if state is None else state
        ends: list[cells.LSTMState] = []
        for cell, *start in zip(self.cells, *(s.unbind(1) for s in state), strict=True):
            x, end = cells.cell_scan(
                by_heads("lstm", *cell()), x, state=cells.LSTMState(*start), resets=resets
            )
            ends.append(end)
        y = x if self.out is None else self.out(x)
        return y, LSTMState(*(torch.stack(parts, 1) for parts in zip(*ends, strict=True)))
