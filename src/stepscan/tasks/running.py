"""What the tasks share that ask after every symbol for the state it led to; no task by itself."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from stepscan.tasks.base import Batch, Task


@dataclass(frozen=True, kw_only=True)
class Running(Task):
    """Symbols 0 ... symbols - 1, and a token before the first one if `begin`."""

    length: int = 40
    """Symbols per example."""
    begin: bool = True
    """Start with a token of its own, at which a model sets its state up; nothing is asked there.

    Without it a memory that starts at zero may be unable to leave zero (see docs/tasks.md).
    """

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        if self.length < 1:
            raise ValueError(f"{self.name}: want length of 1 or more, got {self.length}")

    @property
    @abc.abstractmethod
    def symbols(self) -> int:
        """Number of symbols."""

    @abc.abstractmethod
    def words(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """`n` rows of `length` symbols, and the answer after each symbol."""

    @abc.abstractmethod
    def read(self, word: Sequence[int]) -> list[int]:
        """The answer after each symbol of one row, by a plain program."""

    @property
    def vocab(self) -> int:
        """The symbols, then the token that begins."""
        return self.symbols + self.begin

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples."""
        word, target = self.words(n, rng)
        asked = torch.ones_like(word, dtype=torch.bool)
        if self.begin:
            word = F.pad(word, (1, 0), value=self.symbols)
            target, asked = F.pad(target, (1, 0)), F.pad(asked, (1, 0))
        return Batch(word, target, asked)

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """`read`, row by row."""
        answer = torch.zeros_like(input)
        for row, out in zip(input[:, int(self.begin) :].tolist(), answer, strict=True):
            out[int(self.begin) :] = torch.tensor(self.read(row), dtype=out.dtype)
        return answer
