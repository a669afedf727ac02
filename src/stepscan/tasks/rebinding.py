"""Recall of keys that are bound several times: the last binding is right.

read   k1 v1 k2 v2 k1 v3 k2 v4 | k2 k1      every key `times` times, in any order
ask     .  .  .  .  .  .  .  . | v4 v3

A memory that can only add keeps v1 + v3 under k1 and does no better than 1 / times.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.tasks.base import Batch, Task


@dataclass(frozen=True, kw_only=True)
class Rebinding(Task):
    """Config of the rebinding task."""

    name: ClassVar[str] = "rebinding"
    ability: ClassVar[str] = "recall"
    source: ClassVar[str] = "after Schlag et al. 2021, arXiv:2102.11174"

    bound: int = 6
    """Keys per example."""
    times: int = 3
    """How often each is bound."""
    keys: int = 96
    """Size of the key alphabet."""
    values: int = 16
    """Size of the value alphabet."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        if not 1 <= self.bound <= self.keys or min(self.times, self.values) < 1:
            raise ValueError(
                f"rebinding: want 1 <= bound <= keys, times and values at least 1, got {self}"
            )

    def longer(self, factor: int) -> "Rebinding":
        """More keys bound; more in the alphabet only where there are too few."""
        bound = self.bound * factor
        return replace(self, bound=bound, keys=max(self.keys, bound))

    @property
    def vocab(self) -> int:
        """Keys are 0..keys-1, values follow."""
        return self.keys + self.values

    @property
    def chance(self) -> float:
        """A uniform guess among values."""
        return 1 / self.values

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples."""
        told = self.bound * self.times
        key = torch.rand(n, self.keys, generator=rng).argsort(1)[:, : self.bound]
        place = torch.rand(n, told, generator=rng).argsort(1)  # of binding i, of key i % bound
        key_at = key.gather(1, place.argsort(1) % self.bound)
        value = torch.randint(self.keys, self.vocab, (n, told), generator=rng)
        last = place.unflatten(1, (self.times, self.bound)).amax(1)
        order = torch.rand(n, self.bound, generator=rng).argsort(1)
        queries, answers = key.gather(1, order), value.gather(1, last).gather(1, order)
        input = torch.cat([torch.stack([key_at, value], 2).flatten(1), queries], 1)
        target, asked = torch.zeros_like(input), torch.zeros_like(input, dtype=torch.bool)
        target[:, 2 * told :], asked[:, 2 * told :] = answers, True
        return Batch(input, target, asked)

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """Keep a dictionary; later bindings replace earlier ones."""
        answer = torch.zeros_like(input)
        for row, out in zip(input.tolist(), answer, strict=True):
            bound: dict[int, int] = {}
            for t, token in enumerate(row):
                if token >= self.keys:
                    bound[row[t - 1]] = token
                elif token in bound:
                    out[t] = bound[token]
        return answer
