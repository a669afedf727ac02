"""Cells put together from parts: a gated cell of choice, and one that snaps to centroids.

    Composed   p = R_l y + b_l,  with u = W x + b at the first of `depth` turns l, 0 at the others
               n = tanh(u_n + p_n), or tanh(u_n + r p_n) with a reset r = sigmoid(u_r + p_r)
               c = n                        gate "none"        Elman
                   c + n                         "additive"    a residual network along time
                   (1 - a) c + a n               "rate"        a = sigmoid(learned), per unit
                   z c + (1 - z) n               "coupled"     GRU (with reset), highway network
                   f c + i n                     "separate"    LSTM (with output gate)
               y = c, or o tanh(c) with an output gate;  z, f, i, o = sigmoid(u + p)
    Snapped    h' = the inner cell's hidden state;  y = h = sum_k softmax_k(h'^T S_k / tau) S_k

Gates are ordered r, z or i f, n, o: with their part in it that is torch's order for GRU and LSTM.
Snapped: state-regularised RNNs, Wang and Niepert 2019 (arXiv:1901.08817). As tau goes to 0 the
hidden state is one of the centroids S_k, and the cell a finite automaton; what an LSTM keeps in its
cell state is not snapped.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from stepscan.ops.cells import HiddenState, LSTMState
from stepscan.ops.projection import project

GATES = {
    "none": (),
    "additive": (),
    "rate": (),
    "coupled": ("z",),
    "separate": ("i", "f"),
}


class Composed(NamedTuple):
    """See the module docstring."""

    input_weight: Float[Tensor, "gates D"]
    input_bias: Float[Tensor, "gates"]
    recurrent_weight: Float[Tensor, "depth gates E"] | None
    """None: neither gates nor candidates see the past."""
    recurrent_bias: Float[Tensor, "depth gates"] | None
    rate: Float[Tensor, "E"] | None
    """The logit of a, for gate "rate"."""
    gate: str
    reset: bool
    output_gate: bool

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts of W x, in their order."""
        return parts(self.gate, reset=self.reset, output_gate=self.output_gate)

    @property
    def sizes(self) -> tuple[int, int]:
        """Features of x, and of y."""
        return self.input_weight.shape[1], self.input_weight.shape[0] // len(self.parts)

    def init(self, batch: int) -> HiddenState | LSTMState:
        """Zeros."""
        zeros = self.input_weight.new_zeros(batch, self.sizes[1])
        return LSTMState(zeros, zeros) if self.output_gate else HiddenState(zeros)

    def project(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T gates"]:
        """W x + b."""
        return project(x, self.input_weight, self.input_bias)

    def step(self, u: Float[Tensor, "B gates"], state: Any) -> tuple[Float[Tensor, "B E"], Any]:
        """One token."""
        y, cell = state[0], state[-1]
        if self.recurrent_weight is None or self.recurrent_bias is None:
            y, cell = self._turn(u, torch.zeros_like(u), cell)
        else:
            for weight, bias in zip(self.recurrent_weight, self.recurrent_bias, strict=True):
                y, cell = self._turn(u, torch.addmm(bias, y, weight.mT), cell)
                u = torch.zeros_like(u)
        return y, LSTMState(y, cell) if self.output_gate else HiddenState(y)

    def _turn(self, u: Tensor, past: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        names = self.parts
        both = dict(zip(names, (u + past).chunk(len(names), 1), strict=True))
        gates = {name: part.sigmoid() for name, part in both.items() if name != "n"}
        candidate = both["n"]
        if self.reset:
            at = names.index("n")
            candidate = u.chunk(len(names), 1)[at] + gates["r"] * past.chunk(len(names), 1)[at]
        new = candidate.tanh()
        if self.gate == "additive":
            new = cell + new
        elif self.gate == "rate" and self.rate is not None:
            new = cell + self.rate.sigmoid() * (new - cell)
        elif self.gate == "coupled":
            new = new + gates["z"] * (cell - new)
        elif self.gate == "separate":
            new = gates["f"] * cell + gates["i"] * new
        return (gates["o"] * new.tanh() if self.output_gate else new), new


def parts(gate: str, *, reset: bool, output_gate: bool) -> tuple[str, ...]:
    """Names of the parts of W x, in their order."""
    return (*"r" * reset, *GATES[gate], "n", *"o" * output_gate)


class Snapped(NamedTuple):
    """See the module docstring. The inner cell has y = h, its state a field `hidden`."""

    cell: Any
    centroids: Float[Tensor, "S E"]
    temperature: float

    @property
    def sizes(self) -> tuple[int, int]:
        """Features of x, and of y."""
        return self.cell.sizes

    def init(self, batch: int) -> Any:
        """The inner cell's fresh state, which is no centroid."""
        return self.cell.init(batch)

    def project(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T ..."]:
        """What the inner cell needs of x."""
        return self.cell.project(x)

    def weights(self, hidden: Float[Tensor, "*n E"]) -> Float[Tensor, "*n S"]:
        """How much of each centroid takes the place of a hidden state."""
        return (hidden @ self.centroids.mT / self.temperature).softmax(-1)

    def step(self, u: Float[Tensor, "B ..."], state: Any) -> tuple[Float[Tensor, "B E"], Any]:
        """One token."""
        y, state = self.cell.step(u, state)
        snapped = self.weights(y) @ self.centroids
        return snapped, state._replace(hidden=snapped.view_as(state.hidden))
