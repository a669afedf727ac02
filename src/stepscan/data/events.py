"""Events of cases: what happens next in a case, and when.

    inputs    the activity, further categorical attributes, and six numbers: log(1 + gap before),
              hour and weekday (sin, cos), and whether the case begins here
    asked     the next activity of the same case ("token") and the time to it ("gap"), in units

Whole cases are held out. Id 0 stands for what the training part has not shown; a held-out event
that is new in this sense is asked for as 0, and so counts against the model. The unit is the median
positive gap in the training part; gaps are at least half the smallest positive one, so that their
logarithm is finite.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int

from stepscan.data.base import DataError, DataOptions, Dataset, Packed, Schema
from stepscan.data.clock import DAY, WEEK, on_circles
from stepscan.data.tables import Table, codes, labels, ticks, times
from stepscan.names import lookup

CHANNELS = 6
FEWEST_CASES = 10
HELD_OUT = (0.1, 0.2)  # valid, test


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

    @property
    def tokens(self) -> tuple[int, ...]:
        """The activity, then the attributes."""
        return (len(self.activities) + 1, *(len(v) + 1 for v in self.values))

    @property
    def reals(self) -> int:
        """Gap, hour, weekday, first."""
        return CHANNELS

    def encode(self, table: Table) -> tuple[Packed, list[str]]:
        """Every case of a table, whole; and the names of the cases in this order."""
        rows, _ = _read(table, self.case, self.activity, self.time, self.attributes)
        names = rows.names[np.unique(rows.case, return_index=True)[1]]
        return _pack(self, rows), names.tolist()

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
        rows = _Rows(first, first, steps.round().astype(np.int64), ids)
        return _pack(self, rows, timed=False)


@dataclass(frozen=True)
class _Rows:
    """Rows in order of case, then time."""

    case: Int[np.ndarray, " N"]
    names: np.ndarray
    stamps: Int[np.ndarray, " N"]
    ids: list[Any]  # pandas series: the activity, then the attributes

    def take(self, chosen: np.ndarray) -> "_Rows":
        ids = [column[chosen] for column in self.ids]
        return _Rows(self.case[chosen], self.names[chosen], self.stamps[chosen], ids)


def event_dataset(
    table: Table, options: DataOptions, roles: Mapping[str, str], *, name: str
) -> Dataset:
    """Split by case, measure on the training part, encode."""
    case, activity, time = roles["case"], roles["activity"], roles["time"]
    rows, findings = _read(table, case, activity, time, options.attributes)
    clock = times(table, time)
    part = _split(rows, options, name)
    seen = rows.take(part == 0)
    vocabularies = [
        tuple(
            c.value_counts(sort=False)
            .sort_index()
            .sort_values(ascending=False, kind="stable")
            .index
        )
        for c in seen.ids
    ]
    if len(vocabularies[0]) < 2:
        raise DataError(
            f'{name}: column "{activity}": want at least two different activities, '
            f"got {len(vocabularies[0])}"
        )
    unit, smallest = _measure(seen, clock.calendar)
    schema = EventSchema(
        case=case,
        activity=activity,
        time=time,
        attributes=tuple(options.attributes),
        activities=vocabularies[0],
        values=tuple(vocabularies[1:]),
        calendar=clock.calendar,
        unit=unit,
        smallest=smallest,
    )
    parts = {
        key: _pack(schema, rows.take(part == i)) for i, key in enumerate(("train", "valid", "test"))
    }
    new = int((~rows.ids[0][part > 0].isin(vocabularies[0])).sum())
    if new:
        findings.append(f"{new:,} held-out events are of an activity the training part never shows")
    cases = [len(np.unique(rows.case[part == i])) for i in range(3)]
    how = {"time": "the cases that begin last", "name": "the last cases by name"}[options.split]
    said = (
        f"{name}   events  {len(rows.case):,} in {sum(cases):,} cases   "
        f'case "{case}"   activity "{activity}" ({len(vocabularies[0]):,})   time "{time}"'
        + "".join(f'   attribute "{a}"' for a in options.attributes),
        f"task        the next activity of a case, and the time to it (unit: {_span(schema)})",
        f"held out    {how}: train {cases[0]:,}  valid {cases[1]:,}  test {cases[2]:,} cases",
    )
    return Dataset(
        name=name,
        schema=schema,
        parts=parts,
        said=said,
        findings=(*findings, *clock.findings),
    )


def time_channels(
    stamps: Int[np.ndarray, " N"], starts: np.ndarray, schema: EventSchema, *, timed: bool
) -> Float[np.ndarray, "N 6"]:
    """The six numbers beside the tokens."""
    channels = np.zeros((len(stamps), CHANNELS), np.float32)
    channels[:, 0] = np.log1p(_gaps(stamps, schema) * ~starts)
    if timed and schema.calendar:
        channels[:, 1:5] = on_circles(stamps, (DAY, WEEK))
    channels[:, 5] = starts
    return channels


def _gaps(stamps: Int[np.ndarray, " N"], schema: EventSchema) -> Float[np.ndarray, " N"]:
    """Time since the row before, in units; meaningless at the first row of a case."""
    scale = schema.unit * ticks(schema.calendar)
    return np.maximum(np.diff(stamps, prepend=stamps[:1]) / scale, 0)


def _pack(schema: EventSchema, rows: _Rows, *, timed: bool = True) -> Packed:
    starts = np.diff(rows.case, prepend=-1) != 0
    vocabularies = (schema.activities, *schema.values)
    ids = [codes(c, v) for c, v in zip(rows.ids, vocabularies, strict=True)]
    tokens = torch.from_numpy(np.stack(ids, 1).astype(np.int32))
    last = np.append(starts[1:], True)[: len(starts)]
    after = np.maximum(np.append(_gaps(rows.stamps, schema)[1:], 0), schema.smallest)[: len(last)]
    return Packed(
        torch.from_numpy(starts),
        tokens=tokens,
        reals=torch.from_numpy(time_channels(rows.stamps, starts, schema, timed=timed)),
        targets={
            "token": tokens[:, 0].roll(-1).masked_fill(torch.from_numpy(last), -1),
            "gap": torch.from_numpy(np.where(last, np.nan, after).astype(np.float32)),
        },
    )


def _read(
    table: Table, case: str, activity: str, time: str, attributes: Sequence[str]
) -> tuple[_Rows, list[str]]:
    """Rows sorted by case and time; ties in time keep the order of the file."""
    findings = []
    cases, activities = labels(table, case, "case"), labels(table, activity, "activity")
    absent = (cases.isna() | activities.isna()).to_numpy()
    if absent.any():
        findings.append(f'{absent.sum():,} rows without "{case}" or "{activity}" left out')
    stamps = times(table, time).values
    kept = np.flatnonzero(~absent)
    case_codes, _ = cases.iloc[kept].factorize(sort=True)
    order = np.lexsort((stamps[kept], case_codes))  # stable
    kept, case_codes = kept[order], case_codes[order]
    columns = [activities, *(labels(table, a, "attribute").fillna("") for a in attributes)]
    ids = [column.iloc[kept].reset_index(drop=True) for column in columns]
    rows = _Rows(case_codes, cases.iloc[kept].to_numpy(object), stamps[kept], ids)
    ties = (np.diff(rows.case) == 0) & (np.diff(rows.stamps) == 0)
    if ties.any():
        findings.append(
            f"{ties.sum():,} events have the time of the one before; "
            "they keep the order of the file"
        )
    return rows, findings


def _split(rows: _Rows, options: DataOptions, name: str) -> Int[np.ndarray, " N"]:
    """0, 1 or 2 for each row: train, valid, test; whole cases."""
    lookup({"time": 0, "name": 1}, options.split, kind="split")
    valid = HELD_OUT[0] if options.valid is None else options.valid
    test = HELD_OUT[1] if options.test is None else options.test
    if not (0 < valid < 1 and 0 < test < 1 and valid + test < 1):
        raise DataError(f"{name}: want fractions valid + test below 1, got {valid} + {test}")
    firsts = np.flatnonzero(np.diff(rows.case, prepend=-1))
    if len(firsts) < FEWEST_CASES:
        raise DataError(
            f"{name}: want at least {FEWEST_CASES} cases to hold some out, got {len(firsts)}; "
            "is the case column the right one? Name it with --case"
        )
    by = rows.stamps[firsts] if options.split == "time" else np.arange(len(firsts))
    rank = np.empty(len(firsts), np.int64)
    rank[np.argsort(by, kind="stable")] = np.arange(len(firsts))
    n_test = max(1, round(len(firsts) * test))
    n_valid = max(1, round(len(firsts) * valid))
    part = np.where(rank >= len(firsts) - n_test, 2, rank >= len(firsts) - n_test - n_valid)
    return part[np.cumsum(np.diff(rows.case, prepend=-1) != 0) - 1].astype(np.int64)


def _measure(rows: _Rows, calendar: bool) -> tuple[float, float]:
    """The unit of time, and the smallest gap in it."""
    gaps = np.diff(rows.stamps)[np.diff(rows.case) == 0]
    gaps = gaps[gaps > 0]
    if not len(gaps):
        return 1.0, 1.0
    unit = float(np.median(gaps))
    return unit / ticks(calendar), float(gaps.min()) / unit / 2


def _span(schema: EventSchema) -> str:
    if not schema.calendar:
        return f"{schema.unit:g}"
    for seconds, word in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if schema.unit >= seconds:
            return f"{schema.unit / seconds:.3g} {word}"
    return f"{schema.unit:.3g} seconds"
