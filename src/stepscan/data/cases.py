"""Rows of an event log: put in order of case and time, looked over for trouble, split by case."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from stepscan.data.base import DataError, DataOptions
from stepscan.data.tables import Table, labels, times
from stepscan.names import lookup

FEWEST_CASES = 10
HELD_OUT = (0.1, 0.2)  # valid, test
LONG_GAP = 0.9  # quantile of the gaps within cases: who is silent for longer has ended
STAGES = "lifecycle:transition"
SPLITS = {
    "time": "the cases that begin last",
    "name": "the last cases by name",
    "random": "cases at random",
}
"""Which cases are held out."""


@dataclass(frozen=True)
class Rows:
    """Rows in order of case, then time."""

    case: Int[np.ndarray, " N"]
    names: np.ndarray
    stamps: Int[np.ndarray, " N"]
    ids: list[Any]  # pandas series: the activity, then the attributes

    def take(self, chosen: np.ndarray) -> "Rows":
        """Some of the rows; whole cases."""
        ids = [column[chosen] for column in self.ids]
        return Rows(self.case[chosen], self.names[chosen], self.stamps[chosen], ids)

    @property
    def starts(self) -> Bool[np.ndarray, " N"]:
        """True at the first row of each case."""
        return np.diff(self.case, prepend=-1) != 0

    @property
    def lasts(self) -> Int[np.ndarray, " N"]:
        """For each row, the place of the last row of its case."""
        firsts = np.flatnonzero(self.starts)
        lengths = np.diff(firsts, append=len(self.case))
        return np.repeat(firsts + lengths - 1, lengths)


def read_rows(
    table: Table, case: str, activity: str, time: str, attributes: Sequence[str]
) -> tuple[Rows, list[str]]:
    """Rows sorted by case and time, and what was noticed; ties in time keep the order of the file.

    Nothing but rows without a case or an activity is left out.
    """
    findings = []
    cases, activities = labels(table, case, "case"), labels(table, activity, "activity")
    absent = (cases.isna() | activities.isna()).to_numpy()
    stamps = times(table, time).values
    kept = np.flatnonzero(~absent)
    if absent.any():
        findings.append(f'{absent.sum():,} rows without "{case}" or "{activity}" left out')
        emptied = cases.dropna().nunique() - cases.iloc[kept].nunique()
        if emptied:
            findings.append(f"{emptied:,} cases have no event left, and are left out")
    case_codes, _ = cases.iloc[kept].factorize(sort=True)
    as_given = np.argsort(case_codes, kind="stable")
    back = (np.diff(stamps[kept[as_given]]) < 0) & (np.diff(case_codes[as_given]) == 0)
    if back.any():
        findings.append(
            f"{back.sum():,} events are earlier than the row before them in their case; "
            "cases are put in order of time"
        )
    order = np.lexsort((stamps[kept], case_codes))  # stable
    kept, case_codes = kept[order], case_codes[order]
    columns = [activities, *(labels(table, a, "attribute").fillna("") for a in attributes)]
    ids = [column.iloc[kept].reset_index(drop=True) for column in columns]
    rows = Rows(case_codes, cases.iloc[kept].to_numpy(object), stamps[kept], ids)
    return rows, [*findings, *_repeats(rows), *_stages(table)]


def _repeats(rows: Rows) -> list[str]:
    """Events at one instant, and events that are there twice."""
    import pandas as pd  # noqa: PLC0415

    findings = []
    ties = (np.diff(rows.case) == 0) & (np.diff(rows.stamps) == 0)
    if ties.any():
        findings.append(
            f"{ties.sum():,} events have the time of the one before; "
            "they keep the order of the file"
        )
        at_once = np.append(ties, False) | np.insert(ties, 0, False)
        same = pd.DataFrame({"case": rows.case, "time": rows.stamps}).assign(
            **{str(i): column.to_numpy() for i, column in enumerate(rows.ids)}
        )
        twice = int(same[at_once].duplicated().sum())
        if twice:
            findings.append(
                f"{twice:,} events repeat another in case, activity and time; they are kept: "
                "drop them from the file if they are there by mistake"
            )
    return findings


def _stages(table: Table) -> list[str]:
    """A log that writes down when work starts and when it is done has each activity twice."""
    if STAGES not in table.columns:
        return []
    stages = sorted(labels(table, STAGES, "attribute").dropna().str.lower().unique())
    if len(stages) < 2:
        return []
    return [
        f'"{STAGES}" is {", ".join(stages)}: every row is an event of its own; keep the rows of '
        f"one stage, or pass --attributes {STAGES}"
    ]


def unfinished(rows: Rows) -> Bool[np.ndarray, " N"]:
    """For each row, whether its case may go on after the log ends: its last event is less than a
    long gap (the 90 % quantile of all gaps within cases) before the last event of all.

    Where all cases begin at the same time, times are counted from there, and say nothing of it.
    """
    starts, lasts = rows.starts, rows.lasts
    gaps = np.diff(rows.stamps)[~starts[1:]]
    if not len(gaps) or len(np.unique(rows.stamps[starts])) == 1:
        return np.zeros(len(rows.case), bool)
    return rows.stamps[lasts] > rows.stamps.max() - np.quantile(gaps, LONG_GAP)


def split_cases(rows: Rows, options: DataOptions, name: str) -> Int[np.ndarray, " N"]:
    """0, 1 or 2 for each row: train, valid, test; whole cases."""
    lookup(SPLITS, options.split, kind="split")
    valid = HELD_OUT[0] if options.valid is None else options.valid
    test = HELD_OUT[1] if options.test is None else options.test
    if not (0 < valid < 1 and 0 < test < 1 and valid + test < 1):
        raise DataError(f"{name}: want fractions valid + test below 1, got {valid} + {test}")
    firsts = np.flatnonzero(rows.starts)
    if len(firsts) < FEWEST_CASES:
        raise DataError(
            f"{name}: want at least {FEWEST_CASES} cases to hold some out, got {len(firsts)}; "
            "is the case column the right one? Name it with --case"
        )
    count = len(firsts)
    by = {
        "time": lambda: rows.stamps[firsts],
        "name": lambda: np.arange(count),
        "random": lambda: np.random.default_rng(0).permutation(count),
    }[options.split]()
    rank = np.empty(count, np.int64)
    rank[np.argsort(by, kind="stable")] = np.arange(count)
    n_test = max(1, round(count * test))
    n_valid = max(1, round(count * valid))
    part = np.where(rank >= count - n_test, 2, rank >= count - n_test - n_valid)
    return part[np.cumsum(rows.starts) - 1].astype(np.int64)
