"""ParaLSTM (ParaRNN, arXiv:2510.21450): an LSTM whose channels see only their own past.

    f = sigmoid(a_f h_{t-1} + c_f c_{t-1} + B_f x_t + b_f)
    c_t = f c_{t-1} + (1 - f) tanh(a_c h_{t-1} + B_c x_t + b_c)
    o = sigmoid(a_o h_{t-1} + c_o c_t + B_o x_t + b_o)
    h_t = o tanh(c_t);  y = h                            B: one block per head

One gate forgets and lets in (CIFG), and gates see the cell (peepholes). The whole sequence is
solved at once, as in `para_gru`; the Jacobians are of 2 x 2 numbers per channel. Published initial
values: see `DiagonalGates`.
State: 2 x B x D floats, constant in T.   Cost: O(T D D / H) and some rounds of O(T D).
"""

from dataclasses import dataclass
from typing import ClassVar

from stepscan.layers.gate_weights import DiagonalGates
from stepscan.mixers.base import MixerConfig
from stepscan.mixers.recurrent import Recurrent
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.diagonal_cells import ParaLSTM as Cell


@dataclass(frozen=True, kw_only=True)
class ParaLSTMConfig(MixerConfig):
    """Config of ParaLSTM."""

    name: ClassVar[str] = "para_lstm"
    equation: ClassVar[str] = "c = f c + (1 - f) tanh(a h + B x_t);  h = o tanh(c);  own h, c"
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

    def build(self, width: int) -> "ParaLSTM":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"para_lstm: heads={self.heads} must divide width={width}")
        return ParaLSTM(width, self.heads)


class ParaLSTM(Recurrent):
    """See the module docstring."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, width)
        self.gates = DiagonalGates(width, heads, gates=3, peepholes=2)

    def cell(self) -> Cell:
        """The weights as a cell."""
        return Cell(*self.gates())
