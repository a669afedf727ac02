"""Sets in, sequences out: read, process, write (Vinyals et al. 2015, arXiv:1511.06391).

    read      m_i = W tanh(V x_i + b)                  every element by itself
    process   q_t = LSTM([q, r]_{t-1});  a = softmax_i(m_i . q_t);  r_t = sum_i a_i m_i      P times
    write     d_s = LSTM(x said last, d_{s-1}), from [q, r]_P;  p(i is next) = softmax_i(u_i),
              u_i = v . tanh(W_m m_i + W_d d_s)        a pointer (arXiv:1506.03134)

What was processed does not depend on the order in which the set came. As published, an element may
be pointed to again; `distinct` is ours. `glimpse` lets each step of the writing attend once before
it points, as the source does in half of its experiments. Also ours: the read map has one hidden
layer, the first [q, r] is learned, and [q, r]_P becomes the first state of the writing through a
linear map.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stepscan.layers.projection import Linear


class SetEncoder(nn.Module):
    """The process block: a summary of a set, whatever its order.

    Args:
        width: Channels D of the elements.
        steps: How many times P it attends to them; with 0 the summary knows nothing of the set.
    """

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        if width < 1 or steps < 0:
            raise ValueError(f"set encoder: want width >= 1 and steps >= 0, got {width}, {steps}")
        self.steps = steps
        self.cell = nn.LSTMCell(2 * width, width)
        self.start = nn.Parameter(torch.zeros(2 * width))

    def forward(
        self, elements: Float[Tensor, "B N D"], there: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B 2*D"]:
        """[q, r] after P steps; `there` says which elements belong to the set, all if None."""
        B, _, D = elements.shape
        both = self.start.expand(B, -1)
        state = elements.new_zeros(B, D), elements.new_zeros(B, D)
        for _ in range(self.steps):
            state = self.cell(both, state)
            weight = torch.einsum("bnd,bd->bn", elements, state[0])
            both = torch.cat([state[0], _read(elements, weight, there)], 1)
        return both


class SetToSequence(nn.Module):
    """Reads a set of C numbers each, and points to its elements one after the other.

    Args:
        reals: Numbers C of an element.
        width: Channels D of elements and states.
        steps: P of the process block.
        glimpse: Attend once before each pointing.
        distinct: Point to no element twice.
    """

    def __init__(
        self, reals: int, width: int, *, steps: int, glimpse: bool = False, distinct: bool = False
    ) -> None:
        super().__init__()
        self.distinct = distinct
        self.read = nn.Sequential(
            Linear(reals, width, bias=True), nn.Tanh(), Linear(width, width, bias=False)
        )
        self.process = SetEncoder(width, steps)
        self.begin = Linear(2 * width, width, bias=True)
        self.cell = nn.LSTMCell(width, width)
        self.query = Linear(2 * width, width, bias=False) if glimpse else None
        self.memory_map = Linear(width, width, bias=False)
        self.state_map = Linear(width, width, bias=False)
        self.score = Linear(width, 1, bias=False)

    def forward(
        self, x: Float[Tensor, "B N C"], order: Int[Tensor, "B N"] | None = None
    ) -> tuple[Float[Tensor, "B N N"], Int[Tensor, "B N"]]:
        """Log probabilities of what comes next at each step, and the order that was followed.

        Args:
            x: The elements.
            order: Indices in the order to write them in; None: always the likeliest.
        """
        B, N, _ = x.shape
        memory = self.read(x)
        keys = self.memory_map(memory)
        start = self.begin(self.process(memory))
        state, said = (start, torch.zeros_like(start)), torch.zeros_like(start)
        left = torch.ones(B, N, dtype=torch.bool, device=x.device)
        every, chosen = [], []
        for step in range(N):
            state = self.cell(said, state)
            asks = state[0]
            if self.query is not None:
                weight = torch.einsum("bnd,bd->bn", memory, asks)
                asks = self.query(torch.cat([asks, _read(memory, weight, None)], 1))
            u = self.score(torch.tanh(keys + self.state_map(asks)[:, None])).squeeze(-1)
            every.append(u.masked_fill(~left, -torch.inf).log_softmax(1))
            pick = every[-1].argmax(1) if order is None else order[:, step]
            if self.distinct:
                left = left.scatter(1, pick[:, None], value=False)
            said = memory.gather(1, pick[:, None, None].expand(-1, 1, memory.shape[2])).squeeze(1)
            chosen.append(pick)
        return torch.stack(every, 1), torch.stack(chosen, 1)


def _read(memory: Tensor, weight: Tensor, there: Tensor | None) -> Float[Tensor, "B D"]:
    if there is not None:
        weight = weight.masked_fill(~there, -torch.inf)
    return torch.einsum("bn,bnd->bd", weight.softmax(1), memory)
