"""Events of cases: what happens next in a case, when, and how much of it is still to come.

    inputs    the activity, further categorical attributes, and six numbers: log(1 + gap before),
              hour and weekday (sin, cos), and whether the case begins here
    asked     the next activity of the same case ("token"), the time to it ("gap") and, where cases
              end, the time to the last event of the case ("remaining"); times in units

Where the cases of a log are complete, what follows the last event is a symbol of its own, the end
of the case. It is asked for, never read. A case that may still go on when the log ends is not asked
for its end, nor for the time to it.

Whole cases are held out. Id 0 stands for what the training part has not shown; a held-out event
that is new in this sense is asked for as 0, and so counts against the model. The unit is the median
positive gap in the training part; gaps are at least half the smallest positive one, so that their
logarithm is finite.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from stepscan.data.base import DataError, DataOptions, Dataset, Packed, Schema
from stepscan.data.cases import SPLITS, Rows, read_rows, split_cases, unfinished
from stepscan.data.clock import DAY, WEEK, on_circles, span
from stepscan.data.tables import Table, codes, labels, ticks, times
from stepscan.names import lookup

CHANNELS = 6
PERIODS = (DAY, WEEK)
END = "(end of case)"
NEW = "(new)"
LONGEST = 128  # events of a suffix at the most
AHEAD = 10  # events of a suffix where cases do not end


@dataclass(frozen=True, kw_only=True)
class EventSchema(Schema):
    """How events become tokens and numbers, and predictions become events."""

    kind: ClassVar[str] = "events"

    case: str
    """Column names, as in the file the model learned from."""
    activity: str
    time: str
    attributes: tuple[str, ...]
    activities: tuple[str, ...]
    """Activity i + 1 of the vocabulary; 0 is one never seen."""
    values: tuple[tuple[str, ...], ...]
    """The same for each attribute."""
    calendar: bool
    """Times are dates, not plain numbers."""
    unit: float
    """Gaps are measured in this many seconds (or plain units of time)."""
    smallest: float
    """Shorter gaps, in units, count as this long."""
    ends: bool
    """Cases end: the symbol after the last activity says so."""
    longest: int
    """Events of the longest case in training, at most LONGEST."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """The activity (and the end of a case), then the attributes."""
        return (len(self.activities) + 1 + self.ends, *(len(v) + 1 for v in self.values))

    @property
    def reals(self) -> int:
        """Gap, hour, weekday, first."""
        return CHANNELS

    @property
    def end(self) -> int:
        """The symbol for the end of a case; -1 where cases do not end."""
        return len(self.activities) + 1 if self.ends else -1

    @property
    def suffix(self) -> int:
        """Events that a predicted suffix has at the most: as many as the longest case; where cases
        do not end, AHEAD.
        """
        return self.longest if self.ends else AHEAD

    @property
    def names(self) -> tuple[str, ...]:
        """Of every symbol, from 0."""
        return (NEW, *self.activities, *([END] if self.ends else []))

    def encode(self, table: Table) -> tuple[Packed, list[str]]:
        """Every case of a table, whole; and the names of the cases in this order."""
        rows, _ = read_rows(table, self.case, self.activity, self.time, self.attributes)
        if not len(rows.stamps):
            raise DataError(f'{table.name}: no row with a "{self.case}" and a "{self.activity}"')
        return pack(self, rows), rows.names[rows.starts].tolist()

    def never_seen(self, table: Table) -> list[str]:
        """What `encode` reads as new, one sentence for each column that holds any."""
        found = []
        columns = {self.activity: "activity"} | dict.fromkeys(self.attributes, "attribute")
        vocabularies = (self.activities, *self.values)
        for (column, role), known in zip(columns.items(), vocabularies, strict=True):
            cells = labels(table, column, role).dropna()
            new = cells[~cells.isin(known)]
            if len(new):
                words = ", ".join(map(repr, sorted(new.unique())[:3]))
                more = ", ..." if new.nunique() > 3 else ""
                found.append(
                    f'{table.name}: column "{column}": {len(new):,} rows hold what training never '
                    f"showed ({words}{more}); they are read as {NEW}"
                )
        return found

    def prompt(
        self,
        activities: Sequence[str],
        stamps: Sequence[Any] | None = None,
        attributes: Mapping[str, Sequence[str]] | None = None,
    ) -> Packed:
        """One case so far; without times, every gap is the median gap and the hour is unknown."""
        import pandas as pd  # noqa: PLC0415

        columns = {self.activity: list(activities), self.case: ["case"] * len(activities)}
        for name in self.attributes:
            columns[name] = list((attributes or {}).get(name, [""] * len(activities)))
        if stamps is not None:
            return self.encode(Table(pd.DataFrame(columns | {self.time: list(stamps)}), "history"))[
                0
            ]
        steps = np.arange(len(activities)) * self.unit * ticks(self.calendar)
        table = Table(pd.DataFrame(columns), "history")
        beside = (labels(table, name, "attribute").fillna("") for name in self.attributes)
        ids = [labels(table, self.activity, "activity"), *beside]
        first = np.zeros(len(activities), np.int64)
        rows = Rows(first, first, steps.round().astype(np.int64), ids)
        return pack(self, rows, timed=False)

    def after(
        self, reals: Float[torch.Tensor, "B 6"], gap: Float[torch.Tensor, " B"]
    ) -> Float[torch.Tensor, "B 6"]:
        """The six numbers of an event that comes `gap` units after one with these: the hands of
        both clocks turn on; a clock that was not told (zeros) stays so.
        """
        turned = torch.zeros_like(reals)
        turned[:, 0] = torch.log1p(gap.clamp(min=0))
        nanoseconds = gap.double() * self.unit * ticks(calendar=True)
        for i, period in enumerate(PERIODS):
            angle = 2 * torch.pi * (nanoseconds % period) / period
            sin, cos = reals[:, 1 + 2 * i].double(), reals[:, 2 + 2 * i].double()
            turned[:, 1 + 2 * i] = sin * angle.cos() + cos * angle.sin()
            turned[:, 2 + 2 * i] = cos * angle.cos() - sin * angle.sin()
        return turned


def event_dataset(
    table: Table, options: DataOptions, roles: Mapping[str, str], *, name: str
) -> Dataset:
    """Split by case, measure on the training part, encode."""
    case, activity, time = roles["case"], roles["activity"], roles["time"]
    rows, findings = read_rows(table, case, activity, time, options.attributes)
    clock = times(table, time)
    part = split_cases(rows, options, name)
    trained = rows.take(part == 0)
    vocabularies = [
        tuple(
            c.value_counts(sort=False)
            .sort_index()
            .sort_values(ascending=False, kind="stable")
            .index
        )
        for c in trained.ids
    ]
    complete, how_ends = ends_known(rows, options)
    seen = Seen(
        vocabularies=vocabularies,
        unit=_measure(trained, clock.calendar),
        longest=int(np.bincount(trained.case).max()),
    )
    schema = schema_of(
        roles, options, seen, calendar=clock.calendar, ends=bool(complete.any()), name=name
    )
    parts = {
        key: pack(schema, rows.take(part == i), complete=complete[part == i])
        for i, key in enumerate(("train", "valid", "test"))
    }
    check_asked(parts, case, name)
    new = int((~rows.ids[0][part > 0].isin(schema.activities)).sum())
    if new:
        findings.append(f"{new:,} held-out events are of an activity the training part never shows")
    cases = [len(np.unique(rows.case[part == i])) for i in range(3)]
    return Dataset(
        name=name,
        schema=schema,
        parts=parts,
        said=describe(schema, name, len(rows.case), cases, options, how_ends),
        findings=(*findings, *clock.findings),
    )


def check_asked(parts: Mapping[str, Packed], case: str, name: str) -> None:
    """Raise `DataError` if a part has no event that follows another."""
    for key, packed in parts.items():
        if bool(packed.targets_as_stored["gap"].isnan().all()):
            raise DataError(
                f"{name}: no case of the {key} part has a second event, so nothing comes next; is "
                f'"{case}" the column that tells cases apart? Name it with --case'
            )


class Seen(NamedTuple):
    """What the training part shows."""

    vocabularies: Sequence[tuple[str, ...]]
    """Of the activity and of each attribute, the most frequent first."""
    unit: tuple[float, float]
    """The unit of time, and the smallest gap in it."""
    longest: int
    """Events of the longest case."""


def schema_of(
    roles: Mapping[str, str],
    options: DataOptions,
    seen: Seen,
    *,
    calendar: bool,
    ends: bool,
    name: str,
) -> EventSchema:
    """The schema that the training part leads to; `name` is that of the data, for errors."""
    activities, *values = seen.vocabularies
    if len(activities) < 2:
        raise DataError(
            f'{name}: column "{roles["activity"]}": want at least two different activities, '
            f"got {len(activities)}"
        )
    return EventSchema(
        case=roles["case"],
        activity=roles["activity"],
        time=roles["time"],
        attributes=tuple(options.attributes),
        activities=activities,
        values=tuple(values),
        calendar=calendar,
        unit=seen.unit[0],
        smallest=seen.unit[1],
        ends=ends,
        longest=min(LONGEST, seen.longest),
    )


def describe(
    schema: EventSchema,
    name: str,
    events: int,
    cases: Sequence[int],
    options: DataOptions,
    how_ends: str,
) -> tuple[str, ...]:
    """What is said of a log: `cases` counts those for training, for choosing and for the test."""
    how = SPLITS[options.split]
    train, valid, test = cases
    return (
        f"{name}   events  {events:,} in {sum(cases):,} cases   "
        f'case "{schema.case}"   activity "{schema.activity}" ({len(schema.activities):,})   '
        f'time "{schema.time}"' + "".join(f'   attribute "{a}"' for a in schema.attributes),
        f"task        the next activity of a case, and the time to it (unit: {_span(schema)})",
        f"ends        {how_ends}",
        f"held out    {how}: train {train:,}  valid {valid:,}  test {test:,} cases",
    )


def time_channels(
    stamps: Int[np.ndarray, " N"], starts: np.ndarray, schema: EventSchema, *, timed: bool
) -> Float[np.ndarray, "N 6"]:
    """The six numbers beside the tokens."""
    channels = np.zeros((len(stamps), CHANNELS), np.float32)
    channels[:, 0] = np.log1p(_gaps(stamps, schema) * ~starts)
    if timed and schema.calendar:
        channels[:, 1:5] = on_circles(stamps, PERIODS)
    channels[:, 5] = starts
    return channels


def _gaps(stamps: Int[np.ndarray, " N"], schema: EventSchema) -> Float[np.ndarray, " N"]:
    """Time since the row before, in units; meaningless at the first row of a case."""
    scale = schema.unit * ticks(schema.calendar)
    return np.maximum(np.diff(stamps, prepend=stamps[:1]) / scale, 0)


def pack(
    schema: EventSchema,
    rows: Rows,
    *,
    timed: bool = True,
    complete: Bool[np.ndarray, " N"] | None = None,
) -> Packed:
    """`complete` says of each row whether the end of its case is known; None: of no row."""
    starts, count = rows.starts, len(rows.case)
    vocabularies = (schema.activities, *schema.values)
    ids = [codes(c, v) for c, v in zip(rows.ids, vocabularies, strict=True)]
    tokens = torch.from_numpy(np.stack(ids, 1).astype(np.int32))
    last = np.append(starts[1:], True)[:count]
    after = np.maximum(np.append(_gaps(rows.stamps, schema)[1:], 0), schema.smallest)[:count]
    targets = {
        "token": tokens[:, 0].roll(-1).masked_fill(torch.from_numpy(last), -1),
        "gap": torch.from_numpy(np.where(last, np.nan, after).astype(np.float32)),
    }
    if schema.ends:
        known = np.zeros(count, bool) if complete is None else complete
        targets["token"][torch.from_numpy(last & known)] = schema.end
        until = (rows.stamps[rows.lasts] - rows.stamps) / (schema.unit * ticks(schema.calendar))
        until = np.where(known, np.maximum(until, schema.smallest), np.nan)
        targets["remaining"] = torch.from_numpy(until.astype(np.float32))
    return Packed(
        torch.from_numpy(starts),
        tokens=tokens,
        reals=torch.from_numpy(time_channels(rows.stamps, starts, schema, timed=timed)),
        targets=targets,
    )


def ends_known(
    rows: Rows, options: DataOptions, open_: Bool[np.ndarray, " N"] | None = None
) -> tuple[Bool[np.ndarray, " N"], str]:
    """Of each row, whether the end of its case is known; and how that was found out.

    `open_` is `unfinished(rows)`, where it is known already.
    """
    lookup(dict.fromkeys(("auto", "yes", "no")), options.ends, kind="answer to ends")
    if options.ends == "yes":
        return np.ones(len(rows.case), bool), "every case is complete (as told)"
    if options.ends == "no":
        return np.zeros(len(rows.case), bool), "not asked for (as told)"
    open_ = unfinished(rows) if open_ is None else open_
    cases, still = int(rows.starts.sum()), int(open_[rows.starts].sum())
    if 2 * still > cases:
        return np.zeros(len(rows.case), bool), (
            f"not asked for: {still:,} of {cases:,} cases may go on when the log ends "
            "(if they are complete: --ends yes)"
        )
    spared = f"; {still:,} that may go on when the log ends are not asked for it" if still else ""
    return ~open_, f"cases are complete{spared} (if they are not: --ends no)"


def measured(median: float, least: float, *, calendar: bool) -> tuple[float, float]:
    """The unit of time, and the smallest gap in it; from the positive gaps, zeros without any."""
    return (median / ticks(calendar), least / median / 2) if median else (1.0, 1.0)


def _measure(rows: Rows, calendar: bool) -> tuple[float, float]:
    gaps = np.diff(rows.stamps)[np.diff(rows.case) == 0]
    gaps = gaps[gaps > 0]
    median, least = (float(np.median(gaps)), float(gaps.min())) if len(gaps) else (0.0, 0.0)
    return measured(median, least, calendar=calendar)


def _span(schema: EventSchema) -> str:
    if not schema.calendar:
        return f"{schema.unit:g}"
    word, seconds = span(schema.unit)
    return f"{schema.unit / seconds:.3g} {word}"
