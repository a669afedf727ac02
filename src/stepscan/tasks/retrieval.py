"""Retrieval, after the document matching of Long Range Arena (arXiv:2011.04006), as two lists.

read   . A . . C . | . . A . C . =     two lists of filler with a few marked words, in order
ask    . . . . . . . . . . . . . y     whether the words are the same, one by one
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.tasks.base import Batch, Task


@dataclass(frozen=True, kw_only=True)
class Retrieval(Task):
    """Config of matching two lists. Ids: filler, then words, then | and =."""

    name: ClassVar[str] = "retrieval"
    ability: ClassVar[str] = "long range"
    source: ClassVar[str] = "Tay et al. 2020, arXiv:2011.04006 (as lists)"

    length: int = 128
    """Tokens: two lists, with | and =; even."""
    words: int = 4
    """Marked words in each list."""
    alphabet: int = 8
    """Different words."""
    fillers: int = 8
    """Different filler tokens."""

    def __post_init__(self) -> None:
        """Reject what does not fit."""
        room = self.length // 2 - 1
        if self.length % 2 or not 1 <= self.words <= room:
            raise ValueError(
                f"retrieval: want an even length and 1 <= words <= {room} (half of it, less one), "
                f"got length={self.length}, words={self.words}"
            )
        if self.alphabet < 2 or self.fillers < 1:
            raise ValueError(
                f"retrieval: want alphabet >= 2 and fillers >= 1, "
                f"got {self.alphabet} and {self.fillers}"
            )

    @property
    def vocab(self) -> int:
        """Filler, words and two signs."""
        return self.fillers + self.alphabet + 2

    @property
    def answers(self) -> int:
        """No and yes."""
        return 2

    @property
    def chance(self) -> float:
        """A coin."""
        return 0.5

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples; unequal lists differ in one word."""
        room, sign = self.length // 2 - 1, self.fillers + self.alphabet
        word = torch.randint(self.alphabet, (n, self.words), generator=rng)
        same = torch.randint(2, (n,), generator=rng)
        which = torch.randint(self.words, (n, 1), generator=rng)
        other = torch.randint(1, self.alphabet, (n, 1), generator=rng)  # how far away in the list
        changed = (word.gather(1, which) + other * (1 - same[:, None])) % self.alphabet
        parts: list[Tensor] = []
        for said, end in ((word, sign), (word.scatter(1, which, changed), sign + 1)):
            text = torch.randint(self.fillers, (n, room + 1), generator=rng)
            place = torch.rand(n, room, generator=rng).argsort(1)[:, : self.words].sort(1).values
            text.scatter_(1, place, self.fillers + said)
            text[:, -1] = end
            parts.append(text)
        input = torch.cat(parts, 1)
        target, asked = torch.zeros_like(input), torch.zeros_like(input, dtype=torch.bool)
        target[:, -1] = same
        asked[:, -1] = True
        return Batch(input, target, asked)

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """Take the words out of each list and compare."""
        answer = torch.zeros_like(input)
        for row, out in zip(input.tolist(), answer, strict=True):
            middle = row.index(self.fillers + self.alphabet)
            one, two = (
                [w for w in part if self.fillers <= w < self.fillers + self.alphabet]
                for part in (row[:middle], row[middle:])
            )
            out[-1] = int(one == two)
        return answer
