"""`linear_attention(...) -> y, weight, last, starts`: see linear_attention.cpp.

y [B, T, H, V] and, with `sums`, weight [B, T, H] are what is read; `last` is the memory at the end,
[B, H, K, V + sums]. With `save`, `starts` holds the memory before every 64th token, as the gradient
needs it.
"""

from typing import Any

from torch import Tensor

from stepscan.kernels.operators import define, differentiate

SPAN = 64  # kSpan of attention_chunk.h


def _allocate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    gain: Tensor | None,
    state: Tensor,
    resets: Tensor,
    sums: bool,
    save: bool,
) -> tuple[Tensor, ...]:
    B, T, H, _ = v.shape
    starts = (B, H, -(-T // SPAN), *state.shape[2:]) if save else (0,)
    weight = (B, T, H) if sums else (0,)
    return v.new_empty(v.shape), v.new_empty(weight), v.new_empty(state.shape), v.new_empty(starts)


def _sizes(q: Tensor, v: Tensor, log_decay: Tensor) -> tuple[int, ...]:
    B, T, G, K = q.shape
    return B, T, G, v.shape[2], K, v.shape[3], log_decay.shape[3]


linear_attention = define(
    "linear_attention(Tensor q, Tensor k, Tensor v, Tensor log_decay, Tensor? gain, Tensor state,"
    " Tensor resets, bool sums, bool save) -> (Tensor, Tensor, Tensor, Tensor)",
    allocate=_allocate,
    sizes=lambda q, k, v, log_decay, *_: _sizes(q, v, log_decay),
)


def _allocate_gradients(*given: Any) -> tuple[Tensor, ...]:
    q, k, v, log_decay, gain, _, starts, _ = given[3:]
    memory = (*starts.shape[:2], *starts.shape[3:])
    gain = (0,) if gain is None else gain.shape
    shapes = (q.shape, k.shape, v.shape, log_decay.shape, gain, memory)
    return tuple(v.new_empty(shape) for shape in shapes)


linear_attention_backward = define(
    "linear_attention_backward(Tensor? grad_y, Tensor? grad_weight, Tensor? grad_last, Tensor q,"
    " Tensor k, Tensor v, Tensor log_decay, Tensor? gain, Tensor resets, Tensor starts, bool sums)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    allocate=_allocate_gradients,
    sizes=lambda *given: _sizes(given[3], given[5], given[6]),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, log_decay, gain, _, resets, ctx.sums, save = inputs
    if not save:
        raise ValueError("linear_attention: a gradient is wanted, so save=True is")
    ctx.save_for_backward(q, k, v, log_decay, gain, resets, output[3])
    ctx.set_materialize_grads(False)  # zeros as large as `starts` would be made for nothing


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, log_decay, gain, resets, starts = ctx.saved_tensors
    *found, grad_gain, grad_state = linear_attention_backward(
        *grads[:3], q, k, v, log_decay, gain, resets, starts, ctx.sums
    )
    return *found, None if gain is None else grad_gain, grad_state, None, None, None


differentiate("linear_attention", save=_save, backward=_backward)
