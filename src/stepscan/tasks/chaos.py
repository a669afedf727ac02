"""Chaotic systems, to be forecast from what is seen of them now (and before).

read   s1 s2 s3 s4 s5     the whole state of the system, standardised, sample by sample
ask    s2 s3 s4 s5 s6     the state one sample later (`ahead` samples later)

An example is a stretch of one of 128 trajectories, which are integrated once in a process; those of
`held_out` start elsewhere. Systems and integrators: tasks/dynamics.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from stepscan.names import lookup
from stepscan.tasks import dynamics
from stepscan.tasks.base import Batch, RealTask

ROWS, STEPS = 128, 512
"""Trajectories that are kept, and how long they are at least."""
SEEDS = {"train": 0, "test": 1}


@dataclass(frozen=True, kw_only=True)
class Chaos(RealTask):
    """What these tasks share."""

    ability: ClassVar[str] = "chaos"
    system: ClassVar[Callable[[], dynamics.System]]

    length: int = 64
    """Samples to read."""
    ahead: int = 1
    """How many samples later is asked for."""
    part: str = "train"
    """Which trajectories: train or test."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        lookup(SEEDS, self.part, kind=f"part of {self.name}")
        if self.length < 1 or self.ahead < 1:
            raise ValueError(
                f"{self.name}: want length and ahead >= 1, got {self.length} and {self.ahead}"
            )

    def held_out(self) -> "Chaos":
        """Other trajectories."""
        return replace(self, part="test")

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` stretches."""
        system, need = type(self).system(), self.length + self.ahead
        kept = _bank(type(self).system, SEEDS[self.part], max(STEPS, 2 * need))
        row = torch.randint(len(kept), (n, 1), generator=rng)
        at = torch.randint(kept.shape[1] - need + 1, (n, 1), generator=rng)
        x = system.standardized(kept[row, at + torch.arange(need)]).float()
        asked = torch.ones(n, self.length, dtype=torch.bool)
        return Batch(x[:, : self.length], x[:, self.ahead :], asked)

    def solve(self, input: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        """Integrate on from each state, by another method in small steps."""
        system = type(self).system()
        mean, scale = (torch.tensor(m, dtype=torch.float64) for m in (system.mean, system.scale))
        x = (input.double() * scale + mean).flatten(0, 1)
        x = self.follow(x, self.ahead * system.every)
        return ((x - mean) / scale).float().view(input.shape)

    def follow(self, x: Float[Tensor, "M C"], time: float) -> Float[Tensor, "M C"]:
        """States after some time: the midpoint rule over `rates`, number by number."""
        steps = math.ceil(time / 0.005)
        dt, numbers = time / steps, list(x.unbind(1))
        for _ in range(steps):
            slopes = self.rates(numbers)
            middle = [a + dt / 2 * b for a, b in zip(numbers, slopes, strict=True)]
            numbers = [a + dt * b for a, b in zip(numbers, self.rates(middle), strict=True)]
        return torch.stack(numbers, 1)

    def rates(self, numbers: list[Tensor]) -> list[Tensor]:
        """The equations, for the oracle."""
        raise NotImplementedError


@lru_cache(maxsize=8)
def _bank(system: Callable[[], dynamics.System], seed: int, steps: int) -> Float[Tensor, "B T C"]:
    rng = torch.Generator().manual_seed(seed)
    return dynamics.trajectories(system(), ROWS, steps, rng, settle=150)


@dataclass(frozen=True, kw_only=True)
class Lorenz(Chaos):
    """Two wings (Lorenz 1963); a tenth of a Lyapunov time between samples."""

    name: ClassVar[str] = "lorenz"
    source: ClassVar[str] = "Lorenz 1963, doi:10.1175/1520-0469(1963)020<0130:DNF>2.0.CO;2"
    channels: ClassVar[int] = 3
    outputs: ClassVar[int] = 3
    system: ClassVar[Callable[[], dynamics.System]] = dynamics.lorenz

    def rates(self, numbers: list[Tensor]) -> list[Tensor]:
        """Lorenz' three."""
        x, y, z = numbers
        return [10.0 * y - 10.0 * x, 28.0 * x - y - x * z, x * y - 8.0 * z / 3.0]


@dataclass(frozen=True, kw_only=True)
class Roessler(Chaos):
    """One band (Roessler 1976); a fourteenth of a Lyapunov time between samples."""

    name: ClassVar[str] = "roessler"
    source: ClassVar[str] = "Roessler 1976, doi:10.1016/0375-9601(76)90101-8"
    channels: ClassVar[int] = 3
    outputs: ClassVar[int] = 3
    system: ClassVar[Callable[[], dynamics.System]] = dynamics.roessler

    def rates(self, numbers: list[Tensor]) -> list[Tensor]:
        """Roessler's three."""
        x, y, z = numbers
        return [-(y + z), x + y / 5.0, 0.2 + x * z - 5.7 * z]


@dataclass(frozen=True, kw_only=True)
class Lorenz96(Chaos):
    """Weather on a ring of 20 places (Lorenz 1996); 0.3 Lyapunov times between samples."""

    name: ClassVar[str] = "lorenz96"
    source: ClassVar[str] = "Lorenz 1996, ECMWF Seminar on Predictability 1"
    channels: ClassVar[int] = 20
    outputs: ClassVar[int] = 20
    system: ClassVar[Callable[[], dynamics.System]] = dynamics.lorenz96

    def rates(self, numbers: list[Tensor]) -> list[Tensor]:
        """Place by place."""
        n = len(numbers)
        return [
            (numbers[(i + 1) % n] - numbers[i - 2]) * numbers[i - 1] - numbers[i] + 8.0
            for i in range(n)
        ]


@dataclass(frozen=True, kw_only=True)
class KuramotoSivashinsky(Chaos):
    """Flame fronts on a ring of 32 points; a tenth of a Lyapunov time between samples."""

    name: ClassVar[str] = "kuramoto_sivashinsky"
    source: ClassVar[str] = "Kuramoto 1978, doi:10.1143/PTPS.64.346; Sivashinsky 1977"
    channels: ClassVar[int] = 32
    outputs: ClassVar[int] = 32
    system: ClassVar[Callable[[], dynamics.System]] = dynamics.kuramoto_sivashinsky

    def follow(self, x: Float[Tensor, "M C"], time: float) -> Float[Tensor, "M C"]:
        """Strang's splitting in space: derivatives as matrices, the linear part as their power."""
        points = self.channels
        place = torch.arange(points, dtype=torch.float64) / points
        angle = 2 * math.pi * (place[:, None] - place)
        first = torch.zeros(points, points, dtype=torch.float64)
        second = first.clone()
        for k in range(1, points // 2):  # the sum of waves through the points, derived
            q = 2 * math.pi * k / 22.0
            first -= 2 * q * (k * angle).sin() / points
            second -= 2 * q**2 * (k * angle).cos() / points
        steps = math.ceil(time / 0.02)
        dt = time / steps
        half = torch.linalg.matrix_exp(-(second + second @ second) * dt / 2).T
        slope = first.T
        for _ in range(steps):
            x = x @ half
            middle = x - dt / 4 * (x * x) @ slope
            x = (x - dt / 2 * (middle * middle) @ slope) @ half
        return x
