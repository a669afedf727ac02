"""Parity: whether the ones so far are odd in number.

read   ^ 0 1 1 0 1      ^ begins
ask      0 1 0 0 1      after every bit

No recurrence whose diagonal transitions are all positive solves it at every length (Grazzi et al.
2024, arXiv:2411.12537), nor does a fixed number of attention layers of bounded size (Hahn 2020,
arXiv:1906.06755).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stepscan.tasks.running import Running


@dataclass(frozen=True, kw_only=True)
class Parity(Running):
    """Config of the parity task."""

    name: ClassVar[str] = "parity"
    ability: ClassVar[str] = "state tracking"
    source: ClassVar[str] = "Hahn 2020, arXiv:1906.06755"

    @property
    def symbols(self) -> int:
        """Two bits."""
        return 2

    @property
    def answers(self) -> int:
        """Even or odd."""
        return 2

    @property
    def chance(self) -> float:
        """Each is as likely, at any place."""
        return 0.5

    def words(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Fair bits."""
        bits = torch.randint(2, (n, self.length), generator=rng)
        return bits, bits.cumsum(1) % 2

    def read(self, word: Sequence[int]) -> list[int]:
        """A switch that every one turns."""
        odd, answer = False, []
        for bit in word:
            odd = odd if bit == 0 else not odd
            answer.append(int(odd))
        return answer
