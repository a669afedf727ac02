"""Where the numbers of a program lie.

A buffer is one stretch of memory, a place is a strided view of one: as a
tensor of its storage.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

LANE = 64  # bytes that buffers are aligned to


@dataclass(eq=False)
class Buffer:
    """One storage of the trace. Constant ones lie outside of the program's own memory."""

    nbytes: int
    constant: Tensor | None = None
    lasting: bool = False
    """Holds a number from step to step, or for the caller: its memory is its own."""
    inside: "tuple[Buffer, int] | None" = None
    """Another buffer and the bytes into it where this one lies, if it has no memory of its own."""

    def root(self) -> "tuple[Buffer, int]":
        """The buffer that has the memory, and the bytes into it."""
        if self.inside is None:
            return self, 0
        buffer, offset = self.inside[0].root()
        return buffer, offset + self.inside[1]


class Place(NamedTuple):
    """A strided view of a buffer; offset and strides count elements."""

    buffer: Buffer
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)

    @property
    def dims(self) -> tuple[tuple[int, int], ...]:
        """Sizes and strides, as few as they can be: equal for equal views."""
        merged: list[tuple[int, int]] = []
        for size, stride in zip(self.shape, self.strides, strict=True):
            if size == 1:
                continue
            if merged and merged[-1][1] == stride * size:
                merged[-1] = merged[-1][0] * size, stride
            elif merged and merged[-1][1] == stride == 0:
                merged[-1] = merged[-1][0] * size, 0
            else:
                merged.append((size, stride))
        return tuple(merged)

    @property
    def key(self) -> tuple[Buffer, torch.dtype, int, tuple[tuple[int, int], ...]]:
        """Equal for places that hold the same numbers in the same order."""
        return self.buffer, self.dtype, self.offset, self.dims

    @property
    def dense(self) -> bool:
        """Whether the numbers lie next to each other, in their order."""
        return self.dims in ((), ((self.numel, 1),))

    @property
    def start(self) -> int:
        """Bytes into the memory of the root buffer."""
        return self.buffer.root()[1] + self.offset * self.dtype.itemsize

    @property
    def span(self) -> tuple[int, int]:
        """First byte and the one behind the last, in the root buffer."""
        steps = [(n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)]
        low, high = sum(min(s, 0) for s in steps), sum(max(s, 0) for s in steps)
        return self.start + low * self.dtype.itemsize, self.start + (high + 1) * self.dtype.itemsize

    @property
    def value(self) -> Tensor:
        """The numbers of a constant."""
        tensor = self.buffer.constant
        assert tensor is not None
        flat = torch.empty(0, dtype=self.dtype).set_(tensor.untyped_storage())  # type: ignore[arg-type]
        return flat.as_strided(self.shape, self.strides, self.offset)

    def expand(self, shape: tuple[int, ...]) -> "Place":
        """Broadcast as in torch."""
        sizes = (1,) * (len(shape) - len(self.shape)) + self.shape
        strides = (0,) * (len(shape) - len(self.shape)) + self.strides
        both = zip(sizes, shape, strides, strict=True)
        return self._replace(shape=shape, strides=tuple(0 if a != b else s for a, b, s in both))

    def part(self, dim: int, start: int, length: int) -> "Place":
        """`narrow` of torch."""
        shape = (*self.shape[:dim], length, *self.shape[dim + 1 :])
        return self._replace(shape=shape, offset=self.offset + start * self.strides[dim])

    def at(self, *index: int) -> "Place":
        """One index of each of the first dimensions."""
        steps = sum(i * s for i, s in zip(index, self.strides, strict=False))
        rest = slice(len(index), None)
        return Place(
            self.buffer, self.dtype, self.offset + steps, self.shape[rest], self.strides[rest]
        )

    def permute(self, order: list[int]) -> "Place":
        """Dimensions in another order."""
        shape, strides = (tuple(x[i] for i in order) for x in (self.shape, self.strides))
        return self._replace(shape=shape, strides=strides)

    def halves(self) -> "tuple[Place, Place]":
        """Real and imaginary parts of complex numbers."""
        strides = tuple(2 * s for s in self.strides)
        real = Place(self.buffer, torch.float32, 2 * self.offset, self.shape, strides)
        return real, real._replace(offset=real.offset + 1)


def fresh(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Place:
    """A contiguous place in a buffer of its own."""
    strides = torch.empty(shape, device="meta").stride()
    buffer = Buffer(max(1, math.prod(shape)) * dtype.itemsize)
    return Place(buffer, dtype, 0, shape, strides)


def constant(tensor: Tensor) -> Place:
    """A place that holds these numbers."""
    buffer = Buffer(tensor.untyped_storage().nbytes(), constant=tensor)
    return Place(
        buffer, tensor.dtype, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride()
    )
