"""From operations to instructions: elementwise ones gather in loops, the others stand alone."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from stepscan.generate.compiled.instructions import TYPES, Instruction
from stepscan.generate.compiled.loops import Loop, Node, Store
from stepscan.generate.compiled.memory import Buffer, Place, fresh

OPERATIONS = (  # in the order of kernels/cpp/decode/elementwise.h
    "add sub mul div neg exp expm1 log log1p sigmoid tanh silu erf softplus sqrt rsqrt abs maximum "
    "minimum sin cos less less_equal equal where multiply_add not and or"
).split()
_NUMBERS: dict[str, int] = {name: i for i, name in enumerate(OPERATIONS)}
WIDE = (torch.float64, torch.int64)
LONGEST = 40  # values in a loop, so that registers suffice


class Values:
    """What the operands of an elementwise operation are while its loop is being written."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def __call__(self, name: str, *operands: "int | float") -> int:
        """The value of an operation on values; a float stands for itself."""
        found = [self._loop.load(x) if isinstance(x, float) else x for x in operands]
        return self._loop.add(Node(_NUMBERS[name], tuple(found)))


class Builder:
    """Collects the instructions of a program, in order."""

    def __init__(self) -> None:
        self.instructions: list[Instruction] = []
        self._open: dict[tuple[int, bool], Loop] = {}
        self._writers: dict[Buffer, list[Loop]] = {}

    def emit(self, instruction: Instruction) -> None:
        """Add an instruction, after the loops that it depends on."""
        for place in instruction.reads:
            self._settle(place)
        self.instructions.append(instruction)

    def finish(self) -> list[Instruction]:
        """All instructions."""
        for loop in list(self._open.values()):
            self._close(loop)
        return self.instructions

    def loop(
        self,
        out: Place | Sequence[Place],
        operands: "Sequence[Place | float]",
        function: Callable[..., Any],
        *,
        group: int = 0,
    ) -> None:
        """`function(values, *operands)` of broadcast operands; with a group, reduced to sums of so
        many neighbours (or, below 0, the largest of them).
        """
        outs = [out] if isinstance(out, Place) else list(out)
        places = [x for x in operands if isinstance(x, Place)]
        if odd := {x.dtype for x in (*outs, *places)} - set(TYPES):
            raise ValueError(f"compile_decoder: no rule for numbers of {odd.pop()}")
        n = outs[0].numel * max(1, abs(group))
        wide = any(place.dtype in WIDE for place in (*outs, *places))
        for place in places:
            here = self._open.get((n, wide))
            if here is None or place.key not in here.known:
                self._settle(place)
        loop = self._open.get((n, wide))
        if loop is not None and len(loop.values) + len(places) > LONGEST - 8:
            self._close(loop)
            loop = None
        if loop is None:
            loop = self._open[n, wide] = Loop(n, wide)
        found = [loop.load(x) for x in operands]
        made = function(Values(loop), *found)
        for place, value in zip(outs, [made] if isinstance(out, Place) else made, strict=True):
            if not group and place.dtype != torch.int64:  # stores of whole numbers round
                loop.known[place.key] = value
            loop.stores.append(Store(value, place, group))
            self._writers.setdefault(place.buffer, []).append(loop)

    def copy(self, out: Place, source: "Place | float") -> None:
        """Numbers as they are, or converted."""
        if isinstance(source, Place) and source.dtype.is_complex:
            self.loop(out.halves(), source.halves(), lambda _, a, b: (a, b))
        else:
            self.loop(out, [source], lambda _, x: x)

    def dense(self, place: Place) -> Place:
        """The same numbers next to each other."""
        if place.dense:
            return place
        out = fresh(place.shape, place.dtype)
        self.copy(out, place)
        return out

    def _settle(self, place: Place) -> None:
        """Close the loops that write there."""
        for loop in self._writers.pop(place.buffer, ()):
            self._close(loop)

    def _close(self, loop: Loop) -> None:
        if self._open.get((loop.n, loop.wide)) is loop:
            del self._open[loop.n, loop.wide]
            self.instructions.append(loop)
