"""N-parity: the parity of the last N bits of a stream.

read   0 1 1 0 1      N = 3
ask        0 0 0      1 + 1 + 0 and so on, from the third bit on

Curricula of N: `memory_span.py`.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from stepscan.tasks.memory_span import MemorySpan


@dataclass(frozen=True, kw_only=True)
class NParity(MemorySpan):
    """Config of the N-parity task."""

    name: ClassVar[str] = "n_parity"
    ability: ClassVar[str] = "state tracking"
    source: ClassVar[str] = "Khajehabdollahi et al. 2024, arXiv:2309.12927"

    def windows(self, bits: Int[Tensor, "B T N"]) -> Int[Tensor, "B T"]:
        """Whether the ones are odd in number."""
        return bits.sum(2) % 2

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """A queue of N bits, and a switch that what comes and what goes turn."""
        answer = input.clone()
        for row, out in zip(input.tolist(), answer, strict=True):
            odd = 0
            for t, bit in enumerate(row):
                odd ^= bit
                if t >= self.span:
                    odd ^= row[t - self.span]
                out[t] = odd
        return answer
