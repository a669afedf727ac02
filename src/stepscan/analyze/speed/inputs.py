"""Every op's inputs at a chosen size, and the work of a token.

The sizes are those of a model of width `heads * size` as published: Mamba's inner width is twice
that, with 16 states a channel; Mamba-2 and Mamba-3 have heads of `size` over the same inner width,
with `2 * size` states and one group; recurrent cells have `2 * size` units, wide ones `8 * size`.
"""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stepscan.ops import (
    attention,
    cells,
    chunk_attention,
    dag_scan,
    delta_rule,
    diagonal_cells,
    dilated_conv,
    dplr,
    dplr_conv,
    feedback_attention,
    forgetting_attention,
    grid_scan,
    linear_attention,
    linear_scan,
    local_regression,
    log_linear_attention,
    long_conv,
    path_attention,
    ridge_regression,
    scan2d,
    selective_scan,
    semiring_matrix_scan,
    semiring_scan,
    short_conv,
    slot_attention,
    softmax_scan,
    ssm_conv,
    state_space,
    test_time_scan,
    trapezoid_scan,
)
from stepscan.ops.discretize import discretize
from stepscan.ops.dplr_conv import System
from stepscan.ops.hippo import hippo, normal_part
from stepscan.ops.memory_network import Rule

STATES, WINDOW, KERNEL, VARIATES = 16, 64, 256, 4
CHUNK = 32
"""Tokens that a chunked form meets at once, where the work it needs is counted."""

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class Work(NamedTuple):
    """What a token costs at the least, forward, however the op is computed."""

    multiply_adds: float = 0
    exponentials: float = 0


class Sizes(NamedTuple):
    """What an op's inputs are made for."""

    batch: int
    T: int
    heads: int
    size: int
    rng: torch.Generator

    @property
    def width(self) -> int:
        """Of a model with these heads."""
        return self.heads * self.size

    def randn(self, *shape: int) -> Tensor:
        """Normal numbers for each row and token."""
        return torch.randn(self.batch, self.T, *shape, generator=self.rng)

    def rand(self, *shape: int) -> Tensor:
        """Uniform numbers for each row and token."""
        return torch.rand(self.batch, self.T, *shape, generator=self.rng)

    def weight(self, *shape: int) -> Tensor:
        """Normal numbers, the same for all tokens."""
        return torch.randn(*shape, generator=self.rng)


Built = tuple[Inputs, Work]


def _linear_scan(s: Sizes) -> Built:
    return ((s.rand(s.width), s.randn(s.width)), {}), Work(s.width)


def _semiring_scan(s: Sizes, *, semiring: str, exponentials: int) -> Built:
    work = Work(exponentials=exponentials * s.width)
    return ((s.randn(s.width), s.randn(s.width), semiring), {}), work


def _semiring_matrix_scan(s: Sizes) -> Built:
    shape = s.width // 2, 2  # neurons of two numbers each
    return ((s.randn(*shape, 2), s.randn(*shape), "min_max"), {}), Work(2 * s.width)


def _selective_scan(s: Sizes) -> Built:
    inner = 2 * s.width
    A = -torch.arange(1.0, STATES + 1).expand(inner, -1).contiguous()
    options = {"A": A, "B": s.randn(STATES), "C": s.randn(STATES)}
    options |= {"D": s.weight(inner), "z": s.randn(inner), "dt_bias": s.weight(inner) - 3}
    work = Work(multiply_adds=2 * inner * STATES, exponentials=inner * (STATES + 2))
    return ((s.randn(inner), s.randn(inner)), options), work


def _qkv(s: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (s.randn(s.heads, s.size) for _ in "qkv")
    return q, F.normalize(k, dim=-1), v


def _matrix_work(s: Sizes, products: float, pairs: float) -> Work:
    """Products with the state, K x V each, and pairs of tokens in half a chunk, K or V each."""
    return Work(s.heads * (products * s.size**2 + pairs * s.size * CHUNK / 2))


def _decays(s: Sizes, kind: str) -> dict[str, Tensor]:
    shapes = {"none": None, "decay": (s.heads,), "decays": (s.heads, s.size)}
    shape = shapes[kind]
    return {} if shape is None else {"log_decay": -s.rand(*shape) / 4}


def _linear_attention(s: Sizes, *, decay: str) -> Built:
    return (_qkv(s), _decays(s, decay)), _matrix_work(s, products=2, pairs=2)


def steps_of_mamba2(heads: int) -> Tensor:
    """A of Mamba-2's heads, from -16 to -1."""
    return -torch.linspace(1, 16, heads)


def _mamba2(s: Sizes) -> Built:
    heads, states = 2 * s.heads, 2 * s.size
    dt = 0.001 + 0.1 * s.rand(heads)
    q, k = (s.randn(1, states) / states**0.5 for _ in "qk")
    v, g = s.randn(heads, s.size) * dt[..., None], steps_of_mamba2(heads) * dt
    inside = CHUNK / 2 * (states + heads * s.size)  # the scores are the same for all heads
    return ((q, k, v), {"log_decay": g}), Work(inside + 2 * heads * states * s.size)


def _mlstm(s: Sizes) -> Built:
    q, k, v = _qkv(s)
    gates = {"log_decay": F.logsigmoid(s.randn(s.heads) + 3), "log_input": s.randn(s.heads)}
    inputs = (q / s.size**0.5, k, v), {**gates, "normalize": "bounded"}
    return inputs, _matrix_work(s, products=2, pairs=2)


def _delta_rule(s: Sizes, *, decay: str) -> Built:
    options = {"beta": s.rand(s.heads), **_decays(s, decay)}
    return (_qkv(s), options), _matrix_work(s, products=3, pairs=4)


def _dplr(s: Sizes) -> Built:
    q, k, v = _qkv(s)
    options = {"a": -k, "b": s.rand(s.heads, 1) * k, **_decays(s, "decays")}
    return ((q, k, v), options), _matrix_work(s, products=4, pairs=6)


def _trapezoid_scan(s: Sizes) -> Built:
    heads, states = 2 * s.heads, 2 * s.size
    dt = 0.001 + 0.1 * s.rand(heads)
    q, k = (s.randn(1, heads, states) / states**0.5 for _ in "qk")
    late = dt * s.rand(heads)
    options = {"log_decay": -dt, "early": dt - late, "late": late}
    inside = heads * CHUNK / 2 * (states + s.size)
    work = Work(inside + 2 * heads * states * s.size)
    return ((q, k, s.randn(1, heads, s.size)), options), work


def _attention(s: Sizes, *, window: int | None) -> Built:
    q, k, v = _qkv(s)
    seen = s.T / 2 if window is None else min(s.T / 2, window)
    work = Work(2 * s.width * seen, s.heads * seen)
    return ((q / s.size**0.5, k, v), {"window": window}), work


def _softmax_scan(s: Sizes) -> Built:
    return ((s.randn(s.heads), s.randn(s.heads, s.size)), {}), Work(s.width, 2 * s.heads)


def _feedback_attention(s: Sizes) -> Built:
    q, k, v = _qkv(s)
    work = Work(2 * s.width * s.T / 2, s.heads * s.T / 2)
    return ((v, q / s.size**0.5, k), {"gain": s.rand(s.heads)}), work


def _short_conv(s: Sizes) -> Built:
    inner = 2 * s.width
    inputs = (s.randn(inner), s.weight(inner, 4), s.weight(inner)), {"activation": "silu"}
    return inputs, Work(4 * inner, inner)


def _long_conv(s: Sizes) -> Built:
    return ((s.randn(s.width), s.weight(s.width, min(s.T, KERNEL)) / KERNEL), {}), Work()


def _ssm_conv(s: Sizes) -> Built:
    complex_ = lambda: torch.complex(s.weight(s.width, STATES), s.weight(s.width, STATES))  # noqa: E731
    log_a = torch.complex(-s.weight(s.width, STATES).abs() - 0.1, s.weight(s.width, STATES))
    return ((s.randn(s.width),), {"log_a": log_a, "b": complex_(), "c": complex_()}), Work()


def _state_space(s: Sizes) -> Built:
    dt = 0.001 + 0.1 * torch.rand(s.width, generator=s.rng)
    A, b = hippo("legs", STATES)
    A, b = discretize(A.float(), b.float(), dt)
    return ((s.randn(s.width),), {"A": A, "b": b, "c": s.weight(s.width, STATES)}), Work()


def _dplr_conv(s: Sizes) -> Built:
    dt = 0.001 + 0.1 * torch.rand(s.width, generator=s.rng)
    part = (x.to(torch.complex64) for x in normal_part("legs", STATES)[:3])
    values, P, b = (x.expand(s.width, *x.shape).contiguous() for x in part)
    c = torch.complex(*(s.weight(s.width, STATES // 2) for _ in "ri"))
    return ((s.randn(s.width), System(values, P, b, c, dt)), {}), Work()


def _dilated_conv(s: Sizes) -> Built:
    inputs = (s.randn(s.width), s.weight(s.width, 4), s.weight(s.width)), {"dilation": 9}
    return inputs, Work(4 * s.width)


def _chunk_attention(s: Sizes) -> Built:
    q, k, v = _qkv(s)
    work = Work(s.width * WINDOW, s.heads * WINDOW / 2)
    return ((q / s.size**0.5, k, v), {"bias": s.weight(s.heads, WINDOW)}), work


def _cell(s: Sizes, *, kind: str, units: int) -> Built:
    size = units * s.size
    if kind == "slstm":
        heads = 4 if size % 4 == 0 else 1
        inner = size // heads
        weight = s.weight(heads, inner, 4 * inner) / inner**0.5
        return ((cells.SLSTM(weight), s.randn(4 * size)), {}), Work(4 * size * inner, 6 * size)
    gates = {"lstm": 4, "gru": 3}[kind] * size
    shapes = (gates, size), (gates, size), (gates,), (gates,)
    weights = (s.weight(*shape) / size**0.5 for shape in shapes)
    cell = {"lstm": cells.LSTM, "gru": cells.GRU}[kind](*weights)
    return ((cell, s.randn(size)), {}), Work(2 * gates * size, gates + size)


def _diagonal_cell(s: Sizes) -> Built:
    width = s.width
    shapes = (1, width, 3, width), (3, width), (3, width)
    weights = (s.weight(*shape) / width**0.5 for shape in shapes)
    inputs = (diagonal_cells.ParaGRU(*weights), s.randn(width)), {}
    return inputs, Work(3 * width * (width + 1), 3 * width)


def _test_time_scan(s: Sizes) -> Built:
    init = [s.weight(s.heads, s.size, s.size) / s.size]
    rule = Rule(chunk=16)
    options = {"init": init, "rate": s.rand(s.heads) / 2, "rule": rule}
    return (_qkv(s), options), _matrix_work(s, products=3, pairs=4)


def _ridge_regression(s: Sizes) -> Built:
    options = {"ridge": torch.ones(s.heads, s.size), "weight": s.rand(s.heads)}
    return (_qkv(s), options), _matrix_work(s, products=s.size / 3, pairs=2)


def _local_regression(s: Sizes) -> Built:
    q, k, v = _qkv(s)
    work = Work(2 * s.width * s.T / 2, s.heads * s.T / 2)
    return ((q / s.size**0.5, k, v), {"degree": 0}), work


def _forgetting_attention(s: Sizes) -> Built:
    (q, k, v), seen = _qkv(s), s.T / 2
    work = Work(2 * s.width * seen, s.heads * seen)
    return ((q / s.size**0.5, k, v), _decays(s, "decay")), work


def _path_attention(s: Sizes) -> Built:
    (q, k, v), seen = _qkv(s), s.T / 2
    options = {"w": F.normalize(s.randn(s.heads, s.size), dim=-1), "beta": 2 * s.rand(s.heads)}
    work = Work(4 * s.width * seen, s.heads * seen)  # every chunk writes the keys anew
    return ((q / s.size**0.5, k, v), options), work


def _log_linear_attention(s: Sizes) -> Built:
    levels = 8
    options = {"level_scale": s.rand(s.heads, levels + 1), **_decays(s, "decay")}
    return (_qkv(s), options), _matrix_work(s, products=levels, pairs=2)


def _slot_attention(s: Sizes) -> Built:
    q, k, v = _qkv(s)
    g = _decays(s, "decays")["log_decay"]
    work = Work(4 * s.width * s.size, s.heads * s.size)
    return ((q, k, v), {"s": -torch.expm1(g), "log_decay": g}), work


def _grid_scan(s: Sizes) -> Built:
    columns = min(8, s.T)
    shape = s.T // columns, columns
    fold = lambda x: x[:, : shape[0] * columns].unflatten(1, shape)  # noqa: E731
    q, k, v = (fold(x) for x in _qkv(s))
    angle = fold(s.rand(s.heads, 2))
    gates = {"source": fold(s.rand(s.heads, 2)), "mark": fold(s.rand(s.heads, 2))}
    transition = torch.stack([angle, 1 - angle], -2)
    work = _matrix_work(s, products=8, pairs=0)
    return ((q / s.size**0.5, k, v), {"transition": transition, **gates}), work


def _dag_scan(s: Sizes) -> Built:
    nodes = min(16, s.T)  # tokens in graphs of 16, each linked to the next and the one after
    fold = lambda x: x[:, : s.T // nodes * nodes].unflatten(1, (-1, nodes)).flatten(0, 1)  # noqa: E731
    q, k, v = (fold(x) for x in _qkv(s))
    pairs = [(n, n + d) for d in (1, 2) for n in range(nodes - d)]
    edges = torch.tensor(pairs, dtype=torch.long).view(-1, 2).T
    E, P = edges.shape[1], dag_scan.pairs_of(edges).shape[1]
    number = lambda n: torch.rand(len(q), n, s.heads, generator=s.rng) / 2  # noqa: E731
    gates = {"source": number(E), "mark": number(E), "transition": number(P)}
    work = _matrix_work(s, products=8, pairs=0)
    return ((q / s.size**0.5, k, v), {"edges": edges, **gates}), work


def _scan2d(s: Sizes) -> Built:
    inputs = s.rand(VARIATES, 2, 2, s.size) / 2, s.randn(VARIATES, 2, s.size)
    return (inputs, {}), Work(4 * VARIATES * s.size)


TABLE: dict[str, tuple[ModuleType, Callable[[Sizes], Built]]] = {
    "linear_scan": (linear_scan, _linear_scan),
    "selective_scan": (selective_scan, _selective_scan),
    **{
        f"linear_attention{name}": (linear_attention, partial(_linear_attention, decay=kind))
        for name, kind in (("", "none"), (" decay", "decay"), (" decays", "decays"))
    },
    "linear_attention mamba2": (linear_attention, _mamba2),
    "linear_attention mlstm": (linear_attention, _mlstm),
    **{
        f"delta_rule{name}": (delta_rule, partial(_delta_rule, decay=kind))
        for name, kind in (("", "none"), (" decay", "decay"), (" decays", "decays"))
    },
    "dplr": (dplr, _dplr),
    "trapezoid_scan": (trapezoid_scan, _trapezoid_scan),
    "attention": (attention, partial(_attention, window=None)),
    "attention window": (attention, partial(_attention, window=WINDOW)),
    "feedback_attention": (feedback_attention, _feedback_attention),
    "softmax_scan": (softmax_scan, _softmax_scan),
    "forgetting_attention": (forgetting_attention, _forgetting_attention),
    "path_attention": (path_attention, _path_attention),
    "slot_attention": (slot_attention, _slot_attention),
    "log_linear_attention": (log_linear_attention, _log_linear_attention),
    "local_regression": (local_regression, _local_regression),
    "ridge_regression": (ridge_regression, _ridge_regression),
    "test_time_scan": (test_time_scan, _test_time_scan),
    "short_conv": (short_conv, _short_conv),
    "long_conv": (long_conv, _long_conv),
    "ssm_conv": (ssm_conv, _ssm_conv),
    "state_space": (state_space, _state_space),
    "dplr_conv": (dplr_conv, _dplr_conv),
    "dilated_conv": (dilated_conv, _dilated_conv),
    "chunk_attention": (chunk_attention, _chunk_attention),
    "grid_scan": (grid_scan, _grid_scan),
    "dag_scan": (dag_scan, _dag_scan),
    "scan2d": (scan2d, _scan2d),
    **{
        f"cell_scan {kind}{name}": (cells, partial(_cell, kind=kind, units=units))
        for kind in ("lstm", "gru", "slstm")
        for name, units in (("", 2), (" wide", 8))
    },
    "cell_scan para_gru": (cells, _diagonal_cell),
    "semiring_scan max_plus": (
        semiring_scan,
        partial(_semiring_scan, semiring="max_plus", exponentials=0),
    ),
    "semiring_matrix_scan": (semiring_matrix_scan, _semiring_matrix_scan),
    "semiring_scan logsumexp_plus": (
        semiring_scan,
        partial(_semiring_scan, semiring="logsumexp_plus", exponentials=2),
    ),
}
