"""Rows of a table laid on the grid of time, and what is measured of each series."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from stepscan.data.base import DataError
from stepscan.data.frequency import Frequency, best_season
from stepscan.data.tables import MILLIONTHS, Table, labels, numbers, times

SPARSE, ROOM = 20, 100_000
"""The most steps that rows are laid on: so many for each row, and so many besides."""


class Columns(NamedTuple):
    """Which column is what."""

    id: str | None
    """None: one series for each target."""
    time: str | None
    """None: rows are in order."""
    target: tuple[str, ...]
    covariates: tuple[str, ...]
    future: tuple[str, ...]
    """The covariates known ahead."""
    static: tuple[str, ...] = ()
    """One value a series: numbers, or words that become categories."""


@dataclass(frozen=True)
class Rows:
    """Rows sorted by series and time."""

    series: Int[np.ndarray, " N"]
    names: list[str]
    stamps: Int[np.ndarray, " N"]
    y: Float[np.ndarray, " N"]
    covariates: Float[np.ndarray, "N C"]
    calendar: bool
    findings: tuple[str, ...]
    static: Mapping[str, Sequence[str]]
    """By column, the value of each series as text; "" where missing."""


class Stats(NamedTuple):
    """Of each series: the first three from its training part."""

    center: Float[np.ndarray, " S"]
    """Median."""
    scale: Float[np.ndarray, " S"]
    """Robust standard deviation."""
    spread: Float[np.ndarray, " S"]
    """Robust standard deviation of the errors of the base forecast."""
    naive: Float[np.ndarray, " S"]
    """Mean absolute error of the seasonal naive forecast before the test part, for MASE."""


class Grid:
    """The rows of `Rows` on every step from each series' first value to its last row."""

    def __init__(self, read: Rows, frequency: Frequency) -> None:
        timed = bool(frequency.months or frequency.step)
        index = frequency.index(read.stamps) if timed else np.arange(len(read.y))
        seen = ~np.isnan(read.y)
        first = np.full(len(read.names), np.iinfo(np.int64).max)
        np.minimum.at(first, read.series[seen], index[seen])
        kept = index >= first[read.series]  # nothing is known before the first value
        present, series = np.unique(read.series[kept], return_inverse=True)
        index, y = index[kept], read.y[kept]
        self.names = [read.names[i] for i in present]
        self.static = {name: [values[i] for i in present] for name, values in read.static.items()}
        """By column, the value of each series as text."""
        self.first = first[present]
        """The number of the first step on the common grid."""
        over = np.zeros(len(present), np.int64)
        np.maximum.at(over, series, index)
        lengths = over - self.first + 1
        if timed:
            _check_dense(read, frequency, int(lengths.sum()))
        self.end = np.cumsum(lengths)
        self.begin = self.end - lengths
        place = self.begin[series] + index - self.first[series]
        total = int(lengths.sum())
        self.y = np.full(total, np.nan)
        self.y[place] = y
        self.covariates = np.full((total, read.covariates.shape[1]), np.nan)
        self.covariates[place] = read.covariates[kept]
        self.series = np.repeat(np.arange(len(present)), lengths)
        steps = np.arange(total) - self.begin[self.series] + self.first[self.series]
        self.stamps = np.zeros(total, np.int64)
        if timed:
            self.stamps = frequency.stamp(steps)
        else:
            self.stamps[place] = read.stamps[kept]
        value = np.flatnonzero(~np.isnan(self.y))
        self.last_value = np.zeros(len(present), np.int64)
        np.maximum.at(self.last_value, self.series[value], value)


def _check_dense(read: Rows, frequency: Frequency, steps: int) -> None:
    """Raise `DataError` where one wrong date makes a long grid with nearly nothing on it."""
    rows = len(read.y)
    if steps <= SPARSE * rows + ROOM:
        return
    first, last = int(read.stamps.min()), int(read.stamps.max())
    since, until = (
        str(np.datetime64(when, "ns").astype("datetime64[s]")).replace("T", " ")
        if read.calendar
        else f"{when / MILLIONTHS:g}"
        for when in (first, last)
    )
    raise DataError(
        f"{rows:,} rows from {since} to {until} are too few for {steps:,} steps of "
        f"{frequency}: is one of these times wrong? Drop its row, or bring the rows to that grid"
    )


def read_rows(table: Table, columns: Columns) -> Rows:
    """The rows of all series, one for each target column, sorted; duplicates are errors."""
    rows = len(table)
    findings: tuple[str, ...] = ()
    stamps, calendar = np.arange(rows), False
    if columns.time is not None:
        clock = times(table, columns.time)
        stamps, calendar, findings = clock.values, clock.calendar, clock.findings
    series, ids = np.zeros(rows, np.int64), [""]
    if columns.id is not None:
        column = labels(table, columns.id, "series")
        if column.isna().any():
            row = int(column.isna().to_numpy().argmax())
            raise DataError(
                f"{table.cell(row, columns.id)}: no name of a series. Fill or drop the row."
            )
        series, found = column.factorize(sort=True)
        ids = list(map(str, found))
    order = np.lexsort((stamps, series))
    late = int(((np.diff(stamps) < 0) & (np.diff(series) == 0)).sum())
    if late:
        findings = (*findings, f"rows out of order of time in {late:,} places: sorted")
    same = (np.diff(series[order]) == 0) & (np.diff(stamps[order]) == 0)
    if same.any():
        row = int(order[1:][same].min())
        of = f' of series "{ids[series[row]]}"' if columns.id else ""
        clash = findings and "UTC" in findings[0]  # the clock of another zone may be the reason
        raise DataError(
            f"{table.cell(row, str(columns.time))}: this time{of} was there before "
            f"({same.sum():,} such rows). Keep one row a time, or name the column that tells "
            "series apart with --id" + (f"; {findings[0]}" if clash else "")
        )
    y = [numbers(table, column, "target") for column in columns.target]
    covariates = [numbers(table, column, "covariate") for column in columns.covariates]
    beside = np.stack(covariates, 1) if covariates else np.empty((rows, 0))
    static = {c: _constants(table, c, series, ids) * len(y) for c in columns.static}
    several = len(columns.target) > 1
    names = [
        "/".join(filter(None, (i, column if several or columns.id is None else "")))
        for column in columns.target
        for i in ids
    ]
    every = np.concatenate([order] * len(columns.target))
    return Rows(
        series=np.concatenate([series[order] + i * len(ids) for i in range(len(y))]),
        names=names,
        stamps=stamps[every],
        y=np.concatenate([values[order] for values in y]),
        covariates=beside[every],
        calendar=calendar,
        findings=findings,
        static=static,
    )


def _constants(
    table: Table, column: str, series: Int[np.ndarray, " N"], ids: Sequence[str]
) -> list[str]:
    """The one value of each series, as text; rows without one, such as those to come, tell none."""
    # Rows to come without a value make a whole column of numbers fractional: 3 becomes 3.0.
    text = labels(table, column, "static").fillna("").str.replace(r"\.0$", "", regex=True)
    cells = text.to_numpy()
    told = np.flatnonzero(cells != "")
    found = [""] * len(ids)
    first = np.full(len(ids), len(cells))
    np.minimum.at(first, series[told], told)
    for i, row in enumerate(first):
        found[i] = str(cells[row]) if row < len(cells) else ""
    other = told[cells[told] != cells[first[series[told]]]]
    if len(other):
        row = int(other[0])
        raise DataError(
            f'{table.cell(row, column)}: "{cells[row]}", and "{found[series[row]]}" before in the '
            f'same series "{ids[series[row]]}"; a static column has one value a series. If it '
            "changes, name it in --covariates"
        )
    return found


def inside(grid: Grid, stop: Int[np.ndarray, " S"]) -> Bool[np.ndarray, " N"]:
    """The steps of each series before its stop."""
    return np.arange(len(grid.y)) < stop[grid.series]


def _lagged(grid: Grid, y: Float[np.ndarray, " N"], lag: int) -> Float[np.ndarray, " N"]:
    """y[t] - y[t - lag] within each series; NaN where there is none."""
    before = np.arange(len(y)) - lag
    known = before >= grid.begin[grid.series]
    return np.where(known, y - y[np.maximum(before, 0)], np.nan)


def choose_season(
    grid: Grid, cut: Int[np.ndarray, " S"], seasons: Sequence[int], horizon: int
) -> int:
    """The season whose repetition errs least in the training part, of those seen twice and more."""
    y = np.where(inside(grid, cut), grid.y, np.nan)
    longest = int((cut - grid.begin).max())
    fits = [season for season in seasons if 2 * season + horizon <= longest]
    scale = _positive(_robust_by_series(grid, y)[1], 1.0)
    errors = []
    for season in fits:
        lag = -(-horizon // season) * season
        error = np.abs(_lagged(grid, y, lag)) / scale[grid.series]
        known = error[~np.isnan(error)]
        errors.append(float(known.mean()) if len(known) else np.inf)
    return best_season(fits, errors)


def measure(
    grid: Grid,
    cut: Int[np.ndarray, " S"],
    season: int,
    horizon: int,
    *,
    before_test: Int[np.ndarray, " S"] | None = None,
) -> Stats:
    """Of each series, before its cut; what cannot be measured there is the next wider scale.

    `naive`, which only divides errors, is measured over all that lies before the test part.
    """
    y = np.where(inside(grid, cut), grid.y, np.nan)
    center, scale = _robust_by_series(grid, y)
    change = _lagged(grid, y, season or (horizon + 1) // 2)
    spread = _robust_by_series(grid, change)[1]
    history = np.where(inside(grid, cut if before_test is None else before_test), grid.y, np.nan)
    naive = _mean_by_series(grid, np.abs(_lagged(grid, history, season or 1)))
    scale = _positive(scale, 1.0)
    first = grid.y[grid.begin]  # where nothing lies before the cut, the first value must do
    return Stats(
        center=np.where(np.isnan(center), first, center),
        scale=scale,
        spread=_positive(spread, scale),
        naive=_positive(naive, scale),
    )


def _positive(values: np.ndarray, otherwise: np.ndarray | float) -> np.ndarray:
    return np.where(np.nan_to_num(values) > 0, values, otherwise)


def _mean_by_series(grid: Grid, values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " S"]:
    known = ~np.isnan(values)
    sums = np.bincount(grid.series[known], values[known], len(grid.names))
    counts = np.bincount(grid.series[known], minlength=len(grid.names))
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _robust_by_series(
    grid: Grid, values: Float[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " S"], Float[np.ndarray, " S"]]:
    pairs = [_robust(values[a:b]) for a, b in zip(grid.begin, grid.end, strict=True)]
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])


def robust_columns(
    values: Float[np.ndarray, "N C"],
) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"]]:
    """Median and robust standard deviation of each column; 0 and 1 where there is none."""
    pairs = [_robust(column) for column in values.T]
    centers = np.nan_to_num(np.array([p[0] for p in pairs]))
    return centers, _positive(np.array([p[1] for p in pairs]), 1.0)


def _robust(values: Float[np.ndarray, " N"]) -> tuple[float, float]:
    """Median, and interquartile range / 1.349: the standard deviation of a normal sample.

    Where half of the values are the same, the usual standard deviation.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return np.nan, np.nan
    low, center, high = np.quantile(values, (0.25, 0.5, 0.75))
    return float(center), float((high - low) / 1.349 or values.std())
