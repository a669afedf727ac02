"""Needle in a haystack (passkey): a number lies somewhere in a long text, and is asked for.

read   h a y # 4 0 7 s t a c k | / 4 0      the answers are read as they are asked
ask    . . . . . . . . . . . . | 4 0 7
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.tasks.base import Batch, Task

DIGITS = 10


@dataclass(frozen=True, kw_only=True)
class Needle(Task):
    """Config of the needle task."""

    name: ClassVar[str] = "needle"
    ability: ClassVar[str] = "long range"
    source: ClassVar[str] = "Mohtashami and Jaggi 2023, arXiv:2305.16300"

    length: int = 96
    """Tokens of the haystack with the needle; the answers follow."""
    digits: int = 4
    """Digits of the number."""
    depth: float | None = None
    """Where the needle lies, from 0 (start) to 1 (end); None: anywhere."""
    words: int = 32
    """Size of the alphabet of the haystack."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        if min(self.digits, self.words) < 1 or self.length <= self.digits:
            raise ValueError(
                f"needle: want digits and words at least 1, length above digits, got {self}"
            )
        if self.depth is not None and not 0 <= self.depth <= 1:
            raise ValueError(f"needle: want depth from 0 to 1 or None, got {self.depth}")

    @property
    def vocab(self) -> int:
        """Digits, words, the mark of the needle and the bar, in this order."""
        return DIGITS + self.words + 2

    @property
    def chance(self) -> float:
        """A uniform guess among digits."""
        return 1 / DIGITS

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples."""
        hay = torch.randint(DIGITS, DIGITS + self.words, (n, self.length), generator=rng)
        room = self.length - self.digits - 1
        place = torch.randint(room + 1, (n, 1), generator=rng)
        if self.depth is not None:
            place = torch.full((n, 1), round(self.depth * room))
        number = torch.randint(DIGITS, (n, self.digits), generator=rng)
        mark = torch.full((n, 1), self.vocab - 2)
        hay.scatter_(1, place + torch.arange(self.digits + 1), torch.cat([mark, number], 1))
        input = torch.cat([hay, mark + 1, number[:, :-1]], 1)
        target, asked = torch.zeros_like(input), torch.zeros_like(input, dtype=torch.bool)
        target[:, self.length :], asked[:, self.length :] = number, True
        return Batch(input, target, asked)

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """Find the mark, and read on."""
        answer = torch.zeros_like(input)
        for row, out in zip(input.tolist(), answer, strict=True):
            bar = row.index(self.vocab - 1) if self.vocab - 1 in row else len(row)
            for t in range(bar, len(row)):
                out[t] = row[row.index(self.vocab - 2) + 1 + t - bar]
        return answer
