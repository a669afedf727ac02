"""Numbers as people read them: as many digits as the interval deserves, and units."""

import math
from collections.abc import Iterable
from statistics import median_low

from stepscan.analyze.intervals import Interval

CANNOT = "-"
"""What stands where a number has no meaning (an n-gram has no decode speed)."""


def decimals(intervals: Iterable[Interval | None]) -> int:
    """Return the decimals of a column: two digits of its median interval, 3 to 5 in all."""
    known = [x for x in intervals if x is not None]
    largest = max((abs(x.mean) for x in known), default=0.0)
    fewest = max(0, 2 - _exponent(largest)) if largest else 0
    halves = [x.half for x in known if x.half]
    wanted = 1 - _exponent(median_low(halves)) if halves else fewest + 1
    return min(max(wanted, fewest), fewest + 2, 8)


def score(interval: Interval | None, places: int, *, signed: bool = False) -> str:
    """Return `1.934 ± 0.012`, without the second part where there is no interval."""
    if interval is None:
        return CANNOT
    mean = f"{interval.mean:{'+' if signed else ''},.{places}f}"
    return mean if interval.half is None else f"{mean} ± {interval.half:,.{places}f}"


def column(values: Iterable[object]) -> tuple[list[str], bool]:
    """Return the cells of a column, and whether they are numbers: these have as many decimals as
    give the largest four digits.
    """
    known = list(values)
    numbers = [x for x in known if isinstance(x, int | float) and not isinstance(x, bool)]
    fractions = [x for x in numbers if isinstance(x, float) and math.isfinite(x)]
    largest = max(map(abs, fractions), default=0.0)
    places = min(6, max(0, 3 - _exponent(largest))) if largest else 0

    def cell(value: object) -> str:
        if isinstance(value, float):
            return f"{value:,.{places}f}"
        whole = isinstance(value, int) and not isinstance(value, bool)
        return CANNOT if value is None else f"{value:,}" if whole else str(value)

    return [cell(x) for x in known], len(numbers) == sum(x is not None for x in known)


def count(number: float | None) -> str:
    """Return three significant digits with commas: 12,345 becomes 12,300."""
    if number is None or not math.isfinite(number):
        return CANNOT
    if abs(number) < 100:
        return f"{number:.3g}"
    return f"{round(number, min(0, 2 - _exponent(number))):,.0f}"


def short(number: float) -> str:
    """Return 950, 12k, 1.2M: for axes and narrow places."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= unit * 0.9995:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"


def size(number: float | None) -> str:
    """Return bytes with a unit; 1 KB is 1,024 bytes."""
    if number is None:
        return CANNOT
    for unit, name in ((2**30, "GB"), (2**20, "MB"), (2**10, "KB")):
        if number >= unit:
            return f"{_three(number / unit)} {name}"
    return f"{number:.0f} B"


def clock(seconds: float) -> str:
    """Return 4:00 or 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _three(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _exponent(number: float) -> int:
    return math.floor(math.log10(abs(number))) if number else 0
