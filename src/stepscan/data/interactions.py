"""Users and items: which item a user takes next.

    inputs    the items of a user in order of time, one sequence a user
    asked     the next item ("token")

Leave-last-out: the last item of each user is the test, the one before it is for choosing, the rest
trains. Users with fewer than three interactions train only. Id 0 is an item never seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Int

from stepscan.data.base import DataError, DataOptions, Dataset, Packed, Schema
from stepscan.data.tables import Table, codes, labels, times


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

    @property
    def tokens(self) -> tuple[int, ...]:
        """One column."""
        return (len(self.items) + 1,)

    @property
    def reals(self) -> int:
        """None."""
        return 0

    def encode(self, table: Table) -> tuple[Packed, list[str]]:
        """Every user's history, nothing asked; and the users in this order."""
        users, items = labels(table, self.user, "user"), labels(table, self.item, "item")
        kept = np.flatnonzero((users.notna() & items.notna()).to_numpy())
        user, names = users.iloc[kept].factorize(sort=True)
        order = np.lexsort((times(table, self.time).values[kept], user))
        starts = torch.from_numpy(np.diff(user[order], prepend=-1) != 0)
        ids = codes(items.iloc[kept[order]], self.items)
        return _packed(starts, ids, np.zeros(len(ids), bool)), list(map(str, names))

    def prompt(self, items: Sequence[str]) -> Packed:
        """The history of one user, nothing asked."""
        vocabulary = {item: i for i, item in enumerate(self.items, 1)}
        ids = np.array([vocabulary.get(str(item), 0) for item in items], np.int64)
        return _packed(torch.arange(len(ids)) == 0, ids, np.zeros(len(ids), bool))


def interaction_dataset(
    table: Table, options: DataOptions, roles: Mapping[str, str], *, name: str
) -> Dataset:
    """Leave the last two of each user out, encode."""
    user_column, item_column, time = roles["user"], roles["item"], roles["time"]
    findings = []
    users = labels(table, user_column, "user")
    items = labels(table, item_column, "item")
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
    schema = InteractionSchema(user=user_column, item=item_column, time=time, items=vocabulary)
    ids = codes(items.iloc[kept], vocabulary)
    begins = np.diff(row_user, prepend=-1) != 0
    place = np.arange(len(kept)) - np.maximum.accumulate(np.where(begins, np.arange(len(kept)), 0))
    parts = _leave_last_out(ids, begins, place, total)
    said = (
        f"{name}   interactions  {len(kept):,}   "
        f'user "{user_column}" ({begins.sum():,})   item "{item_column}" ({len(vocabulary):,})   '
        f'time "{time}"',
        "task        the next item of a user, ranked among all items",
        f"held out    the last item of {(begins & (total >= 3)).sum():,} users for the test, "
        "the one before for choosing",
    )
    return Dataset(
        name=name,
        schema=schema,
        parts=parts,
        said=said,
        findings=(*findings, *clock.findings),
    )


def _leave_last_out(
    ids: Int[np.ndarray, " N"],
    begins: Bool[np.ndarray, " N"],
    place: Int[np.ndarray, " N"],
    total: Int[np.ndarray, " N"],
) -> dict[str, Packed]:
    """`place` of `total`: where each row stands in its user's history."""
    after = np.append(ids[1:], 0)
    held = np.where(total >= 3, 2, 0)
    parts = {}
    for part, out, last_only in (
        ("train", held, False),
        ("valid", held, True),
        ("test", held - 1, True),
    ):
        inputs = place < total - out
        asked = place == total - out - 1 if last_only else place < total - out - 1
        chosen = np.flatnonzero(inputs & (total >= 3) if last_only else inputs)
        target = np.where(asked, after, -1)[chosen]
        parts[part] = _packed(torch.from_numpy(begins[chosen]), ids[chosen], asked[chosen], target)
    return parts


def _packed(
    starts: Bool[torch.Tensor, " N"],
    ids: Int[np.ndarray, " N"],
    asked: Bool[np.ndarray, " N"],
    target: Int[np.ndarray, " N"] | None = None,
) -> Packed:
    wanted = np.full(len(ids), -1) if target is None else np.where(asked, target, -1)
    return Packed(
        starts,
        tokens=torch.from_numpy(ids.astype(np.int32))[:, None],
        targets={"token": torch.from_numpy(wanted.astype(np.int32))},
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
