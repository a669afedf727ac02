"""The simple recurrent network (Elman 1990): one tanh layer that sees its own last output.

    h_t = tanh(W x_t + b + R h_{t-1} + b_r);  y = h, or W_o h where E is not the model width

Equation, weights and initial values (uniform in +-1/sqrt(E)) are those of `torch.nn.RNN`, whose
results the default config gives: `load_torch` takes its weights.
State: B x E floats, constant in T.   Cost: O(T E (D + E)), one token after another.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from stepscan.layers.gate_weights import GateWeights, copy_torch_weights
from stepscan.mixers.base import MixerConfig
from stepscan.mixers.recurrent import Recurrent, inner_width
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops import cells
from stepscan.ops.headed_cells import by_heads, heads_divide


@dataclass(frozen=True, kw_only=True)
class ElmanConfig(MixerConfig):
    """Config of the simple recurrent network."""

    name: ClassVar[str] = "elman"
    equation: ClassVar[str] = "h = tanh(W x_t + R h + b)"
    source: ClassVar[str] = "Elman 1990, doi:10.1207/s15516709cog1402_1"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="nonlinear RNN",
        transition="nonlinear",
        gate="state",
        eigenvalues="any",
        ops=("cell_scan",),
    )

    expansion: float = 1.0
    """Width E of the hidden state, as a multiple of the model width."""
    heads: int = 1
    """Number of heads H, each with a recurrence of its own (block-diagonal R); must divide E."""

    def build(self, width: int) -> "Elman":
        """Build the module for a model of this width."""
        inner = inner_width(self.name, width, self.expansion)
        heads_divide(self.name, inner, self.heads)
        return Elman(width, inner, self.heads)


class Elman(Recurrent):
    """See the module docstring."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__(width, inner)
        self.weights = GateWeights(width, inner, 1, heads)

    def load_torch(self, source: nn.RNN) -> None:
        """Copy the weights of a one-directional tanh `torch.nn.RNN` of the same sizes."""
        copy_torch_weights([self.weights()], source, mode="RNN_TANH")

    def cell(self) -> cells.Cell:
        """The weights as a cell."""
        return by_heads("elman", *self.weights())
