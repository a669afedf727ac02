"""Users and items: which item a user takes next.

    inputs    the items of a user in order of time, one sequence a user; with a clock also
              (known, year, month, day, weekday, day of the year, week, hour, each less its mean
              in training, time since the interaction before) of each, all 0 where its time is
              not known
    asked     the next item ("token")

Leave-last-out: the last item of each user is the test, the one before it is for choosing, the rest
trains. Users with fewer than three interactions train only. With `test=0` the last item is for
choosing and nothing is the test; with `valid=0` too everything trains, and what is said of the
model is said of items it was trained on. Id 0 is an item never seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from stepscan.data.base import DataError, DataOptions, Dataset, Packed, Schema
from stepscan.data.clock import components
from stepscan.data.tables import Table, codes, labels, times

if TYPE_CHECKING:
    import pandas as pd

CLOCK = 9
"""Real inputs of a step with a clock."""


@dataclass(frozen=True, kw_only=True)
class InteractionSchema(Schema):
    """How items become tokens, and scores become items."""

    kind: ClassVar[str] = "interactions"

    user: str
    """Column names, as in the file the model learned from."""
    item: str
    time: str
    items: tuple[str, ...]
    """Item i + 1 of the vocabulary; 0 is one never seen."""
    counts: tuple[int, ...]
    """How often each item is in the training part."""
    unit: float = 0.0
    """The mean time between two interactions of a user in training, in the ticks of the clock; 0:
    times are not read."""
    calendar: bool = False
    """Whether times are dates."""
    middle: tuple[float, ...] = ()
    """With a clock: the mean year, month ... of training, which are taken off."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """One column."""
        return (len(self.items) + 1,)

    @property
    def reals(self) -> int:
        """Those of the clock, if there is one."""
        return CLOCK if self.unit else 0

    def clock(
        self, stamps: Int[np.ndarray, " N"], starts: Bool[np.ndarray, " N"]
    ) -> Float[np.ndarray, "N 9"]:
        """The real inputs of interactions at these times; `starts` marks the first of each user."""
        found = np.zeros((len(stamps), CLOCK), np.float32)
        found[:, 0] = 1
        if self.calendar:
            found[:, 1:-1] = components(stamps) - np.array(self.middle, np.float32)
        since = np.diff(stamps, prepend=stamps[:1]) * ~starts
        found[:, -1] = np.maximum(since / self.unit, 0)
        return found

    def encode(self, table: Table) -> tuple[Packed, list[str]]:
        """Every user's history, nothing asked; and the users in this order."""
        (users, _), (items, _) = ids(table, self.user, "user"), ids(table, self.item, "item")
        kept = np.flatnonzero((users.notna() & items.notna()).to_numpy())
        if not len(kept):
            raise DataError(f"{table.name}: no row with a user and an item")
        user, names = users.iloc[kept].factorize(sort=True)
        clock = times(table, self.time)
        order = np.lexsort((clock.values[kept], user))
        starts = np.diff(user[order], prepend=-1) != 0
        said = codes(items.iloc[kept[order]], self.items)
        reals = None
        if self.unit:
            self.check_clock(table.name, calendar=clock.calendar)
            reals = self.clock(clock.values[kept[order]], starts)
        packed = _packed(starts, said, np.zeros(len(said), bool), reals=reals)
        return packed, list(map(str, names))

    def check_clock(self, name: str, *, calendar: bool) -> None:
        """Times as in training, or an error."""
        if calendar != self.calendar:
            wanted = "dates such as 2024-12-31 23:59:59" if self.calendar else "plain numbers"
            raise DataError(f'{name}: want times in "{self.time}" as {wanted}, as in training')

    def prompt(self, items: Sequence[str], stamps: Int[np.ndarray, " N"] | None = None) -> Packed:
        """The history of one user, nothing asked; with a clock at these times, if they are told."""
        vocabulary = {item: i for i, item in enumerate(self.items, 1)}
        said = np.array([vocabulary.get(str(item), 0) for item in items], np.int64)
        starts = np.arange(len(said)) == 0
        reals = np.zeros((len(said), CLOCK), np.float32) if self.unit else None
        if self.unit and stamps is not None:
            reals = self.clock(stamps, starts)
        return _packed(starts, said, np.zeros(len(said), bool), reals=reals)


def ids(table: Table, column: str, role: str) -> tuple["pd.Series", list[str]]:
    """Names of users or items as text, and what was noticed: a column of whole numbers with gaps
    in it comes as 31.0, which is still user 31.
    """
    found = labels(table, column, role)
    told = found.dropna()
    if not len(told) or not told.str.fullmatch(r"-?\d+\.0+").all():
        return found, []
    whole = found.str.replace(r"\.0+$", "", regex=True)
    return whole, [f'{role}s such as "{told.iloc[0]}" are read as "{whole[told.index[0]]}"']


def interaction_dataset(
    table: Table, options: DataOptions, roles: Mapping[str, str], *, name: str
) -> Dataset:
    """Leave the last two of each user out, encode."""
    user_column, item_column, time = roles["user"], roles["item"], roles["time"]
    held = _held(options)
    users, findings = ids(table, user_column, "user")
    items, noticed = ids(table, item_column, "item")
    findings += noticed
    clock = times(table, time)
    absent = (users.isna() | items.isna()).to_numpy()
    if absent.any():
        findings.append(f"{absent.sum():,} rows without a user or an item left out")
    user = users.factorize(sort=True)[0]
    item = items.factorize(sort=True)[0]
    kept = np.flatnonzero(~absent)
    kept = kept[np.lexsort((clock.values[kept], user[kept]))]  # stable: ties keep the file's order
    again = _repeated(user[kept], item[kept], clock.values[kept])
    if again.any():
        findings.append(f"{again.sum():,} repeated rows (user, item and time) left out")
        kept = kept[~again]
    often = np.bincount(item[kept])[item[kept]] >= options.minimum
    if not often.all():
        rare = len(np.unique(item[kept[~often]]))
        findings.append(
            f"{rare:,} items seen fewer than {options.minimum} times left out "
            f"({(~often).sum():,} rows)"
        )
        kept = kept[often]
    ties = (np.diff(user[kept]) == 0) & (np.diff(clock.values[kept]) == 0)
    if ties.any():
        findings.append(
            f"{ties.sum():,} interactions have the time of the one before; "
            "they keep the order of the file"
        )
    counts = items.iloc[kept].value_counts(sort=False).sort_index()
    vocabulary = tuple(counts.sort_values(ascending=False, kind="stable").index)
    row_user = user[kept]
    total = np.bincount(row_user, minlength=1)[row_user]
    if len(vocabulary) < 2 or not (total >= 3).any():
        raise DataError(
            f"{name}: want two items seen at least {options.minimum} times and a user with three "
            f"interactions, got {len(vocabulary)} items; lower --minimum or check --user and --item"
        )
    rows = codes(items.iloc[kept], vocabulary)
    begins = np.diff(row_user, prepend=-1) != 0
    place = np.arange(len(kept)) - np.maximum.accumulate(np.where(begins, np.arange(len(kept)), 0))
    alone = int((begins & (total < 3)).sum())
    if alone:
        findings.append(f"{alone:,} users with fewer than three interactions train only")
    stamps = clock.values[kept]
    often = total >= 3
    trained = place < total - np.where(often, held.valid + held.test, 0)
    learned = np.bincount(rows[trained], minlength=len(vocabulary) + 1)
    reads = _reads_clock(options)
    dated = reads and clock.calendar
    schema = InteractionSchema(
        user=user_column,
        item=item_column,
        time=time,
        items=vocabulary,
        counts=tuple(learned[1:].tolist()),
        unit=_unit(stamps, begins, trained) if reads else 0.0,
        calendar=clock.calendar,
        middle=_middle(stamps[trained]) if dated else (),
    )
    extra = {"uneven": variances(stamps, begins).astype(np.float32), "when": stamps}
    reals = schema.clock(stamps, begins) if schema.unit else None
    parts = _leave_last_out(rows, begins, place, total, held, extra, reals)
    said = (
        f"{name}   interactions  {len(kept):,}   "
        f'user "{user_column}" ({begins.sum():,})   item "{item_column}" ({len(vocabulary):,})   '
        f'time "{time}"',
        "task        the next item of a user, ranked among all items",
        *(
            ("clock       the calendar and the time since the item before are read too",)
            if schema.unit
            else ()
        ),
        f"held out    {_told(held, int((begins & (total >= 3)).sum()))}",
    )
    return Dataset(
        name=name,
        schema=schema,
        parts=parts,
        said=said,
        findings=(*findings, *clock.findings),
    )


class Held(NamedTuple):
    """Which of the last items of a user are held out."""

    valid: bool
    test: bool


def _held(options: DataOptions) -> Held:
    for name in ("valid", "test"):
        if getattr(options, name) not in (None, 0):
            raise DataError(
                f"interactions hold out one item a user: want {name} 0 or left out, got "
                f"{getattr(options, name):g}"
            )
    held = Held(valid=options.valid is None, test=options.test is None)
    if held.test and not held.valid:
        raise DataError("interactions: valid=0 wants test=0 too; leave valid out, or give both")
    return held


def _told(held: Held, users: int) -> str:
    if held.test:
        return f"the last item of {users:,} users for the test, the one before for choosing"
    if held.valid:
        return f"the last item of {users:,} users for choosing, nothing for the test (test=0)"
    return (
        f"nothing (valid=0, test=0): the scores are of the last items of {users:,} users, which "
        "were trained on"
    )


def _leave_last_out(
    ids: Int[np.ndarray, " N"],
    begins: Bool[np.ndarray, " N"],
    place: Int[np.ndarray, " N"],
    total: Int[np.ndarray, " N"],
    held: Held,
    extra: Mapping[str, np.ndarray],
    reals: Float[np.ndarray, "N 9"] | None,
) -> dict[str, Packed]:
    """`place` of `total`: where each row stands in its user's history."""
    after = np.append(ids[1:], 0)
    often = total >= 3
    parts = {}
    for part, out in (
        ("train", np.where(often, held.valid + held.test, 0)),
        ("valid", 1 + held.test),
        ("test", 1),
    ):
        inputs = place < total - out
        if part == "train":
            chosen, asked = np.flatnonzero(inputs), place < total - out - 1
        else:
            chosen, asked = np.flatnonzero(inputs & often), place == total - out - 1
        target = np.where(asked, after, -1)[chosen]
        parts[part] = _packed(
            begins[chosen],
            ids[chosen],
            asked[chosen],
            target,
            extra={name: values[chosen] for name, values in extra.items()},
            reals=None if reals is None else reals[chosen],
        )
    return parts


def variances(
    stamps: Int[np.ndarray, " N"], begins: Bool[np.ndarray, " N"]
) -> Float[np.ndarray, " N"]:
    """Of the times between the interactions of a user up to each of them, in squares of the mean
    time between any two; NaN where there are fewer than two intervals.
    """
    size = len(stamps)
    gap = np.where(begins, 0, np.diff(stamps, prepend=stamps[:1])).astype(np.float64)
    gap /= max(gap.mean(), 1e-9) if size else 1.0
    first = np.maximum.accumulate(np.where(begins, np.arange(size), 0))
    count = np.arange(size) - first
    # From the first interval of each user: even ones then have a variance of exactly 0.
    gap = np.where(begins, 0.0, gap - gap[np.minimum(first + 1, size - 1)]) if size else gap
    sums = [np.cumsum(power) for power in (gap, gap**2)]
    mean, square = ((total - total[first]) / np.maximum(count, 1) for total in sums)
    return np.where(count >= 2, np.maximum(square - mean**2, 0), np.nan)


def _reads_clock(options: DataOptions) -> bool:
    if options.clock not in ("auto", "yes", "no"):
        raise DataError(f"clock: want yes, no or auto, got {options.clock!r}")
    return options.clock == "yes"


def _unit(
    stamps: Int[np.ndarray, " N"], begins: Bool[np.ndarray, " N"], trained: Bool[np.ndarray, " N"]
) -> float:
    """The mean time between two interactions of a user in training; 1 where there is none."""
    since = np.diff(stamps, prepend=stamps[:1])[trained & ~begins]
    return float(since.mean()) if len(since) and since.any() else 1.0


def _middle(stamps: Int[np.ndarray, " N"]) -> tuple[float, ...]:
    """The mean of each part of the calendar, rounded."""
    return tuple(components(stamps).mean(0, dtype=np.float64).round(2).tolist())


def _packed(
    starts: Bool[np.ndarray, " N"],
    ids: Int[np.ndarray, " N"],
    asked: Bool[np.ndarray, " N"],
    target: Int[np.ndarray, " N"] | None = None,
    *,
    extra: Mapping[str, np.ndarray] | None = None,
    reals: Float[np.ndarray, "N 9"] | None = None,
) -> Packed:
    """`extra` is no question: it says how even a user's intervals are up to a step, and when the
    step is, so that answers may be sorted and items have neighbours in time.
    """
    wanted = np.full(len(ids), -1) if target is None else np.where(asked, target, -1)
    return Packed(
        torch.from_numpy(starts),
        tokens=torch.from_numpy(ids.astype(np.int32))[:, None],
        reals=None if reals is None else torch.from_numpy(reals),
        targets={"token": torch.from_numpy(wanted.astype(np.int32))}
        | {name: torch.from_numpy(values) for name, values in (extra or {}).items()},
    )


def _repeated(
    user: Int[np.ndarray, " N"], item: Int[np.ndarray, " N"], stamps: Int[np.ndarray, " N"]
) -> Bool[np.ndarray, " N"]:
    """Rows equal to an earlier one."""
    order = np.lexsort((item, stamps, user))
    same = np.ones(max(len(user) - 1, 0), bool)
    for column in (user, item, stamps):
        same &= np.diff(column[order]) == 0
    repeated = np.zeros(len(user), bool)
    repeated[order[1:]] = same
    return repeated
