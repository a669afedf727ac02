"""The adding problem (Hochreiter & Schmidhuber 1997, sec. 5.4): add two marked numbers.

read   .3 .9 .1 .7 .2 .5     one column of numbers
        0  1  0  0  1  0     one of marks: two of them, one in each half
ask     .  .  .  .  . 1.1    the sum of the marked numbers, at the end
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from stepscan.tasks.base import Batch, RealTask


@dataclass(frozen=True, kw_only=True)
class Adding(RealTask):
    """Config of the adding problem."""

    name: ClassVar[str] = "adding"
    ability: ClassVar[str] = "signals"
    source: ClassVar[str] = "Hochreiter & Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735"
    channels: ClassVar[int] = 2

    length: int = 64
    """Numbers in a row."""

    def __post_init__(self) -> None:
        """Reject what has no two halves."""
        if self.length < 2:
            raise ValueError(f"adding: want a length of 2 or more, got {self.length}")

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples; numbers uniform in [0, 1)."""
        number = torch.rand(n, self.length, generator=rng)
        half, mark = self.length // 2, torch.zeros(n, self.length)
        first = torch.randint(half, (n, 1), generator=rng)
        second = torch.randint(half, self.length, (n, 1), generator=rng)
        mark.scatter_(1, torch.cat([first, second], 1), 1.0)
        target, asked = torch.zeros(n, self.length, 1), torch.zeros(n, self.length).bool()
        target[:, -1, 0] = (number * mark).sum(1)
        asked[:, -1] = True
        return Batch(torch.stack([number, mark], 2), target, asked)

    def solve(self, input: Float[Tensor, "B T 2"]) -> Float[Tensor, "B T 1"]:
        """Add up what was marked so far."""
        answer = torch.zeros(*input.shape[:2], 1)
        for row, out in zip(input.tolist(), answer, strict=True):
            total = 0.0
            for t, (number, mark) in enumerate(row):
                total += number if mark == 1 else 0.0
                out[t] = total
        return answer
