"""How sure a handful of seeds makes us: Student's t interval of a mean, and of a paired difference.

    mean +- t(1 - (1 - level) / 2, n - 1) s / sqrt(n)

with s the sample standard deviation. Source: Student (1908); the distribution function is the
finite trigonometric sum of Abramowitz and Stegun, 26.7.3 and 26.7.4, exact for whole degrees of
freedom, so nothing beyond the standard library is needed.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """A mean and how far the truth may lie from it on either side."""

    mean: float
    half: float | None
    """Half the width; None from a single value, which says nothing about its own spread."""
    count: int
    """Number of values that took part."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is known and zero lies outside it."""
        return self.half is not None and abs(self.mean) > self.half


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Return the mean of `values` with its t interval; all must be finite, at least one."""
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"want one or more finite values, got {list(values)}: leave out failures.")
    count, mean = len(values), math.fsum(values) / len(values)
    if count == 1:
        return Interval(mean, None, 1)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (count - 1))
    half = t_quantile(0.5 + level / 2, count - 1) * deviation / math.sqrt(count)
    return Interval(mean, half, count)


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], *, level: float = 0.95
) -> Interval:
    """Return the mean of `ours - theirs`, seed by seed, with its t interval.

    Pairing takes out what both share (the draw of the data, the noise of the hour).
    """
    if len(ours) != len(theirs):
        raise ValueError(f"want one value per seed on both sides, got {len(ours)}, {len(theirs)}.")
    return mean_interval([a - b for a, b in zip(ours, theirs, strict=True)], level=level)


def t_quantile(probability: float, freedom: int) -> float:
    """Return x with P(t <= x) = `probability` for Student's t with `freedom` degrees."""
    if not 0 < probability < 1 or freedom < 1:
        raise ValueError(
            f"want a probability between 0 and 1 and freedom >= 1, got {probability}, {freedom}."
        )
    if probability < 0.5:
        return -t_quantile(1 - probability, freedom)
    low, high = 0.0, math.pi / 2
    for _ in range(64):  # halves down to the last bit of a float64
        angle = (low + high) / 2
        low, high = (low, angle) if _inside(angle, freedom) > 2 * probability - 1 else (angle, high)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _inside(angle: float, freedom: int) -> float:
    """P(|t| <= sqrt(freedom) tan(angle)), Abramowitz and Stegun 26.7.3 (odd), 26.7.4 (even)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(freedom // 2):
        total += term
        term *= cosine**2 * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Spearman's: Pearson's correlation of the ranks, ties sharing theirs; None without spread."""
    if len(xs) != len(ys) or len(xs) < 2:
        raise ValueError(f"want two or more pairs, got {len(xs)} and {len(ys)} values.")
    a, b = _ranks(xs), _ranks(ys)
    middle = (len(xs) + 1) / 2
    spread = math.sqrt(sum((x - middle) ** 2 for x in a) * sum((y - middle) ** 2 for y in b))
    if not spread:
        return None
    return sum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True)) / spread


def _ranks(values: Sequence[float]) -> list[float]:
    below = [sum(other < value for other in values) for value in values]
    equal = [sum(other == value for other in values) for value in values]
    return [less + (same + 1) / 2 for less, same in zip(below, equal, strict=True)]
