"""How often a series is measured: its grid of time, its season, and the horizon people ask for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from stepscan.data.clock import DAY, HOUR, WEEK, YEAR

MINUTE = HOUR // 60
MONTHS = {1: (28, 31), 2: (59, 62), 3: (89, 92), 6: (181, 184), 12: (365, 366)}  # in days
SEASONS = {1: 12, 2: 6, 3: 4, 6: 2, 12: 0}  # by months
HORIZONS = {1: 12, 2: 6, 3: 8, 6: 4, 12: 4}
LONGEST_SEASON = 2_500
ON_GRID = 0.02  # of a step: as far as a time may lie from the grid


@dataclass(frozen=True, kw_only=True)
class Frequency:
    """Steps of `months` months, or of `step` nanoseconds (plain units off the calendar).

    With neither, steps are counted, not timed.
    """

    months: int = 0
    step: int = 0
    origin: int = 0
    calendar: bool = True

    def index(self, stamps: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
        """The number of the step nearest to each time."""
        assert self.months or self.step
        if self.months:
            return (_month(stamps) - _month(np.array([self.origin]))) // self.months
        return np.rint((stamps - self.origin) / self.step).astype(np.int64)

    def stamp(self, index: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
        """The time of each step."""
        if self.months:
            months = _month(np.array([self.origin])) + index * self.months
            return months.astype("datetime64[M]").astype("datetime64[ns]").astype(np.int64)
        return self.origin + index * self.step

    def fits(self, stamps: Int[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
        """Whether each time lies on the grid."""
        if self.months:
            return np.ones(len(stamps), bool)
        return np.abs(self.stamp(self.index(stamps)) - stamps) <= ON_GRID * self.step

    @property
    def per_day(self) -> float:
        """Steps in a day; 0 off the calendar or for steps of months."""
        return DAY / self.step if self.calendar and self.step else 0.0

    @property
    def horizon(self) -> int:
        """What is usually forecast at this frequency."""
        if self.months:
            return HORIZONS[self.months]
        if self.per_day > 144:
            return 60
        if self.per_day > 1:
            return (
                int(max(48, self.per_day)) if self.per_day >= 24 else int(max(8, 2 * self.per_day))
            )
        return {1.0: 14, 1 / 7: 13}.get(self.per_day, 12)

    @property
    def seasons(self) -> list[int]:
        """Lengths of the seasons to choose from, in steps; empty where none is usual."""
        if self.months:
            return [SEASONS[self.months]] if SEASONS[self.months] else []
        if self.per_day <= 0:
            return []
        if self.step == WEEK:
            return [52]
        periods = [p / self.step for p in (WEEK, DAY, HOUR)]
        return [int(p) for p in periods if p == int(p) and 2 <= p <= LONGEST_SEASON][:2]

    def periods(self, span: int) -> tuple[float, ...]:
        """The circles of the calendar that say something; the year only where two were seen."""
        if not self.calendar or not (self.step or self.months):
            return ()
        step = self.step or self.months * DAY * 30
        circles: list[float] = [p for p in (DAY, WEEK) if step < p]
        return tuple(circles + [YEAR] * (span >= 2 * YEAR and step < YEAR / 2))

    def __str__(self) -> str:
        if not (self.months or self.step):
            return "steps"
        if self.months:
            return {1: "months", 3: "quarters", 12: "years"}.get(
                self.months, f"{self.months} months"
            )
        if not self.calendar:
            return "steps"
        for size, word in ((WEEK, "weeks"), (DAY, "days"), (HOUR, "hours"), (MINUTE, "minutes")):
            if self.step % size == 0:
                count = self.step // size
                return word if count == 1 else f"{count}-{word[:-1]} steps"
        return f"{self.step / 1e9:g}-second steps"


def find_frequency(
    series: Int[np.ndarray, " N"], stamps: Int[np.ndarray, " N"], *, calendar: bool
) -> Frequency:
    """The grid most steps lie on; rows are sorted by series, then time."""
    counted = Frequency(calendar=calendar)
    gaps = np.diff(stamps)[np.diff(series) == 0]
    if not len(gaps):
        return counted
    sizes, counts = np.unique(gaps, return_counts=True)
    usual = int(sizes[counts.argmax()])
    origin = int(stamps.min())
    found = Frequency(step=usual, origin=origin, calendar=calendar)
    for months, (low, high) in MONTHS.items():
        days = sizes[counts > counts.max() / 8] / DAY
        if calendar and ((low <= days) & (days <= high)).all():
            found = Frequency(months=months, origin=origin)
    index = found.index(stamps)
    first = np.flatnonzero(np.diff(series, prepend=-1))
    last = np.append(first[1:], len(series)) - 1
    cells = int((index[last] - index[first] + 1).sum())
    collide = ((np.diff(index) == 0) & (np.diff(series) == 0)).any()
    if found.fits(stamps).mean() < 0.9 or cells > 2 * len(stamps) + 10 or collide:
        return counted
    return found


def _month(stamps: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    return stamps.astype("datetime64[ns]").astype("datetime64[M]").astype(np.int64)


def held_out(asked: float | None, total: int, horizon: int, frequency: Frequency) -> int:
    """Steps to hold out: 28 days where that is little, else 8 %, and one horizon at least."""
    if asked is not None:
        return round(asked * total) if asked < 1 else round(asked)
    month = round(28 * frequency.per_day) if frequency.per_day > 1 else 0
    return max(horizon, month if 0 < month <= total / 5 else round(0.08 * total))


def best_season(seasons: Sequence[int], errors: Sequence[float]) -> int:
    """The season whose repetition errs least; 0 without any."""
    return min(zip(errors, seasons, strict=True), default=(0.0, 0))[1]
