"""Batches from packed sequences: stretches to learn from, and one walk over everything."""

import heapq
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.data.base import Batch, Packed


def draw(
    packed: Packed, step: int, *, rows: int, length: int, seed: int, carry: bool = False
) -> Batch:
    """The batch of training step `step`: a pure function of its arguments, so resuming is free.

    `carry=False`: windows from random places, for a fresh state; one that falls into a sequence no
    longer than the window begins with that sequence. `carry=True`: row b goes on where its window
    of step - 1 ended, around and around the packed stream, beginning at its own place.
    """
    _check(packed, rows, length)
    total = len(packed)
    if carry:
        phase = int(np.random.default_rng([seed]).integers(total))
        lanes = torch.arange(rows) * total // rows
        begin = (lanes + phase + step * length) % total
    else:
        begin = torch.from_numpy(np.random.default_rng([seed, step]).integers(total, size=rows))
        sequence = torch.searchsorted(packed.begins, begin, right=True) - 1
        short = packed.lengths[sequence] <= length
        begin = torch.where(short, packed.begins[sequence], begin)
    at = (begin[:, None] + torch.arange(length)) % total  # position 0 starts a sequence: a reset
    return gather(packed, at)


def walk(packed: Packed, *, rows: int, length: int) -> Iterator[Batch]:
    """Every step exactly once; the state is to be carried from batch to batch.

    At most one row a sequence. The last batch is as short as it can be.
    """
    for at in places(packed, rows=rows, length=length):
        yield gather(packed, at)


def places(packed: Packed, *, rows: int, length: int) -> Iterator[Int[Tensor, "B T"]]:
    """The positions of the steps of each batch of `walk`; -1 where a row has run out of sequences.

    Sequences are dealt to rows longest first, each to the row with the least to do.
    """
    _check(packed, rows, length)
    lengths = packed.lengths
    lanes = _deal(lengths.tolist(), rows)
    ends = [lengths[lane].cumsum(0) for lane in lanes]  # in the row; `shift` leads to the part
    shifts = [
        packed.begins[lane] + lengths[lane] - end for lane, end in zip(lanes, ends, strict=True)
    ]
    last = max(int(end[-1]) for end in ends)
    for start in range(0, last, length):
        step = torch.arange(start, min(start + length, last))
        at = torch.full((len(lanes), len(step)), -1)
        for row, end, shift in zip(at, ends, shifts, strict=True):
            known = step[step < end[-1]]
            row[: len(known)] = known + shift[torch.searchsorted(end, known, right=True)]
        yield at


def _deal(lengths: list[int], rows: int) -> list[Int[Tensor, " S"]]:
    """The sequences of each row, in the order they are read."""
    count = min(rows, len(lengths))
    loads = [(0, lane) for lane in range(count)]
    dealt: list[list[int]] = [[] for _ in range(count)]
    for sequence in np.argsort(-np.array(lengths), kind="stable").tolist():
        load, lane = heapq.heappop(loads)
        dealt[lane].append(sequence)
        heapq.heappush(loads, (load + lengths[sequence], lane))
    return [torch.tensor(lane) for lane in dealt]


def gather(packed: Packed, at: Int[Tensor, "B T"]) -> Batch:
    """The steps at these positions; at -1 there is an empty step alone, with nothing asked."""
    empty = at < 0
    place = at.clamp(min=0)
    tokens, reals = packed.inputs_at(place)
    targets = packed.targets_at(place)
    resets = packed.starts[place] | empty
    if empty.any():
        tokens = None if tokens is None else tokens.masked_fill(empty[..., None], 0)
        reals = None if reals is None else reals.masked_fill(empty[..., None], 0)
        targets = {name: _unask(target, empty) for name, target in targets.items()}
    return Batch(tokens, reals, resets, targets)


def _unask(target: Tensor, empty: Tensor) -> Tensor:
    nothing = torch.nan if target.is_floating_point() else -1
    return target.masked_fill(empty.view(*empty.shape, *[1] * (target.ndim - empty.ndim)), nothing)


def _check(packed: Packed, rows: int, length: int) -> None:
    if min(rows, length) < 1:
        raise ValueError(f"want rows >= 1 and length >= 1, got rows={rows}, length={length}")
    if not len(packed):
        raise ValueError("this part of the data holds no steps; hold out less for the others")
