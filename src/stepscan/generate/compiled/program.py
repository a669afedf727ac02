"""A program: instructions in memory, and the tape that `decode_step` runs."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stepscan.generate.compiled.builder import Builder
from stepscan.generate.compiled.instructions import (
    AttentionStep,
    Instruction,
    MemoryStep,
    parts,
)
from stepscan.generate.compiled.loops import Loop
from stepscan.generate.compiled.memory import LANE, Buffer, Place, fresh


class Relative(int):
    """An address in the program's own memory, whose beginning is not known yet."""


@dataclass(frozen=True)
class Program:
    """A tape still to be placed: `words[where]` are offsets into `nbytes` of memory."""

    words: np.ndarray
    where: np.ndarray
    nbytes: int
    caches: tuple[tuple[int, AttentionStep], ...]
    """Attention steps and the index of their first word."""
    instructions: tuple[Instruction, ...]


def assemble(
    builder: Builder, updates: list[tuple[Place, Place]], lasting: list[Place]
) -> tuple[Program, dict[Buffer, int]]:
    """The program, and where in its memory each buffer lies.

    Args:
        builder: Holds the instructions.
        updates: Places of the state, and those that hold what they are after the step.
        lasting: Places that keep their memory: the state, the inputs, the outputs.
    """
    for place in lasting:
        place.buffer.root()[0].lasting = True
    instructions = _update_state(builder, updates)
    instructions = _alive(instructions)
    offsets, nbytes = _give_memory(instructions, lasting)
    return _tape(instructions, offsets, nbytes), offsets


def _update_state(builder: Builder, updates: list[tuple[Place, Place]]) -> list[Instruction]:
    """Compute the new state where the old one lies, or move it there in the end."""
    instructions = builder.finish()
    moved: list[tuple[Place, Place]] = []
    for old, new in updates:
        if old.key == new.key:
            continue
        others = {source.buffer.root()[0] for _, source in updates if source is not new}
        if old.buffer not in others and _in_place(instructions, old, new):
            new.buffer.inside = old.buffer, 0
        else:
            moved.append((old, new))
    slots = {old.buffer for old, _ in updates}
    for i, (old, new) in enumerate(moved):
        if new.buffer.root()[0] in slots:  # about to be overwritten
            aside = fresh(new.shape, new.dtype)
            builder.copy(aside, new)
            moved[i] = old, aside
    builder.finish()
    for old, new in moved:
        builder.copy(old, new)
    return builder.finish()


def _in_place(instructions: list[Instruction], old: Place, new: Place) -> bool:
    """Whether the instruction that makes `new` may write over `old`."""
    whole = new.offset == 0 and new.dense and new.numel * new.dtype.itemsize == new.buffer.nbytes
    ours = new.buffer.inside is None and not new.buffer.lasting and new.dtype == old.dtype
    makers = [
        i
        for i, instruction in enumerate(instructions)
        if any(place.buffer is new.buffer for place in instruction.writes)
    ]
    if not whole or not ours or len(makers) != 1:
        return False
    maker, later = instructions[makers[0]], instructions[makers[0] + 1 :]
    if any(_reads_of(old, instruction) for instruction in later):
        return False
    found = _reads_of(old, maker)
    same = all(place.dims == old.dims and place.start == 0 for place in found)
    if isinstance(maker, MemoryStep):
        return same and all(place is maker.before for place in found)
    if isinstance(maker, Loop):  # block after block: loaded, then stored in the same place
        stores = [store for store in maker.stores if store.place.buffer is new.buffer]
        return same and all(not s.group and s.place.dims == old.dims for s in stores)
    return not found


def _reads_of(old: Place, instruction: Instruction) -> list[Place]:
    return [place for place in instruction.reads if place.buffer.root()[0] is old.buffer]


def _alive(instructions: list[Instruction]) -> list[Instruction]:
    """Without what nobody reads."""
    count = -1
    while count != (count := sum(len(x.writes) for x in instructions)):
        read = {place.buffer.root()[0] for x in instructions for place in x.reads}
        wanted = lambda place: (  # noqa: E731
            (root := place.buffer.root()[0]).lasting or root in read  # noqa: B023
        )
        for loop in instructions:
            if isinstance(loop, Loop):
                loop.stores = [store for store in loop.stores if wanted(store.place)]
                loop.trim()
        instructions = [x for x in instructions if any(map(wanted, x.writes))]
    return instructions


def _give_memory(
    instructions: list[Instruction], lasting: list[Place]
) -> tuple[dict[Buffer, int], int]:
    """Offsets of all buffers; those that are not in use at the same time may share memory."""
    span: dict[Buffer, tuple[int, int]] = {}
    forever = -1, len(instructions)
    for place in lasting:
        span[place.buffer.root()[0]] = forever
    for i, instruction in enumerate(instructions):
        for place in (*instruction.writes, *instruction.reads):
            root = place.buffer.root()[0]
            if root.constant is None:
                start, end = span.get(root, (i, i))
                span[root] = start, max(end, i)
    offsets: dict[Buffer, int] = {}
    active: list[tuple[int, int, int]] = []  # first byte, byte behind the last, last use
    nbytes = 0
    for buffer, (start, end) in sorted(span.items(), key=lambda item: item[1][0]):
        active = sorted(part for part in active if part[2] >= start)
        size, offset = -(-buffer.nbytes // LANE) * LANE, 0
        for first, behind, _ in active:
            if offset + size <= first:
                break
            offset = max(offset, behind)
        offsets[buffer] = offset
        active.append((offset, offset + size, end))
        nbytes = max(nbytes, offset + size)
    return offsets, nbytes


def _tape(instructions: list[Instruction], offsets: dict[Buffer, int], nbytes: int) -> Program:
    def address(place: Place | None) -> int:
        if place is None:
            return 0
        root, _ = place.buffer.root()
        if root.constant is not None:
            return root.constant.untyped_storage().data_ptr() + place.start
        return Relative(offsets[root] + place.start)

    words: list[int] = []
    caches: list[tuple[int, AttentionStep]] = []
    for instruction, how in zip(instructions, _schedule(instructions, offsets), strict=True):
        rest = instruction.words(address)
        words += [instruction.kind, len(rest), *how]
        if isinstance(instruction, AttentionStep):
            caches.append((len(words), instruction))
        words += rest
    where = [i for i, word in enumerate(words) if isinstance(word, Relative)]
    tape = np.array(words, np.int64), np.array(where, np.int64)
    return Program(*tape, nbytes, tuple(caches), tuple(instructions))


class Touch(NamedTuple):
    """Bytes that an instruction reads or writes, and the part of the schedule that it is in."""

    low: int
    high: int
    written: bool
    unit: int


def _schedule(instructions: list[Instruction], offsets: dict[Buffer, int]) -> list[tuple[int, int]]:
    """Of each instruction its number of parts, and whether all that came before must be done.

    It must where an instruction touches what others touch since the last such wait, and one of them
    writes. Neighbours in one part make a unit, done by one thread in order: the first counts as one
    part, the others as none.
    """
    schedule: list[tuple[int, int]] = []
    touched: list[Touch] = []
    unit, joins = -1, False
    for instruction in instructions:
        count = parts(instruction)
        joins = joins and count == 1
        unit += not joins
        own = [
            Touch(low + offsets[root], high + offsets[root], written, unit)
            for written, places in ((False, instruction.reads), (True, instruction.writes))
            for place in places
            if (root := place.buffer.root()[0]).constant is None
            for low, high in [place.span]
        ]
        wait = any(
            (a.written or b.written) and a.unit != b.unit and a.low < b.high and b.low < a.high
            for a in own
            for b in touched
        )
        if wait:
            touched.clear()
            unit, joins = unit + 1, False
            own = [touch._replace(unit=unit) for touch in own]
        schedule.append((0 if joins else count, int(wait)))
        touched += own
        joins = count == 1
    return schedule
