"""ParaGRU (ParaRNN, arXiv:2510.21450): a GRU whose channels see only their own past.

    z = sigmoid(a_z h_{t-1} + B_z x_t + b_z);  r = sigmoid(a_r h_{t-1} + B_r x_t + b_r)
    n = tanh(a_n (r h_{t-1}) + B_n x_t + b_n)
    h_t = (1 - z) h_{t-1} + z n;  y = h                  B: one block per head

The whole sequence is solved at once, by Newton's method (`ops/newton.py`), as long as that
converges: see `form="newton"` of `cell_scan`. Published initial values: see `DiagonalGates`. The
paper's block around it (convolution, gate, output map) is that of the model here.
State: B x D floats, constant in T.   Cost: O(T D D / H) and some rounds of O(T D).
"""

from dataclasses import dataclass
from typing import ClassVar

from stepscan.layers.gate_weights import DiagonalGates
from stepscan.mixers.base import MixerConfig
from stepscan.mixers.recurrent import Recurrent
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.diagonal_cells import ParaGRU as Cell


@dataclass(frozen=True, kw_only=True)
class ParaGRUConfig(MixerConfig):
    """Config of ParaGRU."""

    name: ClassVar[str] = "para_gru"
    equation: ClassVar[str] = "h = (1 - z) h + z tanh(a (r h) + B x_t);  z, r of x_t and own h"
    source: ClassVar[str] = "Danieli et al. 2025, arXiv:2510.21450"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="nonlinear RNN",
        transition="nonlinear",
        gate="state",
        eigenvalues="any",
        ops=("cell_scan",),
    )

    heads: int = 2
    """Number of heads H: blocks of B; must divide the width."""

    def build(self, width: int) -> "ParaGRU":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"para_gru: heads={self.heads} must divide width={width}")
        return ParaGRU(width, self.heads)


class ParaGRU(Recurrent):
    """See the module docstring."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, width)
        self.gates = DiagonalGates(width, heads, gates=3)

    def cell(self) -> Cell:
        """The weights as a cell."""
        return Cell(*self.gates())
