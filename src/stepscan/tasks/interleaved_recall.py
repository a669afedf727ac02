"""Recall from several streams of key-value pairs that come interleaved and share their keys.

read   1 k1 v1  2 k1 v2  1 k2 v3  2 k3 v4 | 2 k1  1 k1      a mark says whose the pair is
ask    .  .  .  .  .  .  .  .  .  .  .  . | . v2  . v1

A key says nothing without its stream: what one stream writes disturbs the others.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.tasks.base import Batch, Task


@dataclass(frozen=True, kw_only=True)
class InterleavedRecall(Task):
    """Config of the interleaved recall task."""

    name: ClassVar[str] = "interleaved_recall"
    ability: ClassVar[str] = "recall"
    source: ClassVar[str] = "after Du et al. 2025, arXiv:2502.13685"

    pairs: int = 8
    """Pairs in each stream; the sequence has 5 * streams * pairs tokens."""
    streams: int = 2
    """Streams."""
    keys: int = 128
    """Size of the key alphabet, and of the value alphabet."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        if not 1 <= self.pairs <= self.keys or self.streams < 1:
            raise ValueError(
                f"interleaved_recall: want 1 <= pairs <= keys and streams at least 1, got {self}"
            )

    def longer(self, factor: int) -> "InterleavedRecall":
        """More pairs; more keys only where there are too few."""
        pairs = self.pairs * factor
        return replace(self, pairs=pairs, keys=max(self.keys, pairs))

    @property
    def vocab(self) -> int:
        """Keys are 0..keys-1, values keys..2*keys-1, then a mark for each stream."""
        return 2 * self.keys + self.streams

    @property
    def chance(self) -> float:
        """A uniform guess among values."""
        return 1 / self.keys

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples."""
        S, P = self.streams, self.pairs
        key = torch.rand(n, S, self.keys, generator=rng).argsort(2)[:, :, :P].flatten(1)
        value = torch.randint(self.keys, 2 * self.keys, (n, S * P), generator=rng)
        mark = (2 * self.keys + torch.arange(S)).repeat_interleave(P).expand(n, -1)
        triples = torch.stack([mark, key, value], 2)
        rows = torch.arange(n)[:, None]
        told, ask = (triples[rows, torch.rand(n, S * P, generator=rng).argsort(1)] for _ in "ab")
        input = torch.cat([told.flatten(1), ask[..., :2].flatten(1)], 1)
        target, asked = torch.zeros_like(input), torch.zeros_like(input, dtype=torch.bool)
        queries = slice(3 * S * P + 1, None, 2)
        target[:, queries], asked[:, queries] = ask[..., 2], True
        return Batch(input, target, asked)

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """A dictionary for each stream."""
        answer = torch.zeros_like(input)
        for row, out in zip(input.tolist(), answer, strict=True):
            told: dict[int, dict[int, int]] = {}
            mark = key = -1
            for t, token in enumerate(row):
                if token >= 2 * self.keys:
                    mark = token
                elif token >= self.keys:
                    told.setdefault(mark, {})[key] = token
                else:
                    key = token
                    out[t] = told.get(mark, {}).get(key, 0)
        return answer
