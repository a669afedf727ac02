"""Gated cells whose channels know only their own past (ParaRNN, arXiv:2510.21450).

    ParaGRU    z = sigmoid(a_z h + u_z);  r = sigmoid(a_r h + u_r);  n = tanh(a_n (r h) + u_n)
               h = (1 - z) h + z n;  y = h                       z takes the new: not as in cuDNN
    ParaLSTM   f = sigmoid(a_f h + c_f c + u_f);  c = f c + (1 - f) tanh(a_c h + u_c)
               o = sigmoid(a_o h + c_o c + u_o)  with the new c;  h = o tanh(c);  y = h
    u = B x + b, with B of one block per head

Their Jacobians are of one and of 2 x 2 numbers per channel, which is what makes Newton's method
(`ops/newton.py`) cheap for them. ParaLSTM has one gate for f and 1 - f, and peepholes (c_f, c_o).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from stepscan.ops.cells import HiddenState, LSTMState


class ParaGRU(NamedTuple):
    """See the module docstring; gates in the order z, r, n."""

    input_weight: Float[Tensor, "H D_of_head 3 K"]
    recurrent_weight: Float[Tensor, "3 E"]
    bias: Float[Tensor, "3 E"]

    channelwise = True

    @property
    def sizes(self) -> tuple[int, int]:
        """Features of x, and of y."""
        return self.input_weight.shape[0] * self.input_weight.shape[1], self.bias.shape[1]

    def init(self, batch: int) -> HiddenState:
        """Zero."""
        return HiddenState(self.bias.new_zeros(batch, self.sizes[1]))

    def project(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T 3 E"]:
        """B x + b."""
        return by_heads(x, self.input_weight) + self.bias

    def step(
        self, u: Float[Tensor, "B 3 E"], state: HiddenState
    ) -> tuple[Float[Tensor, "B E"], HiddenState]:
        """One token."""
        hidden, (a_z, a_r, a_n) = state.hidden, self.recurrent_weight
        u_z, u_r, u_n = u.unbind(1)
        r = torch.sigmoid(a_r * hidden + u_r)
        new = torch.tanh(a_n * (r * hidden) + u_n)
        hidden = hidden + torch.sigmoid(a_z * hidden + u_z) * (new - hidden)
        return hidden, HiddenState(hidden)


class ParaLSTM(NamedTuple):
    """See the module docstring; gates in the order f, c, o, peepholes f, o."""

    input_weight: Float[Tensor, "H D_of_head 3 K"]
    recurrent_weight: Float[Tensor, "3 E"]
    peephole: Float[Tensor, "2 E"]
    bias: Float[Tensor, "3 E"]

    channelwise = True

    @property
    def sizes(self) -> tuple[int, int]:
        """Features of x, and of y."""
        return self.input_weight.shape[0] * self.input_weight.shape[1], self.bias.shape[1]

    def init(self, batch: int) -> LSTMState:
        """Zeros."""
        zeros = self.bias.new_zeros(batch, self.sizes[1])
        return LSTMState(zeros, zeros)

    def project(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T 3 E"]:
        """B x + b."""
        return by_heads(x, self.input_weight) + self.bias

    def step(
        self, u: Float[Tensor, "B 3 E"], state: LSTMState
    ) -> tuple[Float[Tensor, "B E"], LSTMState]:
        """One token."""
        (hidden, cell), (a_f, a_c, a_o), (c_f, c_o) = state, self.recurrent_weight, self.peephole
        u_f, u_c, u_o = u.unbind(1)
        f = torch.sigmoid(a_f * hidden + c_f * cell + u_f)
        new = torch.tanh(a_c * hidden + u_c)
        cell = new + f * (cell - new)
        hidden = torch.sigmoid(a_o * hidden + c_o * cell + u_o) * cell.tanh()
        return hidden, LSTMState(hidden, cell)


def by_heads(
    x: Float[Tensor, "B T D"], weight: Float[Tensor, "H D_of_head G K"]
) -> Float[Tensor, "B T G E"]:
    """A map of its own for each head's part of x, to G gates."""
    heads = x.unflatten(2, weight.shape[:2])
    return torch.einsum("bthd,hdgk->btghk", heads, weight).flatten(3)
