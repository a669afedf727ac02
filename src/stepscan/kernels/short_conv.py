"""`short_conv(x, weight, bias, state, resets, silu) -> y, last`: see short_conv.cpp."""

from typing import Any

from torch import Tensor

from stepscan.kernels.operators import define, differentiate

short_conv = define(
    "short_conv(Tensor x, Tensor weight, Tensor? bias, Tensor state, Tensor? resets, bool silu)"
    " -> (Tensor, Tensor)",
    allocate=lambda x, weight, bias, state, *_: (x.new_empty(x.shape), x.new_empty(state.shape)),
    sizes=lambda x, weight, *_: (*x.shape, weight.shape[1]),
)
short_conv_backward = define(
    "short_conv_backward(Tensor grad, Tensor grad_last, Tensor x, Tensor weight, Tensor? bias,"
    " Tensor state, Tensor? resets, bool silu) -> (Tensor, Tensor, Tensor, Tensor)",
    allocate=lambda grad, grad_last, x, weight, bias, state, *_: (
        x.new_empty(x.shape),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape[:1]),
        state.new_empty(state.shape),
    ),
    sizes=lambda grad, grad_last, x, weight, *_: (*x.shape, weight.shape[1]),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, state, resets, ctx.silu = inputs
    ctx.save_for_backward(x, weight, bias, state, resets)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    bias = ctx.saved_tensors[2]
    x, weight, offset, state = short_conv_backward(*grads, *ctx.saved_tensors, ctx.silu)
    return x, weight, None if bias is None else offset, state, None, None


differentiate("short_conv", save=_save, backward=_backward)
