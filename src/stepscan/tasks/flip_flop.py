"""Flip-flop language modelling: the bit last written, through any number of bits to ignore.

read   w 1 i 0 i 0 r 1 w 0 r 0      write, ignore, read; each has a bit
ask                1         0      after every r: the bit of the last w

`joined` is the automaton alone (Liu et al. 2022, arXiv:2210.10749): 0 and 1 write themselves, 2
leaves what is written, and the bit is asked for after every token.

A model that recalls by nearness glitches on rare long gaps (Liu et al. 2023).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.tasks.base import Batch, Task

WRITE, READ, IGNORE = 2, 3, 4


@dataclass(frozen=True, kw_only=True)
class FlipFlop(Task):
    """Config of the flip-flop task."""

    name: ClassVar[str] = "flip_flop"
    ability: ClassVar[str] = "state tracking"
    source: ClassVar[str] = "Liu et al. 2023, arXiv:2306.00946"

    length: int = 64
    """Tokens per example, an even number: half of them are bits."""
    ignore: float = 0.8
    """Probability of an instruction to ignore its bit; the rest is half writes, half reads."""
    joined: bool = False
    """Write and bit are one token, and each token is a read; `ignore` of them write nothing."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        if self.length < 4 or self.length % 2 or not 0 <= self.ignore < 1:
            raise ValueError(
                "flip_flop: want an even length of 4 or more and ignore from 0 to below 1, "
                f"got {self.length} and {self.ignore}"
            )

    @property
    def vocab(self) -> int:
        """Bits 0 and 1, then write, read, ignore; 2 leaves the bit where they are joined."""
        return 3 if self.joined else 5

    @property
    def answers(self) -> int:
        """A bit."""
        return 2

    @property
    def chance(self) -> float:
        """Either bit."""
        return 0.5

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples: a write first, a read last."""
        if self.joined:
            return self._draw_joined(n, rng)
        pairs = self.length // 2
        u = torch.rand(n, pairs, generator=rng)
        order = torch.where(u < self.ignore, IGNORE, READ)
        order = torch.where(u > (1 + self.ignore) / 2, WRITE, order)
        order[:, 0], order[:, -1] = WRITE, READ
        bit = torch.randint(2, (n, pairs), generator=rng)
        written = torch.where(order == WRITE, torch.arange(pairs), 0).cummax(1).values
        bit = torch.where(order == READ, bit.gather(1, written), bit)
        asked = torch.stack([order == READ, torch.zeros_like(order, dtype=torch.bool)], 2)
        target = torch.stack([bit, torch.zeros_like(bit)], 2).flatten(1)
        return Batch(torch.stack([order, bit], 2).flatten(1), target, asked.flatten(1))

    def _draw_joined(self, n: int, rng: torch.Generator) -> Batch:
        writes = torch.rand(n, self.length, generator=rng) >= self.ignore
        writes[:, 0] = True
        bit = torch.randint(2, writes.shape, generator=rng)
        written = torch.where(writes, torch.arange(self.length), 0).cummax(1).values
        asked = torch.ones_like(writes)
        return Batch(torch.where(writes, bit, 2), bit.gather(1, written), asked)

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """One cell of memory."""
        answer = torch.zeros_like(input)
        for row, out in zip(input.tolist(), answer, strict=True):
            cell, order = 0, None
            for t, token in enumerate(row):
                if self.joined:
                    out[t] = cell = token if token < 2 else cell
                    continue
                if token == READ:
                    out[t] = cell
                if token > 1:
                    order = token
                elif order == WRITE:
                    cell = token
        return answer
