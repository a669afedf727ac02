"""Selective copying: say the data again, in order, without the noise it lay in.

read   . a . . c . b . | ? ? ?      data at random places
ask    . . . . . . . . | a c b
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.tasks.base import Batch, Task


@dataclass(frozen=True, kw_only=True)
class SelectiveCopy(Task):
    """Config of the selective copying task."""

    name: ClassVar[str] = "selective_copy"
    ability: ClassVar[str] = "selectivity"
    source: ClassVar[str] = "Gu and Dao 2023, arXiv:2312.00752"

    length: int = 64
    """Tokens of data and noise together; as many questions as data follow."""
    data: int = 8
    """Data tokens."""
    symbols: int = 16
    """Data symbols; the noise token and the question come after them."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        if not 1 <= self.data <= self.length or self.symbols < 2:
            raise ValueError(
                f"selective_copy: want 1 <= data <= length and symbols >= 2, got {self}"
            )

    @property
    def vocab(self) -> int:
        """The symbols, the noise token and the question."""
        return self.symbols + 2

    @property
    def chance(self) -> float:
        """A uniform guess among symbols."""
        return 1 / self.symbols

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples."""
        place = torch.rand(n, self.length, generator=rng).argsort(1)[:, : self.data].sort(1).values
        data = torch.randint(self.symbols, (n, self.data), generator=rng)
        body = torch.full((n, self.length), self.symbols).scatter(1, place, data)
        input = torch.cat([body, torch.full_like(data, self.symbols + 1)], 1)
        target, asked = torch.zeros_like(input), torch.zeros_like(input, dtype=torch.bool)
        target[:, self.length :], asked[:, self.length :] = data, True
        return Batch(input, target, asked)

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """Collect the data, then hand it out one by one."""
        answer = torch.zeros_like(input)
        for row, out in zip(input.tolist(), answer, strict=True):
            data = iter([token for token in row if token < self.symbols])
            for t, token in enumerate(row):
                if token == self.symbols + 1:
                    out[t] = next(data)
        return answer
