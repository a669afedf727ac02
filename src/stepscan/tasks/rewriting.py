"""What the tasks share that read a whole expression, then say another one; no task by itself.

read   e1 e2 e3 = a1 a2      the expression, "=", and the answer so far
ask             a1 a2 a3     the answer, a token ahead
"""

import abc
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from stepscan.tasks.base import Batch, Task


@dataclass(frozen=True, kw_only=True)
class Rewriting(Task):
    """Tokens of expressions and answers, and one more that asks."""

    @property
    @abc.abstractmethod
    def tokens(self) -> int:
        """Number of token ids of expressions and answers."""

    @property
    @abc.abstractmethod
    def expression(self) -> int:
        """Number of tokens of an expression."""

    @abc.abstractmethod
    def pairs(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """`n` expressions and their answers."""

    @abc.abstractmethod
    def rewrite(self, row: list[int]) -> list[int]:
        """The answer to one expression, by a plain program."""

    @abc.abstractmethod
    def strata(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B"]:
        """How deep the recursion goes in each example: what accuracies are told apart by."""

    @property
    def vocab(self) -> int:
        """The tokens, then "="."""
        return self.tokens + 1

    @property
    def answers(self) -> int:
        """The tokens."""
        return self.tokens

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples."""
        expression, answer = self.pairs(n, rng)
        before = expression.shape[1]
        input = torch.cat([F.pad(expression, (0, 1), value=self.tokens), answer[:, :-1]], 1)
        asked = torch.zeros_like(input, dtype=torch.bool)
        asked[:, before:] = True
        return Batch(input, F.pad(answer, (before, 0)), asked)

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """`rewrite`, row by row; of the answers in the input nothing is used."""
        answer, before = torch.zeros_like(input), self.expression
        for row, out in zip(input.tolist(), answer, strict=True):
            said = self.rewrite(row[:before])[: len(row) - before]
            out[before:] = torch.tensor(said, dtype=out.dtype)
        return answer
