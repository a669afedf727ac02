"""Sum modulo k of what was read.

read   ^ 2 2 0 1      k = 3
ask      2 1 1 2      after every number

Addition of modulus k is the cyclic group: a state that turns by 1/k of a circle counts it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stepscan.tasks.running import Running


@dataclass(frozen=True, kw_only=True)
class ModularSum(Running):
    """Config of the modular sum task."""

    name: ClassVar[str] = "modular_sum"
    ability: ClassVar[str] = "state tracking"
    source: ClassVar[str] = "Grazzi et al. 2024, arXiv:2411.12537"

    modulus: int = 3
    """The k of "modulo k"; the numbers are 0 ... k - 1."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        super().__post_init__()
        if self.modulus < 2:
            raise ValueError(f"modular_sum: want modulus of 2 or more, got {self.modulus}")

    @property
    def symbols(self) -> int:
        """The numbers below the modulus."""
        return self.modulus

    @property
    def answers(self) -> int:
        """The same numbers."""
        return self.modulus

    @property
    def chance(self) -> float:
        """Each is as likely, at any place."""
        return 1 / self.modulus

    def words(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Uniform numbers."""
        numbers = torch.randint(self.modulus, (n, self.length), generator=rng)
        return numbers, numbers.cumsum(1) % self.modulus

    def read(self, word: Sequence[int]) -> list[int]:
        """A dial with k marks, moved one mark at a time."""
        dial, answer = 0, []
        for number in word:
            for _ in range(number):
                dial = 0 if dial == self.modulus - 1 else dial + 1
            answer.append(dial)
        return answer
