"""`cell_scan(kind, u, weight, bias, state, resets) -> (y, state)`: see cell_scan.cpp."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepscan.kernels.operators import define, differentiate


class Kind(NamedTuple):
    """What the kernel keeps of a cell."""

    number: int
    """Its place in cell_scan.cpp."""
    gates: int
    """Parts of u and of R h."""
    states: int
    """Tensors of its state, the hidden one first."""
    saved: int
    """Numbers per unit and token that the derivative reads, besides the hidden state."""


KINDS = {
    "tanh": Kind(0, 1, 1, 0),
    "relu": Kind(1, 1, 1, 0),
    "identity": Kind(2, 1, 1, 0),
    "gru": Kind(3, 3, 1, 4),
    "lstm": Kind(4, 4, 2, 5),
    "slstm": Kind(5, 4, 4, 7),
}
GRU = KINDS["gru"].number
BY_NUMBER = list(KINDS.values())


def cell_scan(
    kind: str,
    u: Float[Tensor, "B T *_"],
    weight: Float[Tensor, "H K gates_of_head"],
    bias: Tensor | None,
    state: Float[Tensor, "S B *_"],
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T E"], Float[Tensor, "S B *_"]]:
    """Outputs and the last state; u and bias hold all gates of a head together.

    Raises `ValueError` unless the shapes are those of a `kind`.
    """
    number, gates, states, _ = KINDS[kind]
    (B, T), (H, K) = u.shape[:2], weight.shape[:2]
    E = H * K
    sizes = [u.numel(), weight.numel(), state.numel(), E * gates if bias is None else bias.numel()]
    if sizes != [B * T * E * gates, E * K * gates, states * B * E, E * gates]:
        given = (x if x is None else tuple(x.shape) for x in (u, weight, bias, state))
        raise ValueError(
            f"cell_scan: want u [B T H {gates} K], weight [H K {gates} K], bias [H {gates} K] and "
            "state [{} B H K] of a {} cell; got {}, {}, {}, {}".format(states, kind, *given)
        )
    if resets is not None and resets.shape != (B, T):
        raise ValueError(f"cell_scan: want resets {(B, T)}, got {tuple(resets.shape)}")
    given = (x for x in (u, weight, bias, state) if x is not None)
    save = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    y, last, _ = _cell_scan(u, weight, bias, state, resets, number, save)
    return y, last


def _allocate(
    u: Tensor, weight: Tensor, bias: Any, state: Tensor, resets: Any, kind: int, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, H, K, _ = _sizes(u, weight)
    saved = (B, T, H, BY_NUMBER[kind].saved, K) if save else (0,)
    return u.new_empty(B, T, H * K), state.new_empty(state.shape), u.new_empty(saved)


def _allocate_gradients(
    grad_y: Any,
    grad_last: Any,
    weight: Tensor,
    state: Tensor,
    resets: Any,
    y: Tensor,
    saved: Tensor,
    kind: int,
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, H, K, columns = _sizes(y, weight)
    product = (B, T, H, K) if kind == GRU else (0,)
    return y.new_empty(B, T, H, columns), y.new_empty(product), state.new_empty(state.shape)


def _sizes(u: Tensor, weight: Tensor) -> tuple[int, ...]:
    return *u.shape[:2], *weight.shape


_cell_scan = define(
    "cell_scan(Tensor u, Tensor weight, Tensor? bias, Tensor state, Tensor? resets, int kind,"
    " bool save) -> (Tensor, Tensor, Tensor)",
    allocate=_allocate,
    sizes=lambda u, weight, *_: _sizes(u, weight)[:4],
)
_cell_scan_backward = define(
    "cell_scan_backward(Tensor? grad_y, Tensor? grad_last, Tensor weight, Tensor state,"
    " Tensor? resets, Tensor y, Tensor saved, int kind) -> (Tensor, Tensor, Tensor)",
    allocate=_allocate_gradients,
    sizes=lambda grad_y, grad_last, weight, state, resets, y, *_: _sizes(y, weight)[:4],
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    u, weight, bias, state, resets, kind, _ = inputs
    y, _, saved = output
    ctx.save_for_backward(weight, state, resets, y, saved)
    ctx.kind, ctx.u_shape, ctx.bias_shape = kind, u.shape, None if bias is None else bias.shape
    ctx.set_materialize_grads(False)  # zeros for `saved` would be as large as all activations
    ctx.mark_non_differentiable(saved)


def _backward(
    ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    weight, state, resets, y, saved = ctx.saved_tensors
    grad_u, grad_product, grad_state = _cell_scan_backward(
        grad_y, grad_last, weight, state, resets, y, saved, ctx.kind
    )
    B, T, H, columns = grad_u.shape
    parts = [grad_u.view(B * T, H, columns)]  # of the product, [B T, H, gates]
    if ctx.kind == GRU:
        last = grad_product.view(B * T, H, -1)
        parts = [parts[0][..., : -last.shape[2]], last]
    grad_weight = grad_bias = None
    if ctx.needs_input_grad[1]:
        hidden = _before(y, state[0], resets).view(B * T, H, -1).permute(1, 2, 0)
        grad_weight = torch.cat([torch.bmm(hidden, part.transpose(0, 1)) for part in parts], 2)
    if ctx.needs_input_grad[2]:
        grad_bias = torch.cat([part.sum(0) for part in parts], 1).view(ctx.bias_shape)
    return grad_u.view(ctx.u_shape), grad_weight, grad_bias, grad_state, None, None, None


def _before(y: Tensor, state: Tensor, resets: Tensor | None) -> Tensor:
    """The hidden state that each token starts from, [B T E]."""
    before = torch.cat([state.reshape(-1, 1, y.shape[2]), y[:, :-1]], 1)
    return before if resets is None else before.masked_fill_(resets[..., None], 0.0)


differentiate("cell_scan", save=_save, backward=_backward)
