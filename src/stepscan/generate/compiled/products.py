"""Rules for products of matrices."""

from collections.abc import Iterator

import torch

from stepscan.generate.compiled.context import Context, Rule
from stepscan.generate.compiled.instructions import Product, SmallProducts
from stepscan.generate.compiled.memory import Place, constant, fresh
from stepscan.generate.compiled.trace import Step
from stepscan.generate.compiled.weights import PANEL, pack


def _mm(c: Context, outs: list[Place], x: Place, weight: Place) -> None:
    _product(c, outs[0], x, weight, None)


def _addmm(
    c: Context,
    outs: list[Place],
    bias: Place,
    x: Place,
    weight: Place,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> None:
    if (beta, alpha) != (1, 1):
        raise ValueError("compile_decoder: no rule for addmm with factors")
    _product(c, outs[0], x, weight, bias)


def _product(c: Context, out: Place, x: Place, weight: Place, add: Place | None) -> None:
    if weight.buffer.constant is None or x.dtype != torch.float32:
        _bmm(c, [_under(out)], _under(x), _under(weight))
        if add is not None:
            raise ValueError("compile_decoder: no rule for a product of two changing matrices")
        return
    source = c.steps[c.at]
    if len(x.shape) == 2 and x.shape[0] == 1 and _const(add):
        _products(c, [(out, weight, add), *_with_same(c, source)], c.builder.dense(x))
        return
    packed = pack(weight.value.mT, c.dtype)
    for row in range(x.shape[0]):
        each = None if add is None else add.expand(out.shape).at(row)
        each = None if each is None else c.builder.dense(each)
        y = out.at(row)
        c.builder.emit(Product(packed, c.builder.dense(x.at(row)), each, y))


def _with_same(c: Context, source: Step) -> Iterator[tuple[Place, Place, Place | None]]:
    """Later products of constant weights with the same x, which are then done."""
    x = source.args[-2]
    for i in range(c.at + 1, len(c.steps)):
        step = c.steps[i]
        if step.name not in ("aten.mm", "aten.addmm") or step.options:
            continue
        add = step.args[0] if step.name == "aten.addmm" else None
        weight = step.args[-1]
        if step.args[-2].key == x.key and step.args[-2].shape == x.shape and _const(add):
            if weight.buffer.constant is not None:
                c.done.add(i)
                yield step.outs[0], weight, add


def _products(c: Context, parts: list[tuple[Place, Place, Place | None]], x: Place) -> None:
    """Several matrices below each other: one instruction, and panels filled."""
    weights = [weight.value.mT for _, weight, _ in parts]
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]
    rows = [out.numel for out, _, _ in parts]
    y = fresh((sum(rows),))
    add: Place | None = None
    if any(bias is not None for _, _, bias in parts):
        values = [
            torch.zeros(n) if bias is None else bias.value.expand(1, n)[0]
            for n, (_, _, bias) in zip(rows, parts, strict=True)
        ]
        add = constant(torch.cat(values))
    start = 0
    for n, (out, _, _) in zip(rows, parts, strict=True):
        out.buffer.inside = y.buffer, start * y.dtype.itemsize
        start += n
    c.builder.emit(Product(pack(weight, c.dtype), x, add, y))


def _bmm(c: Context, outs: list[Place], a: Place, m: Place) -> None:
    out = outs[0]
    if a.buffer.constant is not None and out.shape[2] == 1:  # the other way round
        flipped = [0, 2, 1]
        _bmm(c, [out.permute(flipped)], m.permute(flipped), a.permute(flipped))
        return
    batch, inner, columns = m.shape
    if m.buffer.constant is not None and a.shape[1] == 1 and min(inner, columns) >= PANEL:
        for b in range(batch):
            packed = pack(m.value[b].mT, c.dtype)
            x = c.builder.dense(a.at(b, 0))
            c.builder.emit(Product(packed, x, None, out.at(b, 0)))
        return
    if m.strides[2] != 1 and columns > 1:
        m = constant(m.value.contiguous()) if _const(m) else c.builder.dense(m)
    c.builder.emit(SmallProducts(a, m, out))


def _const(place: Place | None) -> bool:
    return place is None or place.buffer.constant is not None


def _under(place: Place) -> Place:
    """As a batch of one."""
    return place._replace(shape=(1, *place.shape), strides=(0, *place.strides))


RULES: dict[str, Rule] = {
    "mm": _mm,
    "addmm": _addmm,
    "bmm": _bmm,
}
