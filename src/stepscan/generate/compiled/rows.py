"""Rules for sums, norms and other functions of a row."""

import math
from typing import Any

import torch

from stepscan.generate.compiled.context import Context, Rule
from stepscan.generate.compiled.elementwise import Function
from stepscan.generate.compiled.instructions import Rows
from stepscan.generate.compiled.memory import Place


def _total(
    c: Context,
    outs: list[Place],
    x: Place,
    dims: list[int] | None = None,
    keepdim: bool = False,
    **_: Any,
) -> None:
    _reduce(c, outs[0], x, dims, lambda _, x: x, 1)


def _mean(
    c: Context,
    outs: list[Place],
    x: Place,
    dims: list[int] | None = None,
    keepdim: bool = False,
    **_: Any,
) -> None:
    share = outs[0].numel / x.numel
    _reduce(c, outs[0], x, dims, lambda f, x: f("mul", x, share), 1)


def _largest(
    c: Context, outs: list[Place], x: Place, dims: list[int] | None = None, keepdim: bool = False
) -> None:
    _reduce(c, outs[0], x, dims, lambda _, x: x, -1)


def _reduce(
    c: Context, out: Place, x: Place, dims: list[int] | None, function: Function, sign: int
) -> None:
    if x.dtype != torch.float32:
        raise ValueError(f"compile_decoder: no rule for a sum of {x.dtype}")
    every = range(len(x.shape))
    gone = sorted(d % len(x.shape) for d in dims) if dims else list(every)
    order = [d for d in every if d not in gone and x.shape[d] > 1] + gone
    last = x.permute(order) if order else x
    c.builder.loop(out, [last], function, group=sign * (x.numel // out.numel))


def _layer_norm(
    c: Context,
    outs: list[Place],
    x: Place,
    shape: list[int],
    weight: Place | None,
    bias: Place | None,
    epsilon: float,
) -> None:
    _rows(c, Rows.LAYER_NORM, outs[0], x, math.prod(shape), weight, bias, epsilon)


def _softmax(c: Context, outs: list[Place], x: Place, dim: int, half: bool) -> None:
    _row_function(c, Rows.SOFTMAX, outs[0], x, dim)


def _log_softmax(c: Context, outs: list[Place], x: Place, dim: int, half: bool) -> None:
    _row_function(c, Rows.LOG_SOFTMAX, outs[0], x, dim)


def _cumulate(c: Context, outs: list[Place], x: Place, dim: int, **_: Any) -> None:
    _row_function(c, Rows.CUMULATE, outs[0], x, dim)


def _row_function(c: Context, step: int, out: Place, x: Place, dim: int) -> None:
    if dim % len(x.shape) != len(x.shape) - 1 or x.dtype != torch.float32:
        raise ValueError("compile_decoder: rows must be the last dimension, of float32")
    _rows(c, step, out, x, x.shape[-1], None, None, 0.0)


def _rows(
    c: Context,
    step: int,
    out: Place,
    x: Place,
    columns: int,
    weight: Place | None,
    bias: Place | None,
    epsilon: float,
) -> None:
    x = c.builder.dense(x)
    c.builder.emit(Rows(step, x, weight, bias, epsilon, out, columns))


RULES: dict[str, Rule] = {
    "sum": _total,
    "mean": _mean,
    "amax": _largest,
    "native_layer_norm": _layer_norm,
    "_softmax": _softmax,
    "_log_softmax": _log_softmax,
    "cumsum": _cumulate,
}
