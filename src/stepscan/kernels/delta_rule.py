"""`delta_rule(q, k, v, beta, log_decay, erase, state, resets, saved) -> (y, last, starts)`.

See delta_rule.cpp; shapes as in `stepscan.ops.delta_rule`, always with a dimension for n writes.
"""

from typing import Any

import torch
from torch import Tensor

from stepscan.kernels.operators import define, differentiate

ROWS = 32
"""Writes from one state that is kept for the backward pass to the next."""

INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor beta, Tensor log_decay, Tensor? erase, Tensor state,"
    " Tensor resets"
)


def saved_tokens(tokens: int, writes: int) -> int:
    """Tokens in a chunk of the backward pass: a power of 2."""
    length = ROWS
    while length > 1 and (length * writes > ROWS or length >= 2 * max(tokens, 8)):
        length //= 2
    return length


def _sizes(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor) -> tuple[int, ...]:
    return *q.shape, v.shape[-1], k.shape[2], log_decay.shape[-1]


def _allocate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    erase: Tensor | None,
    state: Tensor,
    resets: Tensor,
    saved: int,
) -> tuple[Tensor, ...]:
    B, T, H, K = q.shape
    V = v.shape[-1]
    states = -(-T // saved) if saved else 0
    return q.new_empty(B, T, H, V), state.new_empty(state.shape), q.new_empty(B, H, states, K, V)


delta_rule = define(
    f"delta_rule({INPUTS}, int saved) -> (Tensor, Tensor, Tensor)",
    allocate=_allocate,
    sizes=lambda *given: _sizes(*given[:5]),
)


def _allocate_gradients(*given: Any) -> tuple[Tensor, ...]:
    q, k, v, beta, log_decay, erase, last = *given[:6], given[8]
    erased = q.new_empty(0) if erase is None else erase
    return tuple(x.new_empty(x.shape) for x in (q, k, v, beta, log_decay, erased, last))


delta_rule_backward = define(
    "delta_rule_backward(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor log_decay,"
    " Tensor? erase, Tensor resets, Tensor starts, Tensor last, Tensor grad_y, Tensor grad_last,"
    " int saved) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    allocate=_allocate_gradients,
    sizes=lambda *given: _sizes(*given[:5]),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, resets, ctx.saved = inputs
    y, last, starts = output
    ctx.save_for_backward(*tensors, resets, starts, last)
    ctx.shape = y.shape
    ctx.set_materialize_grads(False)  # of `starts` there is none, and it is large


def _backward(
    ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    last = ctx.saved_tensors[-1]
    grad_y = last.new_zeros(ctx.shape) if grad_y is None else grad_y
    grad_last = torch.zeros_like(last) if grad_last is None else grad_last
    *grads, erase, state = delta_rule_backward(*ctx.saved_tensors, grad_y, grad_last, ctx.saved)
    return *grads, None if ctx.saved_tensors[5] is None else erase, state, None, None


differentiate("delta_rule", save=_save, backward=_backward)
