"""The successor of a binary number, by structural recursion, the lowest digit first.

read   1 1 0 1 =            11
ask            0 0 1 1 0    12, with a digit for the overflow

succ(0 b) = 1 b;  succ(1 b) = 0 succ(b);  succ() = 1. The recursion is as deep as there are ones at
the start: among random numbers, deep ones are exponentially rare, and models miss them.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.tasks.rewriting import Rewriting


@dataclass(frozen=True, kw_only=True)
class BinarySuccessor(Rewriting):
    """Config of the binary successor task."""

    name: ClassVar[str] = "binary_successor"
    ability: ClassVar[str] = "structure"
    source: ClassVar[str] = "Zhang et al. 2024, arXiv:2401.12947"

    length: int = 16
    """Digits of a number."""
    balanced: bool = False
    """Draw every depth of the recursion as often, instead of every number."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        if self.length < 1:
            raise ValueError(f"binary_successor: want 1 digit or more, got {self.length}")

    @property
    def tokens(self) -> int:
        """Two digits."""
        return 2

    @property
    def expression(self) -> int:
        """The digits."""
        return self.length

    @property
    def chance(self) -> float:
        """The likelier digit at each place: 0 below the depth, 1 at it, either above."""
        depth = [2.0 ** -(d + 1) for d in range(self.length)] + [2.0**-self.length]
        if self.balanced:
            depth = [1 / (self.length + 1)] * (self.length + 1)
        right = 0.0
        for place in range(self.length + 1):
            above = sum(depth[:place]) / 2 if place < self.length else 0.0
            one = depth[place] + above
            right += max(one, 1 - one)
        return right / (self.length + 1)

    def pairs(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw numbers; flip their lowest digits up to the first zero."""
        digits = torch.randint(2, (n, self.length), generator=rng)
        if self.balanced:
            depth = torch.randint(self.length + 1, (n, 1), generator=rng)
            place = torch.arange(self.length)
            digits = torch.where(place < depth, 1, torch.where(place == depth, 0, digits))
        carry = torch.cat([torch.ones_like(digits[:, :1]), digits.cumprod(1)], 1)
        return digits, torch.cat([digits, torch.zeros_like(digits[:, :1])], 1) ^ carry

    def rewrite(self, row: list[int]) -> list[int]:
        """Count to the next number."""
        value = sum(digit << place for place, digit in enumerate(row)) + 1
        return [value >> place & 1 for place in range(len(row) + 1)]

    def strata(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B"]:
        """Ones before the first zero."""
        return input[:, : self.length].cumprod(1).sum(1)
