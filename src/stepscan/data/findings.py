"""Problems in data that a person wants to know of before trusting a score: leaks above all.

Each check is a function of a data set and, where there was one, its table; it says what it found in
one sentence, and nothing where all is well. Thresholds are such that ordinary data stay silent.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import torch

from stepscan.data.base import Dataset, Packed
from stepscan.data.patches import unfold
from stepscan.data.series_findings import (
    copied_future,
    far_values,
    longest_gap,
    moved_level,
)
from stepscan.data.tables import Table, labels, times

Check: TypeAlias = Callable[[Dataset, Table | None], Iterator[str]]

MOST = 200_000  # steps of a part that a check reads
TELLS = 0.98  # share of answers a column may give away
BETTER = 0.1  # than the activity alone
FAR = 5  # spans of the middle 98 % of times
YEAR = 366 * 86_400 * 10**9  # nanoseconds
SHORTEST_COPY = 3  # steps


def problems(dataset: Dataset, table: Table | None = None) -> list[str]:
    """Everything that the checks of this kind of data find."""
    checks = (*CHECKS.get(dataset.kind, ()), *EVERY)
    return [line for check in checks for line in check(dataset, table)]


# Any table -----------------------------------------------------------------------------------


def far_times(dataset: Dataset, table: Table | None) -> Iterator[str]:
    """Dates years away from all others: 1970, 1900 and 9999 stand for "not known"."""
    column = getattr(dataset.schema, "time", None)
    if table is None or column is None or column not in table.columns or len(table) < 20:
        return
    clock = times(table, column)
    if not clock.calendar:
        return
    low, high = np.quantile(clock.values, (0.01, 0.99))
    room = max(FAR * (high - low), YEAR)
    far = np.flatnonzero((clock.values < low - room) | (clock.values > high + room))
    if len(far):
        row = int(far[0])
        when = str(clock.values[row].astype("datetime64[ns]").astype("datetime64[D]"))
        yield (
            f'{len(far):,} times in column "{column}" lie years away from all others, such as '
            f"{when} in row {row + 1:,}: a date that stands for none?"
        )


# Events and interactions ---------------------------------------------------------------------


def copied_sequences(dataset: Dataset, table: Table | None) -> Iterator[str]:
    """Cases or users that are others under another name: the test part then was trained on."""
    import pandas as pd  # noqa: PLC0415

    schema = dataset.schema
    events = dataset.kind == "events"
    who, what = (schema.case, schema.activity) if events else (schema.user, schema.item)  # type: ignore[attr-defined]
    if table is None:
        return
    names = labels(table, who, "name")
    known = names.notna().to_numpy()
    each = pd.util.hash_pandas_object(labels(table, what, "step").fillna(""), index=False)
    when = pd.util.hash_array(times(table, schema.time).values)  # type: ignore[attr-defined]
    mixed = pd.util.hash_array(each.to_numpy() ^ (when * np.uint64(0x9E3779B97F4A7C15)))
    group = names[known].factorize()[0]
    if not len(group):
        return
    total = np.zeros(group.max() + 1, np.uint64)
    np.add.at(total, group, mixed[known])  # whatever the order of rows
    long = np.bincount(group) >= SHORTEST_COPY
    copies = pd.Series(total).duplicated() & long
    if copies.any():
        several = pd.Series(names[known].unique())
        first = int(copies.idxmax())
        same = int((total == total[first]).argmax())
        yield (
            f'{copies.sum():,} sequences are copies of others ("{several[first]}" of '
            f'"{several[same]}": the same {what} at the same times): drop them, or what is tested '
            "was trained on"
        )


def constant_attributes(dataset: Dataset, table: Table | None) -> Iterator[str]:
    """Attributes of events with one value."""
    schema = dataset.schema
    for name, values in zip(schema.attributes, schema.values, strict=True):  # type: ignore[attr-defined]
        if len(values) == 1:
            yield f'column "{name}" is always "{values[0]}": it tells nothing'


def telling_attributes(dataset: Dataset, table: Table | None) -> Iterator[str]:
    """An attribute that gives the next activity away: learned from training, seen to hold later."""
    schema = dataset.schema
    train, later = (_pairs(dataset.parts[name]) for name in ("train", "valid"))
    if not len(train[1]) or not len(later[1]):
        return
    base = _told(train[0][:, 0], train[1], later[0][:, 0], later[1])
    for i, name in enumerate(schema.attributes, 1):  # type: ignore[attr-defined]
        share = _told(train[0][:, i], train[1], later[0][:, i], later[1])
        if share >= TELLS and share > base + BETTER:
            yield (
                f'column "{name}" tells the next activity in {share:.0%} of cases (the activity '
                f"itself in {base:.0%}): a leak, unless it is known when the event happens"
            )


def shifted_activities(dataset: Dataset, table: Table | None) -> Iterator[str]:
    """Activities that are much more or less frequent in the test part than in training."""
    schema = dataset.schema
    train, test = (_counts(dataset.parts[name], schema.tokens[0]) for name in ("train", "test"))
    n, m = train.sum(), test.sum()
    if min(n, m) < 100:
        return
    p, q = train / n, test / m
    distance = float(np.abs(p - q).sum() / 2)
    middle = (train + test) / (n + m)
    chance = np.sqrt(middle * (1 - middle) * (1 / n + 1 / m) * 2 / np.pi).sum() / 2
    if distance > 0.15 + 3 * chance:
        most = int(np.abs(p - q).argmax())
        name = ("(new)", *schema.activities)[most]  # type: ignore[attr-defined]
        yield (
            f"the test part differs from the training part: {distance:.0%} of its events would "
            f'have to be others ("{name}": {q[most]:.0%} of events, {p[most]:.0%} in training)'
        )


def shifted_gaps(dataset: Dataset, table: Table | None) -> Iterator[str]:
    """Cases of the test part run much faster or slower than those of training."""
    medians = []
    for name in ("train", "test"):
        gap = dataset.parts[name].targets_as_stored["gap"][:MOST].numpy()
        gap = gap[~np.isnan(gap)]
        if len(gap) < 100:
            return
        medians.append(float(np.median(gap)))
    before, after = medians
    if before > 0 and after > 0 and max(after / before, before / after) > 3:
        word = "longer" if after > before else "shorter"
        ratio = max(after / before, before / after)
        yield f"the time between events is {ratio:.1f} times {word} in the test part (medians)"


def unseen_items(dataset: Dataset, table: Table | None) -> Iterator[str]:
    """Items wanted in the test part that no user takes in training."""
    train = dataset.parts["train"]
    assert train.tokens is not None
    wanted = dataset.parts["test"].targets_as_stored["token"].numpy()
    wanted = wanted[wanted > 0]
    known = np.unique(np.asarray(train.tokens[:, 0]))
    share = float((~np.isin(wanted, known)).mean()) if len(wanted) else 0.0
    if share > 0.05:
        yield (
            f"{share:.0%} of the items wanted in the test part never occur in the training part: "
            "no model of histories can offer them"
        )


def one_user_is_many(dataset: Dataset, table: Table | None) -> Iterator[str]:
    """One user with a large part of everything: a shop's own account, or a robot."""
    lengths = dataset.parts["train"].lengths
    if len(lengths) >= 20 and int(lengths.max()) > 0.2 * int(lengths.sum()):
        share = int(lengths.max()) / int(lengths.sum())
        yield f"one user has {share:.0%} of all interactions: a robot, or an account of many?"


# Labelled sequences --------------------------------------------------------------------------


def telling_channels(dataset: Dataset, table: Table | None) -> Iterator[str]:
    """A channel whose mean alone sorts the sequences into their classes."""
    schema = dataset.schema
    if getattr(schema, "answer", None) != "class" or not schema.reals:  # type: ignore[attr-defined]
        return
    packed = dataset.parts["train"]
    assert packed.reals is not None
    at = torch.arange(min(len(packed), MOST))
    label = packed.targets_at(at).get("label")
    if label is None:
        return
    count = int((packed.begins < len(at)).sum())
    which = torch.searchsorted(packed.begins, at, right=True) - 1
    own = torch.full((count,), -1)
    own[which[label >= 0]] = label[label >= 0]
    size = torch.zeros(count).index_add(0, which, torch.ones(len(at)))
    values = unfold(packed.reals[at].float()[:, None], schema.patch).mean(1)  # type: ignore[attr-defined]
    sums = torch.zeros(count, values.shape[1]).index_add(0, which, values)
    mean, known = (sums / size[:, None])[own >= 0], own[own >= 0]
    classes = known.unique()
    if len(known) < 30 or len(classes) < 2:
        return
    for i, name in enumerate(schema.channels):  # type: ignore[attr-defined]
        spans = sorted(
            (float(mean[known == c, i].min()), float(mean[known == c, i].max())) for c in classes
        )
        if all(high < low for (_, high), (low, _) in pairwise(spans)):
            yield (
                f'the mean of channel "{name}" alone tells the class of every training sequence: '
                "a leak, unless it is known before the class is"
            )


def _pairs(packed: Packed) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the first steps of a part, and the tokens after them, where one is asked for."""
    assert packed.tokens is not None
    after = packed.targets_as_stored["token"][:MOST].numpy()
    return packed.tokens[:MOST].numpy()[after >= 0], after[after >= 0]


def _told(before: np.ndarray, after: np.ndarray, later: np.ndarray, truth: np.ndarray) -> float:
    """How often the most frequent follower, learned from the first pair, is right in the second."""
    width = int(after.max()) + 1
    kinds, place = np.unique(before, return_inverse=True)
    if len(kinds) * width > 10_000_000 or len(kinds) > len(before) / 4:
        return 0.0  # hardly a value comes twice: a number or a name, not a category
    counts = np.bincount(place * width + after, minlength=len(kinds) * width)
    guess = counts.reshape(len(kinds), width).argmax(1)
    at = np.clip(np.searchsorted(kinds, later), 0, len(kinds) - 1)
    return float(((guess[at] == truth) & (kinds[at] == later)).mean())


def _counts(packed: Packed, size: int) -> np.ndarray:
    assert packed.tokens is not None
    pieces = packed.tokens[:, 0].split(MOST)  # a part on disk is not to be read at once
    return sum((np.bincount(p.numpy(), minlength=size) for p in pieces), np.zeros(size))


EVERY: tuple[Check, ...] = (far_times,)
CHECKS: Mapping[str, tuple[Check, ...]] = MappingProxyType(
    {
        "series": (copied_future, far_values, moved_level, longest_gap),
        "events": (
            copied_sequences,
            constant_attributes,
            telling_attributes,
            shifted_activities,
            shifted_gaps,
        ),
        "interactions": (copied_sequences, unseen_items, one_user_is_many),
        "labelled": (telling_channels,),
    }
)
