"""Sorting: read a set of numbers in any order, say them in ascending order.

read   7 2 9 4 = 2 4 7      distinct numbers, then what was said so far
ask            2 4 7 9

With order of the input arbitrary and that of the output not: "order matters" (Vinyals et al.
2015). Numbers are tokens here, real numbers there.
"""

import heapq
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.tasks.rewriting import Rewriting


@dataclass(frozen=True, kw_only=True)
class Sorting(Rewriting):
    """Config of the sorting task."""

    name: ClassVar[str] = "sorting"
    ability: ClassVar[str] = "sets"
    source: ClassVar[str] = "Vinyals et al. 2015, arXiv:1511.06391"

    count: int = 10
    """Numbers in a set; published: 5, 10 and 15."""
    numbers: int = 160
    """Numbers there are, 0 and up."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        if not 1 <= self.count <= self.numbers:
            raise ValueError(
                f"sorting: want 1 <= count <= numbers, got {self.count} and {self.numbers}"
            )

    def longer(self, factor: int) -> "Sorting":
        """More numbers; a larger range only where there are too few."""
        count = self.count * factor
        return replace(self, count=count, numbers=max(self.numbers, count))

    @property
    def tokens(self) -> int:
        """The numbers."""
        return self.numbers

    @property
    def expression(self) -> int:
        """The set."""
        return self.count

    @property
    def chance(self) -> float:
        """The likeliest number at each place, from the distribution of order statistics."""
        most, count = self.numbers - 1, self.count
        ways = (  # to have so many below a number, and the rest above it
            max(math.comb(k, i) * math.comb(most - k, count - 1 - i) for k in range(most + 1))
            for i in range(count)
        )
        return sum(ways) / math.comb(self.numbers, count) / count

    def pairs(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random sets in random order."""
        numbers = torch.rand(n, self.numbers, generator=rng).argsort(1)[:, : self.count]
        return numbers, numbers.sort(1).values

    def rewrite(self, row: list[int]) -> list[int]:
        """Take the smallest until none is left."""
        heapq.heapify(row)
        return [heapq.heappop(row) for _ in range(len(row))]

    def strata(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B"]:
        """Neighbours in the input that stand the wrong way round."""
        numbers = input[:, : self.count]
        return (numbers[:, 1:] < numbers[:, :-1]).sum(1)
