"""Delayed match-to-sample (N-DMS): whether this bit is the same as the one N - 1 bits ago.

read   0 1 1 0 1      N = 3
ask        0 0 1      0 and 1 differ, 1 and 0 differ, 1 and 1 match

Curricula of N: `memory_span.py`.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from stepscan.tasks.memory_span import MemorySpan


@dataclass(frozen=True, kw_only=True)
class DelayedMatchToSample(MemorySpan):
    """Config of the delayed match-to-sample task."""

    name: ClassVar[str] = "delayed_match_to_sample"
    ability: ClassVar[str] = "state tracking"
    source: ClassVar[str] = "Khajehabdollahi et al. 2024, arXiv:2309.12927"

    def windows(self, bits: Int[Tensor, "B T N"]) -> Int[Tensor, "B T"]:
        """Whether the first and the last agree."""
        return (bits[..., 0] == bits[..., -1]).long()

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """Look back."""
        answer = input.clone()
        for row, out in zip(input.tolist(), answer, strict=True):
            for t in range(self.span - 1, len(row)):
                out[t] = int(row[t] == row[t - self.span + 1])
        return answer
