"""Rules for what only moves numbers."""

from typing import Any

from stepscan.generate.compiled.context import Context, Rule
from stepscan.generate.compiled.instructions import Lookup
from stepscan.generate.compiled.memory import Place


def clone(c: Context, outs: list[Place], x: Place, **_: Any) -> None:
    """The same numbers, perhaps in another dtype."""
    out = outs[0]
    same = x.dtype == out.dtype and x.buffer.constant is None and x.dims == out.dims
    if same:  # nobody writes twice, so one memory serves both
        out.buffer.inside = x.buffer, x.offset * x.dtype.itemsize
    else:
        c.builder.copy(out, x)


def _copy(c: Context, outs: list[Place], _: Place, source: Place, *__: Any) -> None:
    clone(c, outs, source.expand(outs[0].shape))


def _cat(c: Context, outs: list[Place], parts: list[Place], dim: int = 0) -> None:
    out, start = outs[0], 0
    dim %= len(out.shape)
    for part in parts:
        if len(part.shape) != len(out.shape) or not part.numel:
            continue  # torch allows an empty vector among them
        place = out.part(dim, start, part.shape[dim])
        start += part.shape[dim]
        if place.dense and part.dense:  # in one piece, so that readers may look at the source
            c.cats.setdefault(out.buffer, []).append((*place.span, part))
        c.builder.copy(place, part)


def _stack(c: Context, outs: list[Place], parts: list[Place], dim: int = 0) -> None:
    dim %= len(outs[0].shape)
    order = [i for i in range(len(outs[0].shape)) if i != dim]
    for i, part in enumerate(parts):
        place = outs[0].permute([dim, *order]).at(i)
        if place.dense and part.dense:
            c.cats.setdefault(outs[0].buffer, []).append((*place.span, part))
        c.builder.copy(place, part)


def _pad(c: Context, outs: list[Place], x: Place, sizes: list[int], value: float = 0) -> None:
    if min(sizes) < 0:
        raise ValueError("compile_decoder: no rule for padding that cuts")
    place = outs[0]
    for i in range(len(sizes) // 2):
        dim, (before, after) = len(x.shape) - 1 - i, sizes[2 * i : 2 * i + 2]
        for start, size in ((0, before), (place.shape[dim] - after, after)):
            if size:
                c.builder.copy(place.part(dim, start, size), float(value))
        place = place.part(dim, before, x.shape[dim])
    c.builder.copy(place, x)


def _flip(c: Context, outs: list[Place], x: Place, dims: list[int]) -> None:
    for dim in dims:
        last = x.offset + (x.shape[dim] - 1) * x.strides[dim]
        strides = list(x.strides)
        strides[dim] = -strides[dim]
        x = x._replace(offset=last, strides=tuple(strides))
    c.builder.copy(outs[0], x)


def _embedding(c: Context, outs: list[Place], table: Place, numbers: Place, *_: Any) -> None:
    c.builder.emit(Lookup(table.value, c.builder.dense(numbers), outs[0]))


def _cummax(c: Context, outs: list[Place], x: Place, dim: int) -> None:
    if x.shape[dim] != 1:
        raise ValueError("compile_decoder: no rule for cummax of several numbers")
    c.builder.copy(outs[0], x)
    c.builder.copy(outs[1], 0.0)


RULES: dict[str, Rule] = {
    "clone": clone,
    "_to_copy": clone,
    "copy": _copy,
    "cat": _cat,
    "stack": _stack,
    "constant_pad_nd": _pad,
    "flip": _flip,
    "embedding": _embedding,
    "cummax": _cummax,
}
