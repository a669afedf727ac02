"""Sequences with one label each, as they come: from tables, `.ts` files, lists of arrays.

Nothing is scaled, split or left out here, except steps and sequences that cannot be read at all.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from stepscan.data.base import PARTS, DataError
from stepscan.data.tables import Table, labels, numbers, times

if TYPE_CHECKING:
    import pandas as pd

FREE = -1
"""The part of a sequence that the data do not assign to one."""
PART_NAMES = {name: i for i, name in enumerate(PARTS)} | {"validation": 1, "val": 1, "dev": 1}


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """S sequences laid end to end, N steps in all."""

    names: list[str]
    """Of the sequences."""
    lengths: Int[np.ndarray, " S"]
    channels: dict[str, Float[np.ndarray, " N"]]
    """Numbers by name; NaN where missing."""
    words: dict[str, np.ndarray] = field(default_factory=dict)
    """Categories by name, as text; "" where missing."""
    answers: list[Any] | None = None
    """The label of each: text, a number, or None where there is none."""
    parts: Int[np.ndarray, " S"] | None = None
    """0, 1, 2 for train, valid, test, or FREE; None where the data say nothing."""
    groups: np.ndarray | None = None
    """What sequences have in common that must not be split."""
    findings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def begins(self) -> Int[np.ndarray, " S"]:
        """The first step of each."""
        return np.cumsum(self.lengths) - self.lengths

    def take(self, chosen: Int[np.ndarray, " M"]) -> "Sequences":
        """These sequences, in this order."""
        lengths = self.lengths[chosen]
        before = np.repeat(np.cumsum(lengths) - lengths, lengths)
        steps = np.repeat(self.begins[chosen], lengths) + np.arange(lengths.sum()) - before
        return replace(
            self,
            names=[self.names[i] for i in chosen],
            lengths=lengths,
            channels={name: values[steps] for name, values in self.channels.items()},
            words={name: values[steps] for name, values in self.words.items()},
            answers=None if self.answers is None else [self.answers[i] for i in chosen],
            parts=None if self.parts is None else self.parts[chosen],
            groups=None if self.groups is None else self.groups[chosen],
        )


@dataclass(frozen=True, kw_only=True)
class LabelledColumns:
    """Which column of a long table is what; one row a step."""

    id: str | None
    """What tells sequences apart; None is one sequence."""
    time: str | None
    label: str | None
    channels: tuple[str, ...]
    words: tuple[str, ...] = ()
    part: str | None = None
    group: str | None = None


def from_table(table: Table, columns: LabelledColumns) -> Sequences:
    """The sequences of a long table, in order of their names, each in order of time."""
    import pandas as pd  # noqa: PLC0415

    findings: list[str] = []
    if not len(table):
        raise DataError(f"{table.name}: want at least one step, got none")
    ids: Any = pd.Series(["1"] * len(table))
    if columns.id is not None:
        ids = labels(table, columns.id, "id")
    absent = np.asarray(ids.isna(), bool)
    if absent.any():
        findings.append(f'{absent.sum():,} rows without "{columns.id}" left out')
    kept = np.flatnonzero(~absent)
    if not len(kept):
        raise DataError(f'{table.name}: column "{columns.id}": every row is without a name')
    which, names = ids.iloc[kept].factorize(sort=True)
    order = np.argsort(which, kind="stable")
    if columns.time is not None:
        clock = times(table, columns.time)
        findings += clock.findings
        order = np.lexsort((clock.values[kept], which))  # stable: ties keep the file's order
        stamps = clock.values[kept[order]]
        ties = (np.diff(which[order]) == 0) & (np.diff(stamps) == 0)
        if ties.any():
            findings.append(
                f"{ties.sum():,} steps have the time of the one before; "
                "they keep the order of the file"
            )
    rows, which = kept[order], which[order]
    firsts = np.flatnonzero(np.diff(which, prepend=-1))

    def one_each(column: str | None, role: str) -> list[str | None] | None:
        return None if column is None else _one_each(table, column, role, rows, which, names)

    groups, parts = one_each(columns.group, "group"), one_each(columns.part, "part")
    return Sequences(
        names=[str(name) for name in names],
        lengths=np.diff(firsts, append=len(rows)),
        channels={c: numbers(table, c, "channel")[rows] for c in columns.channels},
        words={
            c: labels(table, c, "channel").fillna("").to_numpy(object)[rows] for c in columns.words
        },
        answers=one_each(columns.label, "label"),
        parts=None
        if parts is None
        else np.array([PART_NAMES.get((part or "").lower(), FREE) for part in parts]),
        groups=None if groups is None else np.array([g or "" for g in groups], object),
        findings=tuple(findings),
    )


def from_arrays(
    arrays: Sequence[Any],
    answers: Sequence[Any] | None = None,
    *,
    names: Sequence[str] | None = None,
    channels: Sequence[str] | None = None,
    what: str = "the data given",
) -> Sequences:
    """The sequences of a list of arrays [T] or [T C], of numbers or, [T] only, of words.

    Args:
        arrays: One for each sequence; a 3-D array [S T C] is such a list too.
        answers: Their labels.
        names: Of the sequences; left out, 1, 2, 3 ...
        channels: Names of the columns; left out, 1, 2 ...
        what: What errors call it.
    """
    if not len(arrays):
        raise DataError(f"{what}: want at least one sequence, got none")
    if answers is not None and len(answers) != len(arrays):
        raise DataError(f"{what}: want one label a sequence, got {len(answers)} for {len(arrays)}")
    found = [_array(one, f"{what}: sequence {i}") for i, one in enumerate(arrays, 1)]
    width, wordy = found[0].shape[1], found[0].dtype == object
    wanted = width if channels is None else len(channels)
    for i, one in enumerate(found, 1):
        if one.shape[1] != wanted or (one.dtype == object) != wordy:
            kinds = {True: "words", False: "numbers"}
            raise DataError(
                f"{what}: sequence {i}: want {wanted} channels of {kinds[wordy]} at every step, "
                f"got {one.shape[1]} of {kinds[one.dtype == object]}"
            )
    told = [str(i + 1) for i in range(width)] if channels is None else list(channels)
    whole = np.concatenate(found)
    columns = {name: whole[:, i] for i, name in enumerate(told)}
    return Sequences(
        names=[str(i) for i in range(1, len(found) + 1)] if names is None else list(names),
        lengths=np.array([len(one) for one in found]),
        channels={} if wordy else columns,
        words=columns if wordy else {},
        answers=None if answers is None else [_plain(a) for a in answers],
    )


def from_ts(path: Path) -> Sequences:
    """A `.ts` file as the UCR and UEA archives have them; `_TRAIN` and `_TEST` go together."""
    both = re.fullmatch(r"(.*)_(TRAIN|TEST)", path.stem, re.I)
    train, test = (path.with_name(f"{both[1]}_{x}.ts") if both else path for x in ("TRAIN", "TEST"))
    if both is None or not (train.exists() and test.exists()):
        return _read_ts(path)
    return joined(_read_ts(train), _read_ts(test))


def joined(train: Sequences, test: Sequences) -> Sequences:
    """Two parts that somebody else has split: their sequences are "train-1" ..., "test-1" ..."""
    if list(train.channels) != list(test.channels):
        raise DataError(
            f"want the same channels in the training and the test part, got "
            f"{len(train.channels)} and {len(test.channels)}"
        )
    both = together([train, test])
    names = [f"{part}-{name}" for part, x in (("train", train), ("test", test)) for name in x.names]
    return replace(both, names=names, parts=np.repeat([0, 2], [len(train), len(test)]))


def together(pieces: Sequence[Sequences]) -> Sequences:
    """All sequences of pieces with the same channels, one after the other."""
    first = pieces[0]
    lists = [p.answers for p in pieces if p.answers is not None]
    return Sequences(
        names=[name for p in pieces for name in p.names],
        lengths=np.concatenate([p.lengths for p in pieces]),
        channels={c: np.concatenate([p.channels[c] for p in pieces]) for c in first.channels},
        words={c: np.concatenate([p.words[c] for p in pieces]) for c in first.words},
        answers=[a for one in lists for a in one] if len(lists) == len(pieces) else None,
        findings=tuple(finding for p in pieces for finding in p.findings),
    )


def long_frame(arrays: Sequence[Any], answers: Sequence[Any] | None = None) -> "pd.DataFrame":
    """Arrays [T] or [T C] as a long frame: id, step, the channels, and the label if there is one.

    It is the form in which `fit`, `predict_table` and files take sequences.
    """
    import pandas as pd  # noqa: PLC0415

    found = from_arrays(arrays, answers)
    width = len(str(len(found)))
    frame: dict[str, Any] = {
        "id": np.repeat([name.zfill(width) for name in found.names], found.lengths),
        "step": np.arange(found.lengths.sum()) - np.repeat(found.begins, found.lengths),
    }
    frame |= {f"x{name}": values for name, values in (found.channels | found.words).items()}
    if found.answers is not None:
        frame["label"] = np.repeat(np.array(found.answers, object), found.lengths)
    return pd.DataFrame(frame).infer_objects()


def _array(one: Any, what: str) -> np.ndarray:
    """[T C] of float64, or [T 1] of text."""
    try:
        values = np.asarray(one)
    except ValueError:
        raise DataError(f"{what}: want the same number of channels at every step") from None
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or not values.size:
        raise DataError(
            f"{what}: want [steps] or [steps, channels] with at least one step, "
            f"got shape {np.asarray(one).shape}"
        )
    if values.dtype.kind in "biuf":
        values = values.astype(np.float64)
        if np.isinf(values).any():
            raise DataError(f"{what}: step {int(np.isinf(values).any(1).argmax()) + 1} is infinite")
        return values
    try:
        return values.astype(np.float64)
    except (TypeError, ValueError):
        if values.shape[1] == 1 and all(isinstance(x, str) for x in values[:, 0]):
            return values.astype(object)
    raise DataError(f"{what}: want numbers, or a list of words; got {values[0].tolist()!s:.60}")


def _plain(answer: Any) -> Any:
    """A label from a list: numpy's scalars become Python's, None and NaN are missing."""
    if hasattr(answer, "item"):
        answer = answer.item()
    if answer is None or (isinstance(answer, float) and np.isnan(answer)):
        return None
    return answer


def _one_each(
    table: Table, column: str, role: str, rows: np.ndarray, which: np.ndarray, names: Any
) -> list[str | None]:
    """The one text that a column holds in each sequence; missing cells do not count."""
    cells: Any = labels(table, column, role)
    text = cells.iloc[rows].reset_index(drop=True)
    present = np.flatnonzero(text.notna().to_numpy())
    found: list[str | None] = [None] * len(names)
    codes, different = text.iloc[present].factorize()
    of = which[present]
    first = np.full(len(names), -1)
    first[of[::-1]] = codes[::-1]
    wrong = codes != first[of]
    if wrong.any():
        at = int(wrong.argmax())
        raise DataError(
            f"{table.cell(int(rows[present[at]]), column)}: sequence "
            f'"{names[of[at]]}" has "{different[codes[at]]}" here and '
            f'"{different[first[of[at]]]}" before; want one {role} a sequence. '
            "Name another column with --" + ("label or --id" if role == "label" else role)
        )
    for i, code in enumerate(first):
        if code >= 0:
            found[i] = str(different[code])
    return found


def tells_parts(table: Table, column: str) -> bool:
    """Whether a column only says train, valid and test, and at least the outer two of them."""
    found = {str(x).lower() for x in labels(table, column, "part").dropna().unique()}
    return found <= set(PART_NAMES) and {"train", "test"} <= found


def _read_ts(path: Path) -> Sequences:
    try:
        from sktime.datasets import load_from_tsfile  # noqa: PLC0415
    except ImportError:
        raise ImportError(".ts files need sktime: pip install 'stepscan[timeseries]'") from None
    try:
        head = path.read_text(encoding="utf-8", errors="replace")[:20_000].lower()
        numeric = re.search(r"^@targetlabel\s+true", head, re.M) is not None
        if not numeric and not re.search(r"^@classlabel\s+true", head, re.M):
            raise DataError(f"{path}: want labels: @classLabel true or @targetLabel true")
        loaded: Any = load_from_tsfile(str(path))
        frame, answers = loaded
    except (OSError, ValueError, TypeError, IndexError, KeyError) as error:
        if isinstance(error, DataError):
            raise
        words = " ".join(str(error).split())
        raise DataError(f"{path}: not a readable .ts file ({words:.200})") from None
    lengths = np.array([[len(cell) for cell in frame[c]] for c in frame.columns])
    if (lengths != lengths[0]).any():
        bad = int((lengths != lengths[0]).any(0).argmax())
        raise DataError(
            f"{path}: sequence {bad + 1}: want channels of the same length, "
            f"got {', '.join(map(str, lengths[:, bad]))} steps"
        )
    return Sequences(
        names=[str(i) for i in range(1, len(frame) + 1)],
        lengths=lengths[0],
        channels={
            str(i): np.concatenate([np.asarray(cell, np.float64) for cell in frame[c]])
            for i, c in enumerate(frame.columns, 1)
        },
        answers=[float(a) if numeric else str(a) for a in answers],
    )
