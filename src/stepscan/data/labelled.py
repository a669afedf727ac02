"""Sequences with one label each: a class, a number, or a text that the sequence spells.

    inputs    the channels, centred and scaled by the training part and kept within 10 deviations,
              0 where missing; for each channel that misses values in training, a flag; words as
              categories, id 0 for one that training has not shown
    asked     a class ("label") or a number ("value", scaled) after the last step, or after every
              one; a text as symbols ("symbol", at the first steps) and where it ends ("end"),
              see `train.objectives`

A split that the data bring is kept. Else sequences are held out at random, class by class, or whole
groups of them. The training part is in random order: batches read on from sequence to sequence, and
files are often sorted by class.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int

from stepscan.data.base import DataError, DataOptions, Dataset, Packed, Schema
from stepscan.data.held_out import hold_out, leaks
from stepscan.data.sequences import (
    LabelledColumns,
    Sequences,
    from_arrays,
    from_table,
    together,
)
from stepscan.data.tables import Table
from stepscan.names import lookup

FEWEST = 6
LARGEST = 10.0  # of channels, in standard deviations: one wild reading stays one
MANY_CLASSES = 20  # whole numbers with more different values are numbers
ANSWERS = ("class", "number", "text")


@dataclass(frozen=True, kw_only=True)
class LabelledSchema(Schema):
    """How sequences become steps, and what a model says becomes labels."""

    kind: ClassVar[str] = "labelled"

    id: str | None
    """Column names, as in the file the model learned from; None where there was no table."""
    time: str | None
    label: str
    channels: tuple[str, ...]
    center: tuple[float, ...]
    """Of each channel."""
    scale: tuple[float, ...]
    flagged: tuple[str, ...]
    """Channels with a flag that says where they are missing."""
    words: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    """Of each column of words: value i + 1 of its vocabulary; 0 is one never seen."""
    answer: str
    """class, number or text."""
    classes: tuple[str, ...]
    """Of a text: its symbols; symbol i + 1 is classes[i], 0 is the blank."""
    counts: tuple[int, ...]
    """Training sequences of each class."""
    weights: str
    """none, or balanced: every class counts the same in training."""
    smoothing: float
    augment: str
    """How training disturbs channels, see `train.augment`."""
    every: bool
    """Asked after every step, not only after the last."""
    middle: float
    """Mean of a number in training, and its standard deviation."""
    spread: float
    longest: int
    """Steps of the longest training sequence."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """One column a column of words."""
        return tuple(len(values) + 1 for values in self.values)

    @property
    def reals(self) -> int:
        """Channels, then flags."""
        return len(self.channels) + len(self.flagged)

    @property
    def columns(self) -> LabelledColumns:
        """Where to find the inputs in a table."""
        return LabelledColumns(
            id=self.id, time=self.time, label=None, channels=self.channels, words=self.words
        )

    def encode(self, data: Table | Sequence[Any]) -> tuple[Packed, list[str]]:
        """New sequences, whole, nothing asked; and their names in this order.

        Args:
            data: A table with the columns of training, or a list of sequences: [steps], [steps,
                channels], or frames with the channels.
        """
        if isinstance(data, Table):
            found = from_table(data, self.columns)
        elif isinstance(data, str | bytes) or not hasattr(data, "__len__") or not len(data):
            raise DataError(f"want a list of sequences, got {data!r:.60}")
        else:
            found = together([self._one(one, i) for i, one in enumerate(data, 1)])
        return pack(self, replace(found, answers=None)), found.names

    def _one(self, one: Any, place: int) -> Sequences:
        what = f"sequence {place}"
        if hasattr(one, "columns"):
            table = Table(one.reset_index(drop=True), what)
            return from_table(table, replace(self.columns, id=None, time=None))
        names, kind = (self.words, "words") if self.words else (self.channels, "numbers")
        if self.words and self.channels:
            told = ", ".join((*self.channels, *self.words))
            raise DataError(f"{what}: want a frame with the columns {told}")
        if isinstance(one, str | bytes) or not hasattr(one, "__len__"):
            raise DataError(f"{what}: want {kind}, [steps] or [steps, channels]; got {one!r:.60}")
        found = from_arrays([one], what=what)
        got = found.words or found.channels
        if bool(found.words) != bool(self.words) or len(got) != len(names):
            told = ", ".join(names[:6]) + " ..." * (len(names) > 6)
            raise DataError(
                f"{what}: want {len(names)} channels of {kind} at every step ({told}), as in "
                f"training; got {len(got)} of {'words' if found.words else 'numbers'}"
            )
        columns = dict(zip(names, got.values(), strict=True))
        if self.words:
            return replace(found, words=columns)
        return replace(found, channels=columns)


def labelled_dataset(
    found: Sequences, options: DataOptions, *, name: str, columns: LabelledColumns | None = None
) -> Dataset:
    """Split, measure on the training part, encode."""
    lookup({"none": 0, "balanced": 1}, options.class_weights, kind="class weights")
    lookup({"last": 0, "every": 1}, options.asked, kind="asked")
    if not 0 <= options.smoothing < 1:
        raise DataError(f"want 0 <= smoothing < 1, got {options.smoothing}")
    found, findings, answer, answers = _answered(found, options, name)
    if options.asked == "every" and answer == "text":
        raise DataError(f"{name}: a text is asked for at the end, not after every step")
    part, how = hold_out(found, answers if answer == "class" else None, options, name)
    train = np.flatnonzero(part == 0)
    schema = _measured(found.take(train), [answers[i] for i in train], options, answer, columns)
    constant = [c for c in found.channels if c not in schema.channels]
    findings += [f'channel "{c}" never changes: left out' for c in constant]
    if not schema.channels and not schema.words:
        raise DataError(f"{name}: every channel is constant in the training part")
    part, more = _left_out(found, answers, part, schema)
    findings += more
    pieces = [np.flatnonzero(part == i) for i in range(3)]
    for piece, called in zip(pieces, ("train", "valid", "test"), strict=True):
        if not len(piece):
            raise DataError(
                f"{name}: no sequence is left for the {called} part of {len(found):,}; "
                "change --valid or --test, or give more data"
            )
    np.random.default_rng(0).shuffle(pieces[0])
    findings += leaks(found, pieces)
    parts = {
        called: pack(schema, replace(found.take(piece), answers=[answers[i] for i in piece]))
        for called, piece in zip(("train", "valid", "test"), pieces, strict=True)
    }
    for piece, called in zip(pieces, ("train", "valid", "test"), strict=True):
        if not _asks(parts[called], answer):
            raise DataError(f"{name}: nothing is asked in the {called} part of {len(piece):,}")
    sizes = [len(piece) for piece in pieces]
    return Dataset(
        name=name,
        schema=schema,
        parts=parts,
        said=_said(name, schema, found, sizes, how),
        findings=(*found.findings, *findings),
    )


def pack(schema: LabelledSchema, found: Sequences) -> Packed:
    """Sequences as a model reads them, and what is asked, if they have labels."""
    begins = torch.from_numpy(found.begins)
    steps = int(found.lengths.sum())
    starts = torch.zeros(steps, dtype=torch.bool)
    starts[begins] = True
    reals = np.zeros((steps, schema.reals), np.float32)
    for i, (c, center, scale) in enumerate(
        zip(schema.channels, schema.center, schema.scale, strict=True)
    ):
        values = np.clip((found.channels[c] - center) / scale, -LARGEST, LARGEST)
        reals[:, i] = np.nan_to_num(values, nan=0.0)
    for i, c in enumerate(schema.flagged, len(schema.channels)):
        reals[:, i] = np.isnan(found.channels[c])
    columns = [
        _places(found.words[c], values)
        for c, values in zip(schema.words, schema.values, strict=True)
    ]
    return Packed(
        starts,
        tokens=torch.from_numpy(np.stack(columns, 1).astype(np.int32)) if columns else None,
        reals=torch.from_numpy(reals) if schema.reals else None,
        targets=_targets(schema, found),
    )


def _targets(schema: LabelledSchema, found: Sequences) -> dict[str, torch.Tensor]:
    steps, lengths = int(found.lengths.sum()), found.lengths
    if found.answers is None:
        return {}
    last = np.ones(steps, bool)
    if not schema.every:
        last[:] = False
        last[found.begins + lengths - 1] = True
    if schema.answer == "class":
        which = {c: i for i, c in enumerate(schema.classes)}
        codes = np.array([which.get(a, -1) for a in found.answers], np.int32)
        return {"label": torch.from_numpy(np.where(last, np.repeat(codes, lengths), -1))}
    if schema.answer == "number":
        scaled = (np.array(found.answers, np.float64) - schema.middle) / schema.spread
        value = np.where(last, np.repeat(scaled, lengths), np.nan).astype(np.float32)
        return {"value": torch.from_numpy(value)[:, None]}
    symbols = {c: i for i, c in enumerate(schema.classes, 1)}
    symbol = np.full(steps, -1, np.int32)
    for begin, text in zip(found.begins, found.answers, strict=True):
        symbol[begin : begin + len(text)] = [symbols[c] for c in text]
    end = np.where(last, np.repeat(lengths, lengths), -1).astype(np.int32)
    return {"symbol": torch.from_numpy(symbol), "end": torch.from_numpy(end)}


def frames_needed(text: str) -> int:
    """The fewest steps in which a text can be spelled: a blank parts two equal letters."""
    return len(text) + sum(a == b for a, b in pairwise(text))


def _answered(
    found: Sequences, options: DataOptions, name: str
) -> tuple[Sequences, list[str], str, list[Any]]:
    """The sequences with a label, what the labels are, and the labels as such."""
    answers = found.answers
    assert answers is not None
    kept = np.array([i for i, a in enumerate(answers) if a is not None], np.int64)
    findings = []
    if len(kept) < len(answers):
        findings.append(f"{len(answers) - len(kept):,} sequences without a label left out")
    if len(kept) < FEWEST:
        raise DataError(f"{name}: want at least {FEWEST} labelled sequences, got {len(kept)}")
    found = found.take(kept)
    given = [answers[i] for i in kept]
    numeric = _numbers(given)
    answer = options.answer or _kind_of_answer(given, numeric)
    lookup(dict.fromkeys(ANSWERS), answer, kind="answer")
    if answer == "number":
        if numeric is None:
            bad = next(a for a in given if _numbers([a]) is None)
            raise DataError(f'{name}: label "{bad}" is not a number; leave --answer number out')
        return found, findings, answer, numeric
    texts = [_text(a) for a in given]
    if answer == "class" and len(set(texts)) < 2:
        raise DataError(
            f'{name}: every sequence has the label "{texts[0]}"; want at least two classes'
        )
    return found, findings, answer, texts


def _kind_of_answer(given: list[Any], numeric: list[float] | None) -> str:
    if numeric is None:
        return "class"
    whole = all(x == round(x) for x in numeric)
    return "class" if whole and len(set(numeric)) <= MANY_CLASSES else "number"


def _numbers(given: list[Any]) -> list[float] | None:
    try:
        found = [float(a) for a in given]
    except (TypeError, ValueError):
        return None
    return found if all(map(math.isfinite, found)) else None


def _text(answer: Any) -> str:
    whole = isinstance(answer, float) and answer.is_integer()
    return str(int(answer)) if whole else str(answer)


def _measured(
    train: Sequences,
    answers: list[Any],
    options: DataOptions,
    answer: str,
    columns: LabelledColumns | None,
) -> LabelledSchema:
    """The schema: everything in it comes from the training part."""
    channels, center, scale, flagged = [], [], [], []
    for c, values in train.channels.items():
        seen = values[~np.isnan(values)]
        if not len(seen) or (seen == seen[0]).all():
            continue
        channels.append(c)
        center.append(float(seen.mean()))
        scale.append(float(seen.std()))
        if len(seen) < len(values):
            flagged.append(c)
    counts: Counter[str] = Counter()
    if answer == "class":
        counts.update(answers)
    if answer == "text":
        counts.update(c for text in answers for c in set(text))
    numeric = _numbers(list(counts))
    classes = sorted(counts, key=float) if numeric is not None else sorted(counts)
    middle, spread = 0.0, 1.0
    if answer == "number":
        middle, spread = float(np.mean(answers)), float(np.std(answers)) or 1.0
    return LabelledSchema(
        id=None if columns is None else columns.id,
        time=None if columns is None else columns.time,
        label="label" if columns is None else columns.label or "label",
        channels=tuple(channels),
        center=tuple(center),
        scale=tuple(scale),
        flagged=tuple(flagged),
        words=tuple(train.words),
        values=tuple(tuple(sorted({*v.tolist()} - {""})) for v in train.words.values()),
        answer=answer,
        classes=tuple(classes),
        counts=tuple(counts[c] for c in classes),
        weights=options.class_weights,
        smoothing=options.smoothing,
        augment=options.augment,
        every=options.asked == "every",
        middle=middle,
        spread=spread,
        longest=int(train.lengths.max()),
    )


def _left_out(
    found: Sequences, answers: list[Any], part: Int[np.ndarray, " S"], schema: LabelledSchema
) -> tuple[Int[np.ndarray, " S"], list[str]]:
    """Sequences whose label cannot be asked for, taken out of every part."""
    part, findings = part.copy(), []
    known = set(schema.classes)
    if schema.answer == "class":
        new = np.array([a not in known for a in answers])
        if new.any():
            names = ", ".join(sorted({answers[i] for i in np.flatnonzero(new)})[:5])
            findings.append(
                f"{new.sum():,} held-out sequences are of classes that the training part never "
                f"shows ({names}): left out, no model can name them"
            )
            part[new] = -1
        few = sorted(c for c, n in Counter(answers).items() if n == 1 and c in known)
        if few:
            findings.append(
                f"classes with a single sequence are learned from and never tested: "
                f"{', '.join(few[:5])}{' ...' if len(few) > 5 else ''}"
            )
    if schema.answer == "text":
        new = np.array([not set(a) <= known for a in answers])
        short = found.lengths < np.array([max(1, frames_needed(a)) for a in answers])
        for bad, words in (
            (new & ~short, "texts have symbols that the training part never shows"),
            (short, "sequences are shorter than their texts can be spelled in"),
        ):
            if bad.any():
                findings.append(f"{bad.sum():,} {words}: left out")
                part[bad] = -1
    return part, findings


def _asks(packed: Packed, answer: str) -> bool:
    if not len(packed):
        return False
    name = {"class": "label", "number": "value", "text": "end"}[answer]
    target = packed.targets_at(torch.arange(len(packed)))[name]
    return bool((target >= 0).any()) if answer != "number" else bool((~target.isnan()).any())


def _places(words: np.ndarray, values: tuple[str, ...]) -> Int[np.ndarray, " N"]:
    which = {value: i for i, value in enumerate(values, 1)}
    return np.array([which.get(word, 0) for word in words], np.int64)


def _said(
    name: str, schema: LabelledSchema, found: Sequences, sizes: list[int], how: str
) -> tuple[str, ...]:
    lengths = found.lengths
    steps = (
        f"{lengths.max():,} steps"
        if lengths.min() == lengths.max()
        else f"{lengths.min():,} to {lengths.max():,} steps"
    )
    told = [*schema.channels, *schema.words]
    channels = ", ".join(f'"{c}"' for c in told[:6]) + (" ..." if len(told) > 6 else "")
    when = "every step" if schema.every else "the last step"
    task = {
        "class": f'the class "{schema.label}" ({len(schema.classes)}) of a sequence, after {when}',
        "number": f'the number "{schema.label}" of a sequence, after {when}',
        "text": f'the text "{schema.label}" that a sequence spells ({len(schema.classes)} symbols)',
    }[schema.answer]
    if schema.weights == "balanced":
        task += ", classes weighed alike"
    parts = zip(("train", "valid", "test"), sizes, strict=True)
    return (
        f"{name}   labelled  {len(found):,} sequences of {steps}   "
        f"channels {len(told)}: {channels}",
        f"task        {task}",
        f"held out    {how}: " + "  ".join(f"{part} {n:,}" for part, n in parts),
    )
