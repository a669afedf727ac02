"""What a program is made of; each writes its words as kernels/cpp/decode reads them."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from stepscan.generate.compiled.memory import Place
from stepscan.generate.compiled.weights import PANEL, Packed

Address = Callable[[Place | None], int]
WORTH = 8192  # multiply-adds from which waiting for another thread costs less than it saves
PART = 1 << 18  # multiply-adds of a part, where there are enough
MOST = 64  # parts: enough for an even end
STRIP = 64  # columns of a memory, 16 lanes times 4: fewer lanes make more strips
TYPES = (torch.float32, torch.float64, torch.int64, torch.bool)


@runtime_checkable
class Instruction(Protocol):
    """One step of a program."""

    kind: int

    @property
    def reads(self) -> list[Place]:
        """Places read."""
        ...

    @property
    def writes(self) -> list[Place]:
        """Places written."""
        ...

    @property
    def work(self) -> int:
        """Multiply-adds, about."""
        ...

    @property
    def most(self) -> int:
        """Parts that it may be cut into."""
        ...

    def words(self, address: Address) -> list[int]:
        """What follows the head of the instruction."""
        ...


@dataclass(eq=False)
class Product:
    """y = W x + add, for one or several W below each other."""

    weight: Packed
    x: Place
    add: Place | None
    y: Place
    kind: int = 0

    @property
    def reads(self) -> list[Place]:
        """Places read."""
        return [self.x] if self.add is None else [self.x, self.add]

    @property
    def writes(self) -> list[Place]:
        """Places written."""
        return [self.y]

    @property
    def work(self) -> int:
        """Multiply-adds, about."""
        return self.weight.rows * self.weight.columns

    @property
    def most(self) -> int:
        """Parts that it may be cut into: panels."""
        return -(-self.weight.rows // PANEL)

    def words(self, address: Address) -> list[int]:
        """As `run_product` reads them."""
        w = self.weight
        scales = 0 if w.scales is None else w.scales.data_ptr()
        where = map(address, (self.x, self.add, self.y))
        return [w.format, w.rows, w.columns, w.data.data_ptr(), scales, *where]


@dataclass(eq=False)
class Along:
    """Numbers [H, K] of each head, or of several heads; None where there are none."""

    place: Place | None
    each: int = 1

    def words(self, address: Address) -> list[int]:
        """As `Along` of memory_step.h."""
        if self.place is None:
            return [0, 1, 0, 0]
        (heads, keys), (head, key) = self.place.shape, self.place.strides
        return [address(self.place), self.each, head if heads > 1 else 0, key if keys > 1 else 0]


@dataclass(eq=False)
class MemoryStep:
    """See kernels/cpp/decode/memory_step.h."""

    sizes: tuple[int, int, int]
    write: int
    before: Place
    after: Place
    vectors: tuple[Along, Along, Along, Along, Along]
    """Decay, erase, w, u, q."""
    v: Place
    y: Place | None
    kind: int = 2

    ADD, CORRECT, TRANSFER = range(3)

    @property
    def reads(self) -> list[Place]:
        """Places read."""
        return [self.before, self.v, *(a.place for a in self.vectors if a.place is not None)]

    @property
    def writes(self) -> list[Place]:
        """Places written."""
        return [self.after] if self.y is None else [self.after, self.y]

    @property
    def work(self) -> int:
        """Multiply-adds, about."""
        return 3 * self.before.numel

    @property
    def most(self) -> int:
        """Parts that it may be cut into: heads, and strips of columns."""
        heads, _, values = self.sizes
        return heads * -(-values // STRIP)

    def words(self, address: Address) -> list[int]:
        """As `run_memory` reads them."""
        vectors = [word for along in self.vectors for word in along.words(address)]
        head = [*self.sizes, self.write, address(self.before), address(self.after)]
        return [*head, *vectors, address(self.v), self.v.strides[0], address(self.y)]


@dataclass(eq=False)
class AttentionStep:
    """See kernels/cpp/decode/attention_step.h. The first five words are those of `_Cache`."""

    q: Place
    k: Place
    v: Place
    y: Place
    bias: Place | None
    sink: Place | None
    window: int | None
    grown: tuple[Place, Place]
    """Keys and values of the state that the trace began with: which cache this is."""
    kind: int = 3
    work: int = 1 << 20  # it grows

    @property
    def most(self) -> int:
        """Parts that it may be cut into: groups of heads."""
        return self.v.shape[0]

    @property
    def reads(self) -> list[Place]:
        """Places read."""
        return [p for p in (self.q, self.k, self.v, self.bias, self.sink) if p is not None]

    @property
    def writes(self) -> list[Place]:
        """Places written."""
        return [self.y]

    def words(self, address: Address) -> list[int]:
        """As `run_attention` reads them."""
        (heads, keys), (groups, values) = self.q.shape, self.v.shape
        window = (1 << 62) if self.window is None else self.window
        where = [address(self.q), address(self.k), address(self.v), address(self.bias)]
        distances = 0 if self.bias is None else self.bias.shape[1]
        sizes = [window, heads, groups, keys, values]
        return [0] * 5 + sizes + [*where, distances, address(self.sink), address(self.y)]


@dataclass(eq=False)
class Rows:
    """A function of each row: see kernels/cpp/decode/row_steps.h."""

    step: int
    x: Place
    weight: Place | None
    bias: Place | None
    epsilon: float
    y: Place
    columns: int
    kind: int = 4

    SOFTMAX, LOG_SOFTMAX, LAYER_NORM, CUMULATE = range(4)

    @property
    def reads(self) -> list[Place]:
        """Places read."""
        return [p for p in (self.x, self.weight, self.bias) if p is not None]

    @property
    def writes(self) -> list[Place]:
        """Places written."""
        return [self.y]

    @property
    def work(self) -> int:
        """Multiply-adds, about."""
        return 8 * self.x.numel

    @property
    def most(self) -> int:
        """Parts that it may be cut into: rows."""
        return self.x.numel // self.columns

    def words(self, address: Address) -> list[int]:
        """As `run_rows` reads them."""
        sizes = [self.step, self.x.numel // self.columns, self.columns, bits(self.epsilon)]
        return [*sizes, *map(address, (self.x, self.weight, self.bias, self.y))]


@dataclass(eq=False)
class Lookup:
    """Rows of a table, by number."""

    table: Tensor
    numbers: Place
    y: Place
    kind: int = 5
    work: int = 0
    most: int = 1

    @property
    def reads(self) -> list[Place]:
        """Places read."""
        return [self.numbers]

    @property
    def writes(self) -> list[Place]:
        """Places written."""
        return [self.y]

    def words(self, address: Address) -> list[int]:
        """As `run_lookup` reads them."""
        columns, row = self.table.shape[1], self.table.stride(0)
        numbers, y = address(self.numbers), address(self.y)
        return [self.numbers.numel, columns, row, numbers, self.table.data_ptr(), y]


@dataclass(eq=False)
class SmallProducts:
    """y [b, i, j] = a [b, i, k] m [b, k, j], with neighbouring columns j."""

    a: Place
    m: Place
    y: Place
    kind: int = 6

    @property
    def reads(self) -> list[Place]:
        """Places read."""
        return [self.a, self.m]

    @property
    def writes(self) -> list[Place]:
        """Places written."""
        return [self.y]

    @property
    def work(self) -> int:
        """Multiply-adds, about."""
        return self.a.numel * self.m.shape[-1]

    @property
    def most(self) -> int:
        """Parts that it may be cut into: rows."""
        return self.a.shape[0] * self.a.shape[1]

    def words(self, address: Address) -> list[int]:
        """As `run_small_products` reads them."""
        sizes = [*self.a.shape, self.m.shape[2]]
        a = [address(self.a), *self.a.strides]
        return [*sizes, *a, address(self.m), *self.m.strides[:2], address(self.y)]


def parts(instruction: Instruction) -> int:
    """How many parts it is cut into: 1 where one thread does it all."""
    if instruction.work < WORTH:
        return 1
    count = max(2, min(MOST, instruction.work // PART))
    return min(instruction.most, count - count % 2)  # even, for two threads to end together


def bits(x: float) -> int:
    """The bits of a double, as a whole number."""
    return struct.unpack("<q", struct.pack("<d", float(x)))[0]
