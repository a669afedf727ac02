"""From numbers to places on paper: linear and logarithmic axes with round ticks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from stepscan.apps.report.figures import short, size


@dataclass(frozen=True)
class Scale:
    """Maps `low..high` to `start..end`; `start` may be the larger (y grows downwards)."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of `value`, also outside of the axis."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def holds(self, value: float) -> bool:
        """Whether `value` lies on the axis."""
        return self.low <= value <= self.high

    def clamp(self, value: float) -> float:
        """Return the place of `value`, or the nearer end of the axis."""
        return self(min(max(value, self.low), self.high))

    def ticks(self, most: int = 6, *, binary: bool = False) -> list[float]:
        """Return round numbers on the axis, at most `most`."""
        if self.log:
            return _log_ticks(self.low, self.high, most, binary=binary)
        step = round_step((self.high - self.low) / most)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]


def linear(values: Sequence[float], start: float, end: float, *, room: float = 0.06) -> Scale:
    """Return a linear scale over `values` with some room at both ends."""
    low, high = min(values), max(values)
    spare = (high - low) * room or abs(high) * 0.05 or 1.0
    return Scale(low - spare, high + spare, start, end)


def logarithmic(values: Sequence[float], start: float, end: float) -> Scale:
    """Return a log scale over positive `values`, spanning at least a factor of four."""
    low, high = math.log(min(values)), math.log(max(values))
    middle, reach = (low + high) / 2, max((high - low) / 2 * 1.16, math.log(2))
    return Scale(math.exp(middle - reach), math.exp(middle + reach), start, end, log=True)


def spans_decades(values: Sequence[float]) -> bool:
    """Whether positive `values` are spread so widely that a linear axis would hide most."""
    return min(values) > 0 and max(values) / min(values) > 50


def round_step(least: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is at least `least`."""
    base = 10.0 ** math.floor(math.log10(least))
    return next(m * base for m in (1, 2, 5, 10) if m * base >= least * (1 - 1e-9))


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Return the ticks with as many decimals as tell them apart."""
    if not ticks or max(map(abs, ticks)) >= 10_000:
        return [short(x) for x in ticks]
    gap = min((b - a for a, b in pairwise(ticks)), default=1.0)
    places = max(0, -math.floor(math.log10(gap) + 1e-9))
    return [f"{0.0 if abs(x) < gap / 1e6 else x:,.{places}f}" for x in ticks]


def texts(ticks: Sequence[float], *, log: bool, binary: bool) -> list[str]:
    """Return what stands at the ticks of an axis of any sort."""
    write: Callable[[float], str] = size if binary else short
    return [write(x) for x in ticks] if log else tick_texts(ticks)


def _log_ticks(low: float, high: float, most: int, *, binary: bool) -> list[float]:
    if binary:
        choices = [([1.0], 2.0**k) for k in (1, 2, 4, 6, 10, 20)]
    else:
        choices = [([1.0, 2.0, 5.0], 10.0), ([1.0, 3.0], 10.0)]
        choices += [([1.0], 10.0**k) for k in (1, 2, 3, 4, 6)]
    found: list[float] = []
    for steps, base in choices:  # from the finest to the coarsest
        first, last = math.floor(math.log(low, base)), math.ceil(math.log(high, base))
        places = (m * base**k for k in range(first, last + 1) for m in steps)
        found = [x for x in places if low * (1 - 1e-9) <= x <= high * (1 + 1e-9)]
        if len(found) <= most:
            break
    return found
