"""`semiring_scan(a, b, state, resets, semiring, initial) -> h`, [B, T, D]: see the .cpp."""

from typing import Any

from torch import Tensor

from stepscan.kernels.operators import define, differentiate

semiring_scan = define(
    "semiring_scan(Tensor a, Tensor b, Tensor state, Tensor resets, int semiring, float initial)"
    " -> Tensor",
    allocate=lambda a, b, *_: b.new_empty(b.shape),
    sizes=lambda a, b, *_: b.shape,
)
semiring_scan_backward = define(
    "semiring_scan_backward(Tensor grad, Tensor a, Tensor b, Tensor h, Tensor state, Tensor resets,"
    " int semiring, float initial) -> (Tensor, Tensor, Tensor)",
    allocate=lambda grad, a, b, h, state, *_: tuple(x.new_empty(x.shape) for x in (h, h, state)),
    sizes=lambda grad, a, b, h, *_: h.shape,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, state, resets, *ctx.semiring = inputs
    ctx.save_for_backward(a, b, output, state, resets)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = semiring_scan_backward(grad, *ctx.saved_tensors, *ctx.semiring)
    return *grads, None, None, None


differentiate("semiring_scan", save=_save, backward=_backward)
