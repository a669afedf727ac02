"""What N-parity and delayed match-to-sample share, and the two curricula of N; no task by itself.

A stream of fair bits; asked after every bit, about the last N of them. The stream is the same for
every N, so that one reading can be asked about several N at a time.
Curricula over N = 2, 3, ... (Khajehabdollahi et al. 2024, arXiv:2309.12927): with a single head
each stage asks for one N, with multiple heads a stage asks for all N up to its own.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from stepscan.tasks.base import Batch, Task


@dataclass(frozen=True, kw_only=True)
class MemorySpan(Task):
    """Bits, and an answer about the last N."""

    span: int = 4
    """The N: how many bits to hold."""
    length: int = 40
    """Bits per example."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        if not 2 <= self.span <= self.length:
            raise ValueError(
                f"{self.name}: want 2 <= span <= length, got {self.span} and {self.length}"
            )

    @abc.abstractmethod
    def windows(self, bits: Int[Tensor, "B T N"]) -> Int[Tensor, "B T"]:
        """The answer about each N bits in a row."""

    @property
    def vocab(self) -> int:
        """Two bits."""
        return 2

    @property
    def chance(self) -> float:
        """Either bit."""
        return 0.5

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples; nothing is asked before there are N bits."""
        bits = torch.randint(2, (n, self.length), generator=rng)
        asked = (torch.arange(self.length) >= self.span - 1).expand_as(bits).clone()
        target = torch.zeros_like(bits)
        target[:, self.span - 1 :] = self.windows(bits.unfold(1, self.span, 1))
        return Batch(bits, target, asked)


class Heads(NamedTuple):
    """One reading, asked by several heads."""

    input: Int[Tensor, "B T"]
    target: Int[Tensor, "B T heads"]
    asked: Bool[Tensor, "B T heads"]


Stage = tuple[MemorySpan, ...]
"""The tasks of one stage of a curriculum, one for each head that is asked."""


def single_head(task: MemorySpan, largest: int) -> list[Stage]:
    """One N after the other, the head of each trained in its own stage only."""
    return [(replace(task, span=n),) for n in range(2, largest + 1)]


def multi_head(task: MemorySpan, largest: int) -> list[Stage]:
    """The heads of all N so far stay in training."""
    return [
        tuple(replace(task, span=n) for n in range(2, last + 1)) for last in range(2, largest + 1)
    ]


def draw_heads(stage: Sequence[MemorySpan], n: int, rng: torch.Generator) -> Heads:
    """Draw `n` examples for all heads of a stage."""
    start, batches = rng.get_state(), []
    for task in stage:
        rng.set_state(start)
        batches.append(task.draw(n, rng))
    target, asked = (
        torch.stack([batch[part] for batch in batches], 2)
        for part in (1, 2)
    )  # fmt: skip
    return Heads(batches[0].input, target, asked)
