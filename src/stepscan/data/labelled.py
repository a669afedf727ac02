"""Sequences with one label each: a class, a number, or a text that the sequence spells.

    inputs    the channels, centred and scaled by the training part and kept within 10 deviations,
              0 where missing; for each channel that misses values in training, a flag; words as
              categories, id 0 for one that training has not shown
    asked     a class ("label") or a number ("value", scaled) after the last step, or after every
              one; a text as symbols ("symbol", at the first steps) and where it ends ("end"),
              see `train.objectives`

A step is one sample of a sequence, or several (`data.patches`): then its channels are those of its
first sample, those of its second ...
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int

from stepscan.data.base import DataError, Packed, Schema
from stepscan.data.patches import fold, steps_of
from stepscan.data.sequences import (
    LabelledColumns,
    Sequences,
    from_arrays,
    from_table,
    together,
)
from stepscan.data.tables import Table

LARGEST = 10.0  # of channels, in standard deviations: one wild reading stays one


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
    patch: int
    """Samples of a step."""
    longest: int
    """Steps of the longest training sequence."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """One column a column of words."""
        return tuple(len(values) + 1 for values in self.values)

    @property
    def reals(self) -> int:
        """Channels, then flags, of each sample of a step."""
        return self.patch * (len(self.channels) + len(self.flagged))

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

    def samples(self, piece: Any) -> Float[torch.Tensor, "N C"]:
        """The channels and flags of some samples of one sequence, not yet made into steps."""
        return _samples(self, self._one(piece, 1))

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


def pack(schema: LabelledSchema, found: Sequences) -> Packed:
    """Sequences as a model reads them, and what is asked, if they have labels."""
    samples = torch.from_numpy(found.lengths)
    steps = steps_of(samples, schema.patch)
    starts = torch.zeros(int(steps.sum()), dtype=torch.bool)
    starts[steps.cumsum(0) - steps] = True
    columns = [
        _places(found.words[c], values)
        for c, values in zip(schema.words, schema.values, strict=True)
    ]
    reals = None
    if schema.reals:
        reals = _samples(schema, found)
        reals = reals if schema.patch == 1 else fold(reals, samples, schema.patch)
    return Packed(
        starts,
        tokens=torch.from_numpy(np.stack(columns, 1).astype(np.int32)) if columns else None,
        reals=reals,
        targets=_targets(schema, found.answers, steps.numpy()),
    )


def _samples(schema: LabelledSchema, found: Sequences) -> Float[torch.Tensor, "N C"]:
    """Channels, scaled, and flags."""
    shape = int(found.lengths.sum()), len(schema.channels) + len(schema.flagged)
    reals = np.zeros(shape, np.float32)
    for i, (c, center, scale) in enumerate(
        zip(schema.channels, schema.center, schema.scale, strict=True)
    ):
        values = np.clip((found.channels[c] - center) / scale, -LARGEST, LARGEST)
        reals[:, i] = np.nan_to_num(values, nan=0.0)
    for i, c in enumerate(schema.flagged, len(schema.channels)):
        reals[:, i] = np.isnan(found.channels[c])
    return torch.from_numpy(reals)


def _targets(
    schema: LabelledSchema, answers: list[Any] | None, lengths: Int[np.ndarray, " S"]
) -> dict[str, torch.Tensor]:
    """What is asked of sequences of so many steps."""
    if answers is None:
        return {}
    steps, ends = int(lengths.sum()), lengths.cumsum()
    last = np.ones(steps, bool)
    if not schema.every:
        last[:] = False
        last[ends - 1] = True
    if schema.answer == "class":
        which = {c: i for i, c in enumerate(schema.classes)}
        codes = np.array([which.get(a, -1) for a in answers], np.int32)
        return {"label": torch.from_numpy(np.where(last, np.repeat(codes, lengths), -1))}
    if schema.answer == "number":
        scaled = (np.array(answers, np.float64) - schema.middle) / schema.spread
        value = np.where(last, np.repeat(scaled, lengths), np.nan).astype(np.float32)
        return {"value": torch.from_numpy(value)[:, None]}
    symbols = {c: i for i, c in enumerate(schema.classes, 1)}
    symbol = np.full(steps, -1, np.int32)
    for begin, text in zip(ends - lengths, answers, strict=True):
        symbol[begin : begin + len(text)] = [symbols[c] for c in text]
    end = np.where(last, np.repeat(lengths, lengths), -1).astype(np.int32)
    return {"symbol": torch.from_numpy(symbol), "end": torch.from_numpy(end)}


def _places(words: np.ndarray, values: tuple[str, ...]) -> Int[np.ndarray, " N"]:
    which = {value: i for i, value in enumerate(values, 1)}
    return np.array([which.get(word, 0) for word in words], np.int64)
