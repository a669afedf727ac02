"""Delayed copying: say what the signal was some steps ago.

read   x1 x2 x3 x4 x5 x6     noise, on request without fast parts
ask     .  . x1 x2 x3 x4     here with a lag of 2
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from stepscan.tasks.base import Batch, RealTask


@dataclass(frozen=True, kw_only=True)
class Delay(RealTask):
    """Config of delayed copying."""

    name: ClassVar[str] = "delay"
    ability: ClassVar[str] = "signals"
    source: ClassVar[str] = "Voelker, Kajic & Eliasmith 2019 (Legendre memory units), NeurIPS 32"

    length: int = 64
    """Steps of the signal. A longer one has the same lag."""
    lag: int = 16
    """How long ago it was."""
    shortest: float = 2.0
    """The signal has no periods below this many steps; 2, the least there is, leaves white noise.

    What is slow can be kept in fewer numbers than the lag has steps.
    """

    def __post_init__(self) -> None:
        """Reject what leaves no signal or nothing to ask."""
        if not 0 <= self.lag < self.length:
            raise ValueError(f"delay: want 0 <= lag < length, got {self.lag} of {self.length}")
        if not 2 <= self.shortest <= self.length:
            raise ValueError(
                f"delay: want shortest from 2 to length={self.length}, got {self.shortest}"
            )

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples of variance 1."""
        x = torch.randn(n, self.length, generator=rng)
        if self.shortest > 2:
            spectrum = torch.fft.rfft(x)
            spectrum[:, int(self.length / self.shortest) :] = 0
            x = torch.fft.irfft(spectrum, self.length)
            x = x / x.std()
        target = torch.zeros_like(x)
        target[:, self.lag :] = x[:, : self.length - self.lag]
        asked = torch.zeros_like(x, dtype=torch.bool)
        asked[:, self.lag :] = True
        return Batch(x[..., None], target[..., None], asked)

    def solve(self, input: Float[Tensor, "B T 1"]) -> Float[Tensor, "B T 1"]:
        """Keep a queue."""
        answer = torch.zeros_like(input)
        for row, out in zip(input[..., 0].tolist(), answer, strict=True):
            queue: list[float] = []
            for t, number in enumerate(row):
                queue.append(number)
                if len(queue) > self.lag:
                    out[t] = queue.pop(0)
        return answer
