"""Copying, and copying backwards: say again what was said.

read   a c b | / a c      the string, a bar, then the answers as far as they were asked
ask    . . . | a c b      copying
ask    . . . | b c a      reversal (there the answers read are b c)
"""

import abc
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.tasks.base import Batch, Task


@dataclass(frozen=True, kw_only=True)
class _SayAgain(Task):
    """A string, then the same string in some order."""

    ability: ClassVar[str] = "copying"

    length: int = 24
    """Tokens of the string; the sequence has twice as many."""
    symbols: int = 26
    """Symbols; the bar comes after them."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        if self.length < 1 or self.symbols < 2:
            raise ValueError(f"{self.name}: want length >= 1 and symbols >= 2, got {self}")

    @property
    def vocab(self) -> int:
        """The symbols and the bar."""
        return self.symbols + 1

    @property
    def chance(self) -> float:
        """A uniform guess among symbols."""
        return 1 / self.symbols

    @staticmethod
    @abc.abstractmethod
    def ordered(string: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """The string as it is to be said."""

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples."""
        string = torch.randint(self.symbols, (n, self.length), generator=rng)
        again = self.ordered(string)
        bar = torch.full((n, 1), self.symbols)
        input = torch.cat([string, bar, again[:, :-1]], 1)
        asked = torch.zeros_like(input, dtype=torch.bool)
        asked[:, self.length :] = True
        return Batch(input, torch.cat([torch.zeros_like(string), again], 1), asked)


@dataclass(frozen=True, kw_only=True)
class Copying(_SayAgain):
    """Config of the copying task."""

    name: ClassVar[str] = "copying"
    source: ClassVar[str] = "Jelassi et al. 2024, arXiv:2402.01032"

    @staticmethod
    def ordered(string: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """The string as it came."""
        return string

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """A queue: first in, first out."""
        answer = torch.zeros_like(input)
        for row, out in zip(input.tolist(), answer, strict=True):
            bar = row.index(self.symbols) if self.symbols in row else len(row)
            for t in range(bar, len(row)):
                out[t] = row[t - bar]
        return answer


@dataclass(frozen=True, kw_only=True)
class Reversal(_SayAgain):
    """Config of the reversal task."""

    name: ClassVar[str] = "reversal"
    source: ClassVar[str] = "Grefenstette et al. 2015, arXiv:1506.02516"

    @staticmethod
    def ordered(string: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """The string from its end."""
        return string.flip(1)

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """A stack: last in, first out."""
        answer = torch.zeros_like(input)
        for row, out in zip(input.tolist(), answer, strict=True):
            bar = row.index(self.symbols) if self.symbols in row else len(row)
            stack = row[:bar]
            for t in range(bar, len(row)):
                out[t] = stack.pop()
        return answer
