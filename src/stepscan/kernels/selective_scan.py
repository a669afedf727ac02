"""`selective_scan(x, dt, A, B, C, D, z, dt_bias, ...) -> (y, last, saved)`: see selective_scan.h.

x, dt, z [B, T, E]; A [E, N]; B, C [B, T, G, N]; D, dt_bias [E]; state, last [B, E, N].
"""

from typing import Any

from torch import Tensor

from stepscan.kernels.operators import define, differentiate

CHUNK = 16  # steps between the states that are saved for the gradient
LANES = 16  # channels that are saved side by side, those of the last strip made up with others


def _sizes(x: Tensor, A: Tensor, B: Tensor) -> tuple[int, ...]:
    return *x.shape, A.shape[1], B.shape[2], CHUNK


def _allocate(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *_, state, _, _, save = others
    rows, steps, channels, states, groups, _ = _sizes(x, A, B)
    strips = -(-(channels // groups) // LANES)
    kept = (rows, -(-steps // CHUNK), groups, strips, states, LANES) if save else (0,)
    return x.new_empty(x.shape), x.new_empty(state.shape), x.new_empty(kept)


selective_scan = define(
    "selective_scan(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z,"
    " Tensor? dt_bias, Tensor state, Tensor resets, bool dt_softplus, bool save)"
    " -> (Tensor, Tensor, Tensor)",
    allocate=_allocate,
    sizes=lambda x, dt, A, B, *others: _sizes(x, A, B),
)


def _allocate_backward(
    grad: Tensor | None, grad_last: Tensor | None, x: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    dt, A, B, C, D, z, dt_bias, *_ = others
    state = (x.shape[0], *A.shape)
    shapes = (None if like is None else like.shape for like in (x, dt, A, B, C, D, z, dt_bias))
    return tuple(x.new_empty((0,) if shape is None else shape) for shape in (*shapes, state))


selective_scan_backward = define(
    "selective_scan_backward(Tensor? grad, Tensor? grad_last, Tensor x, Tensor dt, Tensor A,"
    " Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, Tensor resets, Tensor saved,"
    " bool dt_softplus) -> (" + ", ".join(["Tensor"] * 9) + ")",
    allocate=_allocate_backward,
    sizes=lambda grad, grad_last, x, dt, A, B, *others: _sizes(x, A, B),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *weights, _, resets, ctx.dt_softplus, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*weights, resets, output[2])


def _backward(ctx: Any, grad: Tensor | None, grad_last: Tensor | None, _: Any) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    *grads, grad_state = selective_scan_backward(grad, grad_last, *saved, ctx.dt_softplus)
    given = (None if x is None else g for x, g in zip(saved, grads, strict=False))
    return *given, grad_state, None, None, None


differentiate("selective_scan", save=_save, backward=_backward)
