"""The gated recurrent unit (GRU, arXiv:1406.1078) in the form of cuDNN and torch.

    r, z = sigmoid(W x_t + b + R h_{t-1} + b_r)
    n = tanh(W_n x_t + b_n + r * (R_n h_{t-1} + b_rn))
    h_t = (1 - z) * n + z * h_{t-1};  y = h, or W_o h where the hidden width E is not the model's

Differs from the paper as cuDNN does: r acts after the product with R_n. Equations, weights and
initial values (uniform in +-1/sqrt(E)) are those of `torch.nn.GRU`, whose results the default
config gives: `load_torch` takes its weights.
State: B x E floats for each of `depth` cells, constant in T.
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
class GRUConfig(MixerConfig):
    """Config of the GRU."""

    name: ClassVar[str] = "gru"
    equation: ClassVar[str] = "h = (1 - z) n + z h;  n = tanh(W x_t + r R h);  r, z of x_t and h"
    source: ClassVar[str] = "Cho et al. 2014, arXiv:1406.1078"
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
    """How many cells stand on top of each other (`num_layers` of `torch.nn.GRU`)."""
    heads: int = 1
    """Number of heads H, each with a recurrence of its own (block-diagonal R); must divide E."""

    def build(self, width: int) -> "GRU":
        """Build the module for a model of this width."""
        inner = round(width * self.expansion)
        if inner < 1 or self.depth < 1:
            raise ValueError(
                "gru: want an expansion that leaves a hidden state and a depth of 1 or more, "
                f"got expansion={self.expansion} of width {width}, depth={self.depth}"
            )
        heads_divide(self.name, inner, self.heads)
        return GRU(self, width, inner)


class GRUState(NamedTuple):
    """What `GRU` carries from one stretch to the next, for each of its cells."""

    hidden: Float[Tensor, "B depth E"]


class GRU(Mixer[GRUState]):
    """See the module docstring."""

    def __init__(self, config: GRUConfig, width: int, inner: int) -> None:
        super().__init__()
        self.config = config
        self.inner = inner
        self.cells = nn.ModuleList(
            GateWeights(inputs, inner, 3, config.heads)
            for inputs in (width, *[inner] * (config.depth - 1))
        )
        self.out = Linear(inner, width, bias=False) if inner != width else None

    def load_torch(self, source: nn.GRU) -> None:
        """Copy the weights of a one-directional `torch.nn.GRU` of the same sizes."""
        copy_torch_weights([cell() for cell in self.cells], source, mode="GRU")

    def cell(self) -> cells.Cell:
        """The weights as a cell, where there is one only; else `ValueError`."""
        if self.config.depth > 1:
            raise ValueError(f"gru: want depth=1 for a single cell, got {self.config.depth}")
        return by_heads("gru", *self.cells[0]())

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> GRUState:
        """Zero."""
        weight = next(self.cells.parameters())
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        shape = batch, self.config.depth, self.inner
        return GRUState(torch.zeros(shape, device=device or weight.device, dtype=dtype))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: GRUState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], GRUState]:
        """Mix along T."""
        state = self.init_state(x.shape[0]) if state is None else state
        ends: list[Tensor] = []
        for cell, start in zip(self.cells, state.hidden.unbind(1), strict=True):
            x, end = cells.cell_scan(
                by_heads("gru", *cell()), x, state=cells.HiddenState(start), resets=resets
            )
            ends.append(end.hidden)
        y = x if self.out is None else self.out(x)
        return y, GRUState(torch.stack(ends, 1))
