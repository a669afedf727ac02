"""Nested operations on lists of digits, in prefix form: MIN, MAX, MED (median), SM (sum mod 10).

read   [MAX 2 [MIN 4 7 ] [SM 8 3 ] 0 ]
ask                    4         1   4      after every bracket that closes: the value of its list

As published, but for these: expressions fill a given length exactly, lists are of any size, and
by default every list is asked for, not only the outermost. The median of an even number of digits
is the mean of the middle two, rounded down.
"""

import statistics
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.tasks.base import Batch, Task
from stepscan.tasks.guess import best_guess

DIGITS = 10
OPERATIONS = (min, max, lambda digits: int(statistics.median(digits)), lambda d: sum(d) % DIGITS)
CLOSE = DIGITS + len(OPERATIONS)


@dataclass(frozen=True, kw_only=True)
class ListOps(Task):
    """Config of the ListOps task."""

    name: ClassVar[str] = "listops"
    ability: ClassVar[str] = "structure"
    source: ClassVar[str] = "Nangia and Bowman 2018, arXiv:1804.06028"

    length: int = 48
    """Tokens per example."""
    depth: int = 4
    """Most lists that are open at a time."""
    nested: float = 0.2
    """Probability of a list where a digit would do."""
    every: bool = True
    """Ask for every list; else for the outermost only."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        if self.length < 3 or self.depth < 1 or not 0 <= self.nested <= 1:
            raise ValueError(
                "listops: want length of 3 or more, depth of 1 or more and nested from 0 to 1, "
                f"got {self.length}, {self.depth} and {self.nested}"
            )

    @property
    def vocab(self) -> int:
        """Digits, opening brackets with their operations, the closing bracket."""
        return CLOSE + 1

    @property
    def answers(self) -> int:
        """A digit."""
        return DIGITS

    @property
    def chance(self) -> float:
        """The likeliest digit at each place, counted."""
        return best_guess(self)

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """A walk through opening and closing; then values, the deepest lists first."""
        u = torch.rand(self.length, 2, n, generator=rng)
        closes_if, opens_if = u[:, 0] < 0.25, u[:, 1] < self.nested
        depth, opened, moves = torch.zeros(n, dtype=torch.int64), torch.ones(n).bool(), []
        for t in range(self.length):
            left = self.length - t  # tokens to come, this one too
            closes = (left == depth) | (~opened & (depth > 1) & closes_if[t])
            fits = (depth < self.depth) & (depth <= left - 3)
            opened = (fits & ~closes & opens_if[t]) if t else opened
            moves.append(opened.long() - closes.long())
            depth = depth + moves[-1]
        move = torch.stack(moves, 1)
        digit = torch.randint(DIGITS, move.shape, generator=rng)
        kind = torch.randint(len(OPERATIONS), move.shape, generator=rng)
        token = torch.where(move > 0, DIGITS + kind, torch.where(move < 0, CLOSE, digit))
        asked = token == CLOSE
        value = self._values(move, kind, digit)
        if not self.every:
            asked[:, :-1] = False
        return Batch(token, torch.where(asked, value, 0), asked)

    def _values(
        self, move: Int[Tensor, "n T"], kind: Int[Tensor, "n T"], value: Int[Tensor, "n T"]
    ) -> Int[Tensor, "n T"]:
        """`value`, where a list closes that of the list: from histograms of the digits in it."""
        depth, place = move.cumsum(1), torch.arange(self.length)
        for level in range(self.depth, 0, -1):
            inside = (depth == level) & (move <= 0)  # digits, and lists that have closed here
            start = torch.where((depth == level) & (move > 0), place, 0).cummax(1).values
            count = torch.zeros(*move.shape, DIGITS, dtype=torch.int64)
            rows = torch.arange(len(move))[:, None].expand_as(move)
            count.index_put_((rows, start, value), inside.long(), accumulate=True)
            row, end = ((depth == level - 1) & (move < 0)).nonzero(as_tuple=True)
            first = start[row, end]
            value = value.index_put((row, end), _apply(count[row, first], kind[row, first]))
        return value

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """A stack of lists."""
        answer = torch.zeros_like(input)
        for row, out in zip(input.tolist(), answer, strict=True):
            lists: list[list[int]] = [[]]
            for t, token in enumerate(row):
                if token < DIGITS:
                    lists[-1].append(token)
                elif token < CLOSE:
                    lists.append([token])
                else:
                    kind, *digits = lists.pop()
                    out[t] = value = OPERATIONS[kind - DIGITS](digits)
                    lists[-1].append(int(value))
        return answer


def _apply(count: Int[Tensor, "n 10"], kind: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """The operation of each list, on its digits counted."""
    size, upto = count.sum(1, keepdim=True), count.cumsum(1)
    ranks = torch.ones_like(size), (size + 1) // 2, size // 2 + 1, size
    smallest, low, high, largest = ((upto < rank).sum(1) for rank in ranks)
    total = (count * torch.arange(DIGITS)).sum(1)
    values = torch.stack([smallest, largest, (low + high) // 2, total % DIGITS], 1)
    return values.gather(1, kind[:, None])[:, 0]
