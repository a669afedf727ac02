"""Induction heads: what came after the special token the last time?

read   a c # b d a c a #      one special token somewhere, and one at the end
ask    . . . . . . . . b
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.tasks.base import Batch, Task


@dataclass(frozen=True, kw_only=True)
class InductionHeads(Task):
    """Config of the induction heads task."""

    name: ClassVar[str] = "induction_heads"
    ability: ClassVar[str] = "in context"
    source: ClassVar[str] = "Olsson et al. 2022, arXiv:2209.11895; as in arXiv:2212.14052"

    length: int = 64
    """Tokens."""
    symbols: int = 16
    """Ordinary symbols; the special token comes after them."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        if self.length < 3 or self.symbols < 2:
            raise ValueError(f"induction_heads: want length >= 3, symbols >= 2, got {self}")

    @property
    def vocab(self) -> int:
        """The symbols and the special token."""
        return self.symbols + 1

    @property
    def chance(self) -> float:
        """A uniform guess among symbols."""
        return 1 / self.symbols

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples."""
        input = torch.randint(self.symbols, (n, self.length), generator=rng)
        place = torch.randint(self.length - 2, (n, 1), generator=rng)
        input.scatter_(1, place, self.symbols)[:, -1] = self.symbols
        target, asked = torch.zeros_like(input), torch.zeros_like(input, dtype=torch.bool)
        target[:, -1:], asked[:, -1] = input.gather(1, place + 1), True
        return Batch(input, target, asked)

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """Note what follows the special token; say it at the next one."""
        answer = torch.zeros_like(input)
        for row, out in zip(input.tolist(), answer, strict=True):
            first = row.index(self.symbols) if self.symbols in row else len(row)
            for t in range(first + 2, len(row)):
                if row[t] == self.symbols:
                    out[t] = row[first + 1]
        return answer
