"""How a loss falls with compute: a power law with a floor, its intervals, and where two laws cross.

    L(C) = E + A C^-alpha        E, A >= 0

For a given exponent alpha the law is linear in E and A, so only alpha is searched: on a logarithmic
grid, then around the best. Errors are relative, (E + A C^-alpha - L) / L, and enter by Huber's
function, whose bend follows from their median: a run that went wrong does not pull the law.
Intervals are percentiles of a bootstrap over the errors.

Sources: the law with a floor, Hoffmann et al. 2022, arXiv:2203.15556 (also Huber's loss);
crossing points of laws over equal compute, Stanić et al. 2023, arXiv:2309.11197; Huber 1964.
Deviation: errors are relative, not of logarithms, which for small errors is the same.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

EXPONENTS = (0.01, 4.0)
"""Exponents that are searched."""
GRID, ZOOMS = 48, 3
"""Exponents at a time, and how often the grid is drawn closer around the best."""
ROUNDS = 12
"""Of reweighting, in each of which distant points lose weight."""
BEND = 1.345
"""Huber's: 95 % as efficient as least squares where errors are normal."""
NEAREST = 1e-6
"""Relative errors below this count as this: data without noise."""


class PowerLaw(NamedTuple):
    """L(C) = floor + scale C^-exponent."""

    floor: float
    """E: the loss that no compute takes away."""
    scale: float
    """A."""
    exponent: float
    """alpha."""

    def __call__(self, compute: float) -> float:
        """The loss after so much compute."""
        return self.floor + self.scale * compute**-self.exponent


class Fit(NamedTuple):
    """A law and how sure it is."""

    law: PowerLaw
    samples: tuple[PowerLaw, ...]
    """Laws of the bootstrap."""
    error: float
    """Typical relative error of the points: the median; large where this is no power law."""
    measured: tuple[float, float]
    """The least and the most compute of the points."""

    def interval(
        self, name: Literal["floor", "scale", "exponent"], *, level: float = 0.95
    ) -> tuple[float, float]:
        """Where a number of the law lies with this probability."""
        return _percentiles([getattr(law, name) for law in self.samples], level)


class Crossing(NamedTuple):
    """Where one law overtakes the other."""

    compute: float
    """By the two laws themselves."""
    low: float
    """With the probability asked for it lies above this..."""
    high: float
    """... and below this; infinite where too many samples do not cross within reach."""
    share: float
    """Of the samples, how many cross within reach."""


def fit(
    compute: Sequence[float], loss: Sequence[float], *, samples: int = 200, seed: int = 0
) -> Fit:
    """Fit a power law with a floor to points of (compute, loss).

    Args:
        compute: Above zero: seconds, tokens or operations; at least four different ones.
        loss: What was reached with each, above zero.
        samples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ValueError: too few points, none above zero, or a loss that does not fall.
    """
    if len(compute) != len(loss) or len(set(compute)) < 4:
        raise ValueError(
            f"scaling: want a loss for each of four or more amounts of compute, got {len(loss)} "
            f"losses and {len(set(compute))} different amounts"
        )
    if not all(math.isfinite(x) and x > 0 for x in (*compute, *loss)):
        raise ValueError("scaling: want finite compute and losses above zero: leave out failures.")
    c = torch.tensor(compute, dtype=torch.float64)
    y = torch.tensor(loss, dtype=torch.float64)
    middle = c.log().mean().exp()
    floor, scale, exponent = _solve(c / middle, y[None])
    if not scale.item() > 0:
        raise ValueError("scaling: the loss does not fall with compute; there is no law to fit")
    fitted = (floor + scale * (c / middle) ** -exponent).squeeze(0)
    errors = y / fitted - 1
    rng = torch.Generator().manual_seed(seed)
    drawn = _drawn_errors(errors, samples, rng)
    laws = _solve(c / middle, fitted * (1 + drawn).clamp_min(NEAREST))
    unscale = middle**exponent, middle ** laws[2]
    return Fit(
        PowerLaw(floor.item(), (scale * unscale[0]).item(), exponent.item()),
        tuple(
            PowerLaw(*numbers)
            for numbers in zip(
                laws[0].tolist(), (laws[1] * unscale[1]).tolist(), laws[2].tolist(), strict=True
            )
        ),
        errors.abs().median().item(),
        (min(compute), max(compute)),
    )


def crossing(
    first: Fit, second: Fit, *, reach: float = 1e3, level: float = 0.95
) -> Crossing | None:
    """Where two laws change places; None if they do not between the least compute measured and
    `reach` times the most. Of several such places it is the first, and of each pair of samples the
    one nearest to it.
    """
    low = min(first.measured[0], second.measured[0])
    high = reach * max(first.measured[1], second.measured[1])
    found = _crossings(first.law, second.law, low, high)
    if not found:
        return None
    place = found[0]
    places = []
    for one, other in zip(first.samples, second.samples, strict=False):
        near = _crossings(one, other, low, high)
        places.append(min(near, key=lambda c: abs(math.log(c / place)), default=math.inf))
    share = sum(map(math.isfinite, places)) / len(places)
    return Crossing(place, *_percentiles(places, level), share)


def _solve(
    c: Float[Tensor, " N"], y: Float[Tensor, "R N"]
) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"], Float[Tensor, " R"]]:
    """Floor, scale and exponent of each row of losses."""
    low = torch.full((len(y),), EXPONENTS[0], dtype=y.dtype).log()
    high = torch.full((len(y),), EXPONENTS[1], dtype=y.dtype).log()
    spread = _spread(c, y, low, high)
    share = torch.linspace(0, 1, GRID, dtype=y.dtype)
    at = low
    for _ in range(ZOOMS):
        grid = (low[:, None] + (high - low)[:, None] * share).exp()  # [R G]
        *_, error = _weighted(c, y, grid, spread)
        best = _huber(error, spread[:, None, None]).sum(-1).argmin(1, keepdim=True)
        step = (high - low) / (GRID - 1)
        at = grid.gather(1, best).squeeze(1).log()
        low, high = at - step, at + step
    exponent = at.exp()
    floor, scale, _ = _weighted(c, y, exponent[:, None], spread)
    return floor.squeeze(1), scale.squeeze(1), exponent


def _spread(
    c: Float[Tensor, " N"],
    y: Float[Tensor, "R N"],
    low: Float[Tensor, " R"],
    high: Float[Tensor, " R"],
) -> Float[Tensor, " R"]:
    """The standard deviation of the errors, by their median under the law of least absolute error.

    Degrees of freedom: three numbers are fitted, which makes the errors of few points small.
    """
    share = torch.linspace(0, 1, GRID, dtype=y.dtype)
    grid = (low[:, None] + (high - low)[:, None] * share).exp()
    least = torch.full((len(y),), NEAREST, dtype=y.dtype)
    *_, error = _weighted(c, y, grid, least)
    best = error.abs().sum(-1).argmin(1)
    error = error[torch.arange(len(y)), best]
    few = math.sqrt(len(c) / max(1, len(c) - 3))
    return (1.4826 * few * error.abs().median(1).values).clamp_min(NEAREST)


def _weighted(
    c: Float[Tensor, " N"], y: Float[Tensor, "R N"], grid: Float[Tensor, "R G"], spread: Tensor
) -> tuple[Float[Tensor, "R G"], Float[Tensor, "R G"], Float[Tensor, "R G N"]]:
    """Floor, scale and relative errors of every row and exponent, by reweighted least squares."""
    x = c ** -grid[..., None]  # [R G N]
    y = y[:, None]  # [R 1 N]
    bend = BEND * spread[:, None, None]
    floor, scale = _line(x, y, torch.ones_like(x) / y.square())
    for _ in range(ROUNDS):
        error = (floor[..., None] + scale[..., None] * x) / y - 1
        weight = bend / error.abs().clamp_min(bend)
        floor, scale = _line(x, y, weight / y.square())
    return floor, scale, (floor[..., None] + scale[..., None] * x) / y - 1


def _line(
    x: Float[Tensor, "R G N"], y: Float[Tensor, "R 1 N"], weight: Float[Tensor, "R G N"]
) -> tuple[Float[Tensor, "R G"], Float[Tensor, "R G"]]:
    """Floor and scale by weighted least squares, neither below zero."""
    w = weight.sum(-1)
    mean_x, mean_y = (weight * x).sum(-1) / w, (weight * y).sum(-1) / w
    apart = x - mean_x[..., None]
    scale = (weight * apart * y).sum(-1) / (weight * apart.square()).sum(-1).clamp_min(1e-300)
    scale = scale.clamp_min(0)
    floor = mean_y - scale * mean_x
    through = (weight * x * y).sum(-1) / (weight * x.square()).sum(-1)  # without a floor
    return floor.clamp_min(0), torch.where(floor < 0, through, scale)


def _huber(error: Tensor, spread: Tensor) -> Tensor:
    bend = BEND * spread
    size = error.abs()
    return torch.where(size < bend, size.square() / 2, bend * (size - bend / 2)) / bend.square()


def _drawn_errors(
    errors: Float[Tensor, " N"], samples: int, rng: torch.Generator
) -> Float[Tensor, "R N"]:
    """Errors put in other places, as wide as those of points that no law was fitted to."""
    count = len(errors)
    wide = (errors - errors.median()) * math.sqrt(count / max(1, count - 3))
    return wide[torch.randint(count, (samples, count), generator=rng)]


def _crossings(one: PowerLaw, other: PowerLaw, low: float, high: float) -> list[float]:
    """Every place between `low` and `high` where the sign of the difference changes."""
    gap = lambda at: one(math.exp(at)) - other(math.exp(at))  # noqa: E731
    steps = 200
    ats = [math.log(low) + i / steps * math.log(high / low) for i in range(steps + 1)]
    gaps = [gap(at) for at in ats]
    found = []
    for i in range(steps):
        if gaps[i] * gaps[i + 1] < 0:
            a, b = ats[i], ats[i + 1]
            for _ in range(50):
                middle = (a + b) / 2
                a, b = (middle, b) if gap(middle) * gaps[i] > 0 else (a, middle)
            found.append(math.exp((a + b) / 2))
    return found


def _percentiles(values: Sequence[float], level: float) -> tuple[float, float]:
    """The middle share `level` of the values, infinite ones included."""
    if not values:
        raise ValueError("scaling: no samples of a bootstrap, so no interval: want samples >= 1")
    order = sorted(values)
    edge = (1 - level) / 2
    last = len(order) - 1
    return order[math.floor(edge * last)], order[math.ceil((1 - edge) * last)]
