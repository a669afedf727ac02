"""Mixed sines: a sum of sines of unknown frequencies, amplitudes and phases, to be continued.

read   x1 x2 x3 ... x32 x33     every example has its own frequencies
ask     .  .  . ... x33 x34     from the middle on: the next value

A sum of k sines obeys a linear recurrence of 2k steps, so a linear model that is told the
frequencies is exact; here it has to find them in the sequence.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from stepscan.tasks.base import Batch, RealTask

SLOWEST, FASTEST = 0.02, 0.4
"""Frequencies, in periods per step."""


@dataclass(frozen=True, kw_only=True)
class MixedSines(RealTask):
    """Config of mixed sines."""

    name: ClassVar[str] = "mixed_sines"
    ability: ClassVar[str] = "signals"
    source: ClassVar[str] = "Schmidhuber et al. 2007, doi:10.1162/neco.2007.19.3.757 (oscillations)"

    length: int = 64
    """Steps; the second half is asked for."""
    sines: int = 2
    """How many are mixed."""

    def __post_init__(self) -> None:
        """Reject what cannot be inferred."""
        if self.sines < 1 or self.length < 8 * self.sines:
            raise ValueError(
                f"mixed_sines: want sines >= 1 and a length of at least 8 * sines = "
                f"{8 * self.sines}, got sines={self.sines}, length={self.length}"
            )

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples; each frequency comes from a band of its own."""
        shape = n, self.sines, 1
        band = (FASTEST - SLOWEST) / self.sines
        place = torch.arange(self.sines)[:, None] + 0.1 + 0.8 * torch.rand(shape, generator=rng)
        phase = 2 * math.pi * torch.rand(shape, generator=rng)
        size = 0.5 + torch.rand(shape, generator=rng)
        t = torch.arange(self.length + 1)
        angle = 2 * math.pi * (SLOWEST + band * place.double()) * t + phase
        x = (size * angle.sin()).sum(1, keepdim=True).mT.float()
        asked = torch.zeros(n, self.length, dtype=torch.bool)
        asked[:, self.length // 2 :] = True
        return Batch(x[:, :-1], x[:, 1:], asked)

    def solve(self, input: Float[Tensor, "B T 1"]) -> Float[Tensor, "B T 1"]:
        """Fit the linear recurrence to the prefix and take one more step of it.

        Backwards it is the same recurrence, so the coefficients of x_t and x_{t - 2k} are equal:
        k numbers to find.
        """
        k, answer = self.sines, torch.zeros_like(input)
        for row, out in zip(input[..., 0].double(), answer, strict=True):
            # [T-2k 2k+1] windows x_{t-2k} ... x_t; the ends, equal ones in pairs, the middle one
            window = row.unfold(0, 2 * k + 1, 1)
            pairs = [window[:, i] + window[:, 2 * k - i] for i in range(1, k)]
            known = torch.stack([*pairs, window[:, k]], 1)
            for t in range(self.length // 2, len(row)):
                seen = t - 2 * k + 1
                ends = -(window[:seen, 0] + window[:seen, 2 * k])
                c = torch.linalg.lstsq(known[:seen], ends[:, None]).solution[:, 0].tolist()
                past = row[t - 2 * k + 1 : t + 1].tolist()  # x_{t+1-2k} ... x_t
                said = -past[0] - c[-1] * past[k]
                for i in range(1, k):
                    said -= c[i - 1] * (past[i] + past[2 * k - i])
                out[t] = said
        return answer
