"""Cells with heads: Elman, GRU and LSTM whose recurrence is block-diagonal.

H small cells of K units see the same x and not each other: R has H K^2 numbers instead of (H K)^2,
and each fits a cache that the whole does not (FlashRNN, Poeppel et al. 2024, arXiv:2412.07752;
heads as in xLSTM's sLSTM, which has a cell of its own in ops/cells.py).
"""

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from stepscan.ops.cells import GRU, LSTM, Elman, HiddenState, LSTMState, Native
from stepscan.ops.projection import project

KINDS = {"elman": Elman, "gru": GRU, "lstm": LSTM}
NATIVE = {"elman": "tanh", "gru": "gru", "lstm": "lstm"}


class Heads(NamedTuple):
    """The weights of `kind`, head by head; its gates are in that cell's order within a head."""

    kind: str
    """elman, gru or lstm."""
    input_weight: Float[Tensor, "H gates_of_head D"]
    recurrent_weight: Float[Tensor, "H gates_of_head K"]
    input_bias: Float[Tensor, "H gates_of_head"]
    recurrent_bias: Float[Tensor, "H gates_of_head"]

    @property
    def sizes(self) -> tuple[int, int]:
        """Features of x, and of y."""
        heads, _, size = self.recurrent_weight.shape
        return self.input_weight.shape[2], heads * size

    @property
    def native(self) -> Native:
        """For form "cpu"."""
        bias = self.recurrent_bias.flatten() if self.kind == "gru" else None
        return Native(NATIVE[self.kind], self.recurrent_weight.mT, bias)

    def init(self, batch: int) -> HiddenState | LSTMState:
        """Zeros."""
        zeros = self.recurrent_weight.new_zeros(batch, self.sizes[1])
        return LSTMState(zeros, zeros) if self.kind == "lstm" else HiddenState(zeros)

    def project(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T gates"]:
        """W x + b, with b_r where it does not stay apart; all gates of a head together."""
        bias = self.input_bias
        bias = bias if self.kind == "gru" else bias + self.recurrent_bias
        return project(x, self.input_weight.flatten(0, 1), bias.flatten())

    def step(
        self, u: Float[Tensor, "B gates"], state: Any
    ) -> tuple[Float[Tensor, "B E"], HiddenState | LSTMState]:
        """One token: the cell itself, over all heads at once."""
        heads = len(self.recurrent_weight)
        first = lambda t: t.unflatten(-1, (heads, -1)).transpose(0, 1)  # noqa: E731
        bias = self.recurrent_bias[:, None]  # one for all rows
        cell = KINDS[self.kind](self.input_weight, self.recurrent_weight, self.input_bias, bias)
        y, state = cell.step(first(u), type(state)(*map(first, state)))
        back = lambda t: t.transpose(0, 1).flatten(1)  # noqa: E731
        return back(y), type(state)(*map(back, state))


def by_heads(
    kind: str, input_weight: Tensor, recurrent_weight: Tensor, *biases: Tensor
) -> Elman | GRU | LSTM | Heads:
    """A cell of these weights: with heads where the weights have them."""
    if recurrent_weight.ndim == 2:
        return KINDS[kind](input_weight, recurrent_weight, *biases)
    return Heads(kind, input_weight, recurrent_weight, *biases)


def heads_divide(name: str, inner: int, heads: int) -> None:
    """Raise `ValueError` unless every head gets as many units."""
    if heads < 1 or inner % heads:
        raise ValueError(f"{name}: heads={heads} must divide the hidden width E={inner}")
