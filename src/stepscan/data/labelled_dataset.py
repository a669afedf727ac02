"""Labelled sequences that came from anywhere become a data set: split, measured, encoded.

A split that the data bring is kept. Else sequences are held out at random, class by class, or whole
groups of them. The training part is in random order: batches read on from sequence to sequence, and
files are often sorted by class.
"""

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from stepscan.data.base import DataError, DataOptions, Dataset, Packed
from stepscan.data.held_out import hold_out, leaks
from stepscan.data.labelled import LabelledSchema, pack
from stepscan.data.patches import steps_of
from stepscan.data.sequences import LabelledColumns, Sequences
from stepscan.names import lookup

FEWEST = 6
MANY_CLASSES = 20  # whole numbers with more different values are numbers
ANSWERS = ("class", "number", "text")


def labelled_dataset(
    found: Sequences, options: DataOptions, *, name: str, columns: LabelledColumns | None = None
) -> Dataset:
    """Split, measure on the training part, encode."""
    lookup({"none": 0, "balanced": 1}, options.class_weights, kind="class weights")
    lookup({"last": 0, "every": 1}, options.asked, kind="asked")
    if not 0 <= options.smoothing < 1:
        raise DataError(f"want 0 <= smoothing < 1, got {options.smoothing}")
    if options.patch < 1:
        raise DataError(f"want patch >= 1 samples a step, got {options.patch}")
    found, findings, answer, answers = _answered(found, options, name)
    if options.asked == "every" and answer == "text":
        raise DataError(f"{name}: a text is asked for at the end, not after every step")
    if options.patch > 1 and found.words:
        raise DataError(
            f"{name}: patch joins samples of numbers, and {next(iter(found.words))!r} "
            "has words; leave --patch out"
        )
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
        patch=options.patch,
        longest=int(_steps(train, options.patch).max()),
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
        needed = np.array([max(1, frames_needed(a)) for a in answers])
        short = _steps(found, schema.patch) < needed
        for bad, words in (
            (new & ~short, "texts have symbols that the training part never shows"),
            (short, "sequences are shorter than their texts can be spelled in"),
        ):
            if bad.any():
                findings.append(f"{bad.sum():,} {words}: left out")
                part[bad] = -1
    return part, findings


def _steps(found: Sequences, patch: int) -> Int[np.ndarray, " S"]:
    return steps_of(torch.from_numpy(found.lengths), patch).numpy()


def _asks(packed: Packed, answer: str) -> bool:
    if not len(packed):
        return False
    name = {"class": "label", "number": "value", "text": "end"}[answer]
    target = packed.targets_at(torch.arange(len(packed)))[name]
    return bool((target >= 0).any()) if answer != "number" else bool((~target.isnan()).any())


def _said(
    name: str, schema: LabelledSchema, found: Sequences, sizes: list[int], how: str
) -> tuple[str, ...]:
    lengths = _steps(found, schema.patch)
    steps = (
        f"{lengths.max():,} steps"
        if lengths.min() == lengths.max()
        else f"{lengths.min():,} to {lengths.max():,} steps"
    )
    if schema.patch > 1:
        steps += f" of {schema.patch} samples"
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
