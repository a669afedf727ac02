"""Phone book: look up the number of one name among many.

read   Ann Roe 2 0 7 4  Bob Ash 9 1 1 3  / Ann Roe 2 0 7      the answers are read as they are asked
ask     .   .  . . . .   .   .  . . . .  .  .   2  0 7 4
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.tasks.base import Batch, Task

DIGITS = 10


@dataclass(frozen=True, kw_only=True)
class PhoneBook(Task):
    """Config of the phone book task."""

    name: ClassVar[str] = "phone_book"
    ability: ClassVar[str] = "recall"
    source: ClassVar[str] = "Jelassi et al. 2024, arXiv:2402.01032"

    entries: int = 12
    """Names with a number."""
    names: int = 16
    """First names, and as many last names; an entry is told by both."""
    digits: int = 4
    """Digits of a number."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        if not 1 <= self.entries <= self.names**2 or self.digits < 1:
            raise ValueError(
                f"phone_book: want 1 <= entries <= names^2 and digits at least 1, got {self}"
            )

    def longer(self, factor: int) -> "PhoneBook":
        """More entries; more names only where there are too few."""
        entries, names = self.entries * factor, self.names
        while names**2 < entries:
            names *= 2
        return replace(self, entries=entries, names=names)

    @property
    def vocab(self) -> int:
        """Digits, first names, last names and the bar, in this order."""
        return DIGITS + 2 * self.names + 1

    @property
    def chance(self) -> float:
        """A uniform guess among digits."""
        return 1 / DIGITS

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples."""
        both = torch.rand(n, self.names**2, generator=rng).argsort(1)[:, : self.entries]
        first, last = DIGITS + both // self.names, DIGITS + self.names + both % self.names
        number = torch.randint(DIGITS, (n, self.entries, self.digits), generator=rng)
        book = torch.cat([torch.stack([first, last], 2), number], 2)
        entry = book[torch.arange(n), torch.randint(self.entries, (n,), generator=rng)]
        bar = torch.full((n, 1), self.vocab - 1)
        input = torch.cat([book.flatten(1), bar, entry[:, :-1]], 1)
        target, asked = torch.zeros_like(input), torch.zeros_like(input, dtype=torch.bool)
        target[:, -self.digits :], asked[:, -self.digits :] = entry[:, 2:], True
        return Batch(input, target, asked)

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """Read the book into a dictionary, then read the number off it."""
        answer, size = torch.zeros_like(input), 2 + self.digits
        for row, out in zip(input.tolist(), answer, strict=True):
            bar = row.index(self.vocab - 1) if self.vocab - 1 in row else len(row)
            book = {(row[i], row[i + 1]): row[i + 2 : i + size] for i in range(0, bar, size)}
            for t in range(bar + 2, len(row)):
                out[t] = book[row[bar + 1], row[bar + 2]][t - bar - 2]
        return answer
