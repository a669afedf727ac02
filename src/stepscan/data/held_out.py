"""Which labelled sequences are held out: as the data say, whole groups, or class by class."""

import numpy as np
from jaxtyping import Int

from stepscan.data.base import DataError, DataOptions
from stepscan.data.sequences import FREE, Sequences

HELD_OUT = (0.15, 0.2)  # valid, test


def hold_out(
    found: Sequences, classes: list[str] | None, options: DataOptions, name: str
) -> tuple[Int[np.ndarray, " S"], str]:
    """0, 1 or 2 for each sequence, and how that came about."""
    valid = HELD_OUT[0] if options.valid is None else options.valid
    test = HELD_OUT[1] if options.test is None else options.test
    if not (0 < valid < 1 and 0 < test < 1 and valid + test < 1):
        raise DataError(f"{name}: want fractions valid + test below 1, got {valid} + {test}")
    rng = np.random.default_rng(0)
    if found.parts is not None and (found.parts == 2).any():
        if options.test is not None:
            raise DataError(f"{name}: the data say which part is the test; leave --test out")
        part = np.where(found.parts == FREE, 0, found.parts)
        if (part == 1).any():
            return part, "as the data say"
        free = np.flatnonzero(part == 0)
        part[free] = _draw(free, found, classes, (valid, 0.0), rng)
        return part, f"the test part as the data say; of the rest {valid:.0%} for choosing"
    every = np.arange(len(found))
    how = "at random"
    if found.groups is not None:
        how = f'whole groups by "{options.group}", at random'
    elif classes is not None:
        how = "at random, class by class"
    return _draw(every, found, classes, (valid, test), rng), how


def _draw(
    rows: Int[np.ndarray, " M"],
    found: Sequences,
    classes: list[str] | None,
    held_out: tuple[float, float],
    rng: np.random.Generator,
) -> Int[np.ndarray, " M"]:
    """The part of each of these rows."""
    part = np.zeros(len(rows), np.int64)
    if found.groups is not None:
        _, group = np.unique(found.groups[rows].astype(str), return_inverse=True)
        order = rng.permutation(group.max() + 1)
        filled = np.cumsum(np.bincount(group)[order]) / len(rows)
        of = np.zeros(len(order), np.int64)
        of[order[filled <= held_out[0] + held_out[1]]] = 1
        of[order[filled <= held_out[1]]] = 2
        if held_out[1] and not (of == 2).any():
            of[order[0]] = 2
        if not (of == 1).any():
            of[order[1 if held_out[1] else 0] if len(order) > 1 else order[0]] = 1
        return of[group]
    label = [""] * len(rows) if classes is None else [classes[i] for i in rows]
    for one in sorted(set(label)):
        members = rng.permutation([i for i, x in enumerate(label) if x == one])
        n = len(members)
        n_test = min(n - 1, max(round(n * held_out[1]), 1)) if held_out[1] else 0
        n_valid = min(max(0, n - 1 - n_test), max(round(n * held_out[0]), 1))
        part[members[:n_test]] = 2
        part[members[n_test : n_test + n_valid]] = 1
    return part


def leaks(found: Sequences, pieces: list[np.ndarray]) -> list[str]:
    """Sequences of training that are held out too: a leak."""
    begins, columns = found.begins, [*found.channels.values(), *found.words.values()]

    def key(i: int) -> int:
        a, b = begins[i], begins[i] + found.lengths[i]
        return hash(
            tuple(c[a:b].tobytes() if c.dtype != object else tuple(c[a:b]) for c in columns)
        )

    train = {key(i) for i in pieces[0].tolist()}
    leaked = sum(key(i) in train for piece in pieces[1:] for i in piece.tolist())
    if not leaked:
        return []
    return [f"{leaked:,} held-out sequences are in the training part too, value for value"]
