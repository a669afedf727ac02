"""Chains of elementwise operations, fused into one pass over the numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from stepscan.generate.compiled.instructions import TYPES, Address, bits
from stepscan.generate.compiled.memory import Place

CONSTANT = len(TYPES)


class Node(NamedTuple):
    """One operation of a loop; operands are numbers of values."""

    operation: int
    operands: tuple[int, ...]


class Store(NamedTuple):
    """A result of a loop: a value, the sums of groups of it, or (below 0) their largest numbers."""

    value: int
    place: Place
    group: int


@dataclass(eq=False)
class Loop:
    """A chain of elementwise operations over n numbers. Values are loads and nodes in order."""

    n: int
    wide: bool
    values: "list[Place | float | Node]" = field(default_factory=list)
    known: dict[object, int] = field(default_factory=dict)
    stores: list[Store] = field(default_factory=list)
    kind: int = 1

    REGISTERS = 48

    def load(self, source: Place | float) -> int:
        """The value of an operand."""
        key = source.key if isinstance(source, Place) else source
        if key not in self.known:
            self.known[key] = self.add(source)
        return self.known[key]

    def add(self, value: "Place | float | Node") -> int:
        """A new value."""
        self.values.append(value)
        return len(self.values) - 1

    @property
    def nodes(self) -> list[tuple[int, Node]]:
        """Operations with the numbers of their values."""
        return [(i, v) for i, v in enumerate(self.values) if isinstance(v, Node)]

    @property
    def reads(self) -> list[Place]:
        """Places read."""
        return [v for v in self.values if isinstance(v, Place)]

    @property
    def writes(self) -> list[Place]:
        """Places written."""
        return [store.place for store in self.stores]

    @property
    def grain(self) -> int:
        """Threads part between groups, and between whole cache lines where there are none."""
        groups = {abs(store.group) for store in self.stores} - {0}
        return math.lcm(*groups) if groups else 16

    @property
    def work(self) -> int:
        """Multiply-adds, about."""
        return self.n * (len(self.values) + 2)

    @property
    def most(self) -> int:
        """Parts that it may be cut into: grains."""
        return -(-self.n // self.grain)

    def trim(self) -> None:
        """Drop what no store needs."""
        needed = {store.value for store in self.stores}
        for i, node in reversed(self.nodes):
            if i in needed:
                needed.update(node.operands)
        new: dict[int, int] = {}
        kept: list[Place | float | Node] = []
        for i, value in enumerate(self.values):
            if i in needed:
                new[i] = len(kept)
                if isinstance(value, Node):
                    value = Node(value.operation, tuple(new[j] for j in value.operands))  # noqa: PLW2901
                kept.append(value)
        self.values = kept
        self.stores = [store._replace(value=new[store.value]) for store in self.stores]
        self.known = {}

    def words(self, address: Address) -> list[int]:
        """As `run_elementwise` reads them."""
        register = self._registers()
        loads = [(i, v) for i, v in enumerate(self.values) if not isinstance(v, Node)]
        out = [self.n, self.grain, int(self.wide), len(loads)]
        for i, value in loads:
            if isinstance(value, Place):
                out += _operand(register[i], value, 0, address)
            else:
                out += [register[i], CONSTANT, 0, bits(value), 0]
        out.append(len(self.nodes))
        for i, node in self.nodes:
            operands = [register[j] for j in node.operands] + [0, 0]
            out += [node.operation, register[i], *operands[:3]]
        out.append(len(self.stores))
        for store in self.stores:
            place = store.place
            if store.group:  # one after the other, whatever the shape
                place = place._replace(shape=(place.numel,), strides=(1,))
            out += _operand(register[store.value], place, store.group, address)
        return out

    def _registers(self) -> list[int]:
        """A register for each value: free again after its last use, unless loaded once for all."""
        last = {store.value: len(self.values) for store in self.stores}
        for i, node in reversed(self.nodes):
            for j in node.operands:
                last.setdefault(j, i)
        register: list[int] = []
        free: list[int] = []
        count = 0
        for i, value in enumerate(self.values):
            if isinstance(value, Node):
                once = {
                    j for j in value.operands if last[j] == i and not _one_number(self.values[j])
                }
                free += sorted(register[j] for j in once)
            if free and not _one_number(value) and isinstance(value, Node):
                register.append(free.pop())
            else:
                register.append(count)
                count += 1
        assert count <= self.REGISTERS
        return register


def _operand(register: int, place: Place, group: int, address: Address) -> Sequence[int]:
    sizes, strides = [n for n, _ in place.dims], [s for _, s in place.dims]
    if group and not sizes:  # a single sum is stored like several
        sizes, strides = [1], [1]
    words = [register, TYPES.index(place.dtype), group, address(place), len(sizes)]
    return [*words, *sizes, *strides]


def _one_number(value: "Place | float | Node") -> bool:
    return isinstance(value, float) or (isinstance(value, Place) and not value.dims)
