"""Time series: what the next values are, from quantiles over a horizon.

    inputs    value, missing flag, change, base forecast, covariates, calendar, static columns
              (`Panel.inputs`)
    asked     after every step, the H values to come, measured from the base ("future")

The last steps are held out, at the same date for all series on a calendar, at each series' own end
otherwise. Every scale of inputs and targets comes from the training part. MASE divides by `naive`,
per series: the mean absolute error of the seasonal naive forecast, a season ahead, over all that
lies before the test part (Hyndman and Koehler 2006).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan.data.base import DataError, DataOptions, Dataset, Schema
from stepscan.data.clock import on_circles
from stepscan.data.frequency import Frequency, find_frequency, held_out
from stepscan.data.grid import (
    Columns,
    Grid,
    Rows,
    Stats,
    choose_season,
    inside,
    measure,
    read_rows,
    robust_columns,
)
from stepscan.data.irregular import SHORT, measure_together, usual_gap
from stepscan.data.panel import LARGEST, Panel, SeriesPacked, cut_parts, last_seen
from stepscan.data.static import encode_static, learn_static
from stepscan.data.tables import Table

CONTEXT = 256  # steps read before a held-out part, or two seasons if that is more


@dataclass(frozen=True, kw_only=True)
class SeriesSchema(Schema):
    """How values become steps, and outputs become values."""

    kind: ClassVar[str] = "series"

    id: str | None
    """Column names, as in the file the model learned from; no time column means rows in order."""
    time: str | None
    target: tuple[str, ...]
    covariates: tuple[str, ...]
    future: tuple[str, ...]
    """The covariates known ahead."""
    horizon: int
    season: int
    lags: tuple[int, ...]
    """Further seasons: twice the season, and the others that are usual at this frequency."""
    months: int
    """The grid: see `Frequency`."""
    step: int
    origin: int
    calendar: bool
    periods: tuple[float, ...]
    """The circles of the calendar, in nanoseconds."""
    names: tuple[str, ...]
    """Each series learned from, with its median, its robust standard deviation, that of the errors
    of the base forecast, and the mean absolute error of the seasonal naive forecast."""
    center: tuple[float, ...]
    scale: tuple[float, ...]
    spread: tuple[float, ...]
    naive: tuple[float, ...]
    covariate_center: tuple[float, ...]
    covariate_scale: tuple[float, ...]
    static: tuple[str, ...]
    static_levels: tuple[tuple[str, ...], ...]
    """The categories of each static column; none: it holds numbers."""
    static_center: tuple[float, ...]
    static_scale: tuple[float, ...]
    gap: float = 0.0
    """The usual time between steps that lie on no grid: see `irregular`; 0 on a grid."""
    shared: bool = False
    """Whether all series are measured by one center, scale and spread: see `irregular.SHORT`."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """None."""
        return ()

    @property
    def reals(self) -> int:
        """Value, missing, change, base, that of each lag, covariates, calendar, known ahead,
        static columns, times off a grid.
        """
        forecasts = 1 + len(self.lags) + len(self.future)
        static = sum(max(1, len(levels)) for levels in self.static_levels)
        channels = len(self.covariates) + 2 * len(self.periods) + static
        times = 1 + self.horizon if self.gap else 0
        return 3 + forecasts * self.horizon + channels + times

    @property
    def context(self) -> int:
        """Steps read before a held-out part, so that every input that looks back is there."""
        return max(CONTEXT, 2 * self.season, *self.lags)

    @property
    def columns(self) -> Columns:
        """Which column is what."""
        return Columns(self.id, self.time, self.target, self.covariates, self.future, self.static)

    @property
    def frequency(self) -> Frequency:
        """The grid of time."""
        return Frequency(
            months=self.months, step=self.step, origin=self.origin, calendar=self.calendar
        )

    def encode(self, table: Table) -> SeriesPacked:
        """Every series of a table up to its last value, nothing asked.

        A series not learned from is measured by the history given here. Rows after the last value
        tell the covariates known ahead.
        """
        grid = self.grid(table)
        last = grid.last_value + 1
        panel = self.panel(grid, grid.end)
        return SeriesPacked(panel, grid.names, first=grid.begin, last=last, low=last, high=last)

    def grid(self, table: Table) -> Grid:
        """The rows of a table with the columns that were learned from, on the grid of time."""
        grid = Grid(read_rows(table, self.columns), self.frequency)
        if not len(grid.names):
            raise DataError(f'{table.name}: column "{", ".join(self.target)}" holds no values')
        return grid

    def panel(self, grid: Grid, cut: Int[np.ndarray, " S"]) -> Panel:
        """What the model reads; series not learned from are measured before the cut."""
        return _panel(grid, self, self._known(grid, measure(grid, cut, self.season, self.horizon)))

    def _known(self, grid: Grid, here: Stats, *, naive: bool = True) -> Stats:
        """In place: what is known of the series learned from; `naive` only divides errors."""
        learned = {series: i for i, series in enumerate(self.names)}
        places = [(i, learned[n]) for i, n in enumerate(grid.names) if n in learned]
        for field, values in here._asdict().items():
            for i, place in places:
                if naive or field != "naive":
                    values[i] = getattr(self, field)[place]
            if self.shared and field != "naive":
                values[:] = getattr(self, field)[0]
        return here

    def known(self, grid: Grid, here: Stats) -> "SeriesSchema":
        """The schema for further training: new series are added, `naive` is measured anew."""
        here = self._known(grid, here, naive=False)
        gone = [i for i, name in enumerate(self.names) if name not in set(grid.names)]
        fields = {
            field: (*values.tolist(), *(getattr(self, field)[i] for i in gone))
            for field, values in here._asdict().items()
        }
        return replace(self, names=(*grid.names, *(self.names[i] for i in gone)), **fields)

    def decode(
        self,
        outputs: Float[Tensor, "... H Q"],
        base: Float[Tensor, "... H"],
        scale: Float[Tensor, "..."],
    ) -> Float[Tensor, "... H Q"]:
        """Outputs in real units, with `SeriesPacked.origin_at` of the same positions."""
        return base[..., None] + outputs * scale[..., None, None]

    def times_ahead(self, stamp: int) -> list[str]:
        """The times of the horizon after a step of this time, for people."""
        if not (self.calendar and (self.step or self.months)):
            return [f"+{h}" for h in range(1, self.horizon + 1)]
        at = self.frequency.index(np.array([stamp])) + np.arange(1, self.horizon + 1)
        stamps = self.frequency.stamp(at).astype("datetime64[ns]")
        fine = "D" if self.months or self.frequency.per_day <= 1 else "s"
        return [str(s).replace("T", " ") for s in stamps.astype(f"datetime64[{fine}]")]


def series_dataset(
    table: Table,
    options: DataOptions,
    columns: Columns,
    *,
    name: str,
    findings: Sequence[str] = (),
    like: SeriesSchema | None = None,
) -> Dataset:
    """Find the grid and the season, measure on the training part, hold the tail out.

    `like` is the schema of a model that learns on: its columns, grid, season and scales are kept,
    and series that it does not know are measured and added.
    """
    read = read_rows(table, columns)
    frequency = find_frequency(read.series, read.stamps, calendar=read.calendar)
    if like is not None:
        frequency = _same_grid(like, frequency, name)
    grid = Grid(read, frequency)
    if not len(grid.names):
        raise DataError(f'{name}: column "{", ".join(columns.target)}" holds no values')
    horizon = frequency.horizon if options.horizon is None else options.horizon
    if horizon < 1 or (options.season or 0) < 0:
        raise DataError(
            f"{name}: want a horizon of 1 step or more and a season of 0 or more, "
            f"got {horizon} and {options.season}"
        )
    stop = grid.last_value + 1
    longest = int((stop - grid.begin).max())
    if longest < 4 * horizon:
        raise DataError(
            f"{name}: the longest series has {longest} {frequency}; a horizon of {horizon} needs "
            f"at least {4 * horizon}. Give more data"
            + (f", or --horizon {longest // 4}" if longest >= 4 else "")
        )
    test = held_out(options.test, longest, horizon, frequency)
    valid = test if options.valid is None else held_out(options.valid, longest, horizon, frequency)
    if min(test, valid) < 1 or longest - test - valid < 2 * horizon:
        raise DataError(
            f"{name}: holding out {valid} + {test} of {longest} {frequency} leaves too little to "
            f"learn a horizon of {horizon} from; hold out less with --valid and --test"
        )
    common = frequency.calendar and bool(frequency.step or frequency.months)
    cuts = _cuts(grid, stop, (valid, test), common=common)
    if like is not None:
        schema = like.known(grid, measure(grid, cuts[0], like.season, horizon, before_test=cuts[1]))
    else:
        schema = _learn(read, grid, cuts, columns, frequency, horizon, options.season, name)
    panel = schema.panel(grid, cuts[0])
    parts = cut_parts(panel, grid.names, (*cuts, stop), schema.context)
    gaps = int(np.isnan(grid.y[inside(grid, stop)]).sum())
    said = (
        f"{name}   series  {len(grid.names):,} x {longest:,} {frequency}   "
        + "   ".join(
            f'{role} "{column}"'
            for role, column in (
                ("time", schema.time),
                ("series", schema.id),
                ("target", ", ".join(schema.target)),
                ("with", ", ".join(schema.covariates)),
                ("known ahead", ", ".join(schema.future)),
                ("static", ", ".join(schema.static)),
            )
            if column
        )
        + (f"   gaps kept as missing: {gaps:,}" if gaps else ""),
        f"task        forecast {horizon} {frequency} ahead, measured from "
        + (f"the season of {schema.season} before" if schema.season else "the last value seen"),
        f"held out    the last {test:,} {frequency} for the test, "
        f"{valid:,} before them for choosing",
    )
    return Dataset(
        name=name,
        schema=schema,
        parts=parts,
        said=said,
        findings=(*findings, *read.findings, *_notice(grid, cuts[0], frequency, schema)),
    )


def _same_grid(like: SeriesSchema, found: Frequency, name: str) -> Frequency:
    """The grid that a model learned on; other data has to lie on one of the same steps."""
    if (found.months, found.step, found.calendar) != (like.months, like.step, like.calendar):
        irregular = not (found.months or found.step)
        has = "no regular steps" if irregular else f"steps of {found}"
        raise DataError(
            f"{name}: has {has}, the model learned steps of {like.frequency}; "
            "bring the data to that grid, or fit a new model"
        )
    return like.frequency


def _learn(
    read: Rows,
    grid: Grid,
    cuts: tuple[Int[np.ndarray, " S"], Int[np.ndarray, " S"]],
    columns: Columns,
    frequency: Frequency,
    horizon: int,
    season: int | None,
    name: str,
) -> SeriesSchema:
    """What is measured on the training part; `naive` up to the test part."""
    if season is None:
        season = choose_season(grid, cuts[0], frequency.seasons, horizon)
    others = {2 * season, *frequency.seasons} - {0, season}
    lags = tuple(sorted(lag for lag in others if 2 * lag <= int((cuts[0] - grid.begin).max())))
    stats = measure(grid, cuts[0], season, horizon, before_test=cuts[1])
    timed = columns.time is not None and not (frequency.step or frequency.months)
    gap = usual_gap(grid.series, grid.stamps, cuts[0]) if timed else 0.0
    shared = gap > 0 and float(np.median(cuts[0] - grid.begin)) < SHORT
    if shared:
        stats = measure_together(grid, cuts[0], stats)
    trained = grid.covariates[np.arange(len(grid.y)) < cuts[0][grid.series]]
    center, scale = robust_columns(trained)
    span = int(read.stamps.max() - read.stamps.min()) if frequency.calendar else 0
    levels, static_center, static_scale = learn_static(grid.static, name)
    return SeriesSchema(
        **columns._asdict(),
        horizon=horizon,
        season=season,
        lags=lags,
        months=frequency.months,
        step=frequency.step,
        origin=frequency.origin,
        calendar=frequency.calendar,
        periods=(replace(frequency, step=round(gap)) if gap else frequency).periods(span),
        names=tuple(grid.names),
        covariate_center=tuple(center.tolist()),
        covariate_scale=tuple(scale.tolist()),
        center=tuple(stats.center.tolist()),
        scale=tuple(stats.scale.tolist()),
        spread=tuple(stats.spread.tolist()),
        naive=tuple(stats.naive.tolist()),
        static_levels=levels,
        static_center=static_center,
        static_scale=static_scale,
        gap=gap,
        shared=shared,
    )


def _cuts(
    grid: Grid, stop: Int[np.ndarray, " S"], held: tuple[int, int], *, common: bool
) -> tuple[Int[np.ndarray, " S"], Int[np.ndarray, " S"]]:
    """Where each series' valid and test parts begin, as places in the panel."""
    valid, test = held
    end = stop
    if common:  # the same date for all, so that no series tells of another's future
        over = int((grid.first + stop - grid.begin).max())
        end = grid.begin + over - grid.first
    begins = [np.clip(end - held, grid.begin, stop) for held in (valid + test, test)]
    return begins[0], begins[1]


def _panel(grid: Grid, schema: SeriesSchema, stats: Stats) -> Panel:
    center, scale = np.array(schema.covariate_center), np.array(schema.covariate_scale)
    scaled = np.nan_to_num((grid.covariates - center) / scale).astype(np.float32)
    scaled = scaled.clip(-LARGEST, LARGEST)
    circles = on_circles(grid.stamps, schema.periods).astype(np.float32)
    seen = last_seen(~np.isnan(grid.y))
    known = [schema.covariates.index(column) for column in schema.future]
    static = encode_static(
        grid.static,
        schema.static_levels,
        schema.static_center,
        schema.static_scale,
        len(grid.names),
    )
    return Panel(
        y=torch.from_numpy(grid.y),
        series=torch.from_numpy(grid.series),
        begin=torch.from_numpy(grid.begin),
        end=torch.from_numpy(grid.end),
        stamps=torch.from_numpy(grid.stamps),
        channels=torch.from_numpy(np.concatenate([scaled, circles], 1)),
        ahead=torch.from_numpy(scaled[:, known]),
        center=torch.from_numpy(stats.center),
        scale=torch.from_numpy(stats.scale),
        spread=torch.from_numpy(stats.spread),
        horizon=schema.horizon,
        season=schema.season,
        lags=schema.lags,
        last_seen=torch.from_numpy(seen),
        static=None if static is None else torch.from_numpy(static),
        gap=schema.gap,
    )


def _duration(gap: float, *, calendar: bool) -> str:
    """For people; `tables.Times` counts nanoseconds, or millionths of plain units."""
    if not calendar:
        return f"{gap / 1e6:.3g} apart"
    seconds = gap / 1e9
    for size, word in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {word} apart"
    return f"{seconds:.3g} seconds apart"


def _notice(
    grid: Grid, cut: Int[np.ndarray, " S"], frequency: Frequency, schema: SeriesSchema
) -> list[str]:
    found = []
    if schema.gap:
        found.append(
            "the times are irregular: the model reads the time since the step before, and to the "
            f"steps it is asked for (usually {_duration(schema.gap, calendar=schema.calendar)})"
        )
    if schema.time is None:
        found.append("no time column: rows are taken in order")
    constant = [
        n
        for n, a, b in zip(grid.names, grid.begin, cut, strict=True)
        if b - a > 1 and np.nanmin(grid.y[a:b]) == np.nanmax(grid.y[a:b])
    ]
    if constant:
        found.append(
            f"{len(constant):,} constant series in the training part, such as {constant[0]!r}"
        )
    late = [n for n, a, b in zip(grid.names, grid.begin, cut, strict=True) if b <= a]
    if late:
        found.append(f"{len(late):,} series begin after the training part, such as {late[0]!r}")
    return found
