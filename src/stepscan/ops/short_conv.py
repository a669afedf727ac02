"""Depthwise causal convolution over a short window of W tokens.

    y_t = f(bias + sum_j weight[:, j] * x_{t - W + 1 + j})      j = 0 .. W-1;  x, y: [B, T, D]

The last column of `weight` [D, W] meets the newest token; `f` is the activation. The state holds
the last W-1 inputs, newest last, [B, W-1, D]; before the row began, and before a reset, inputs
are zero. Sources: gated convolutional networks (arXiv:1612.08083), the short convolutions of H3
(arXiv:2212.14052) and Mamba (arXiv:2312.00752).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from stepscan.kernels import available
from stepscan.kernels import short_conv as native
from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({"silu": F.silu})


def recurrent(
    x: Float[Tensor, "B T D"],
    weight: Float[Tensor, "D W"],
    bias: Float[Tensor, "D"] | None,
    *,
    activation: str | None,
    state: Float[Tensor, "B W-1 D"],
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B W-1 D"]]:
    """The definition, one step at a time. Every other form is judged against this one."""
    ys: list[Tensor] = []
    for x_t, reset in zip(x.unbind(1), as_resets(resets, x).unbind(1), strict=True):
        past = state.masked_fill(reset[:, None, None], 0.0)
        window = torch.cat([past, x_t[:, None]], 1)
        ys.append(torch.einsum("bwd,dw->bd", window, weight))
        state = window[:, 1:]
    return _finish(torch.stack(ys, 1), bias, activation), state


def shifted(
    x: Float[Tensor, "B T D"],
    weight: Float[Tensor, "D W"],
    bias: Float[Tensor, "D"] | None,
    *,
    activation: str | None,
    state: Float[Tensor, "B W-1 D"],
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B W-1 D"]]:
    """One multiply-add over all tokens for each place in the window."""
    W, T = weight.shape[1], x.shape[1]
    past = torch.cat([state, x], 1)
    y = x * weight[:, -1]
    if resets is None:
        for j in range(W - 1):
            y = torch.addcmul(y, past[:, j : j + T], weight[:, j])
        last = past[:, T:].clone()  # a view would keep the whole stretch alive
        return _finish(y, bias, activation), last
    segment = F.pad(resets.cumsum(1), (W - 1, 0))
    for j in range(W - 1):
        gone = segment[:, j : j + T] != segment[:, W - 1 :]
        y = y + (past[:, j : j + T] * weight[:, j]).masked_fill(gone[..., None], 0.0)
    gone = segment[:, T:] != segment[:, -1:]
    last = past[:, T:].masked_fill(gone[..., None], 0.0)
    return _finish(y, bias, activation), last


def _finish(y: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    y = y if bias is None else y + bias
    return y if activation is None else ACTIVATIONS[activation](y)


def cpu(
    x: Float[Tensor, "B T D"],
    weight: Float[Tensor, "D W"],
    bias: Float[Tensor, "D"] | None,
    *,
    activation: str | None,
    state: Float[Tensor, "B W-1 D"],
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B W-1 D"]]:
    """The native kernel, float32 on CPU: bias and activation in the same pass over x."""
    return native.short_conv(x, weight, bias, state, resets, activation == "silu")


FORMS: Mapping[str, Callable[..., tuple[Tensor, Tensor]]] = MappingProxyType(
    {"recurrent": recurrent, "shifted": shifted, "cpu": cpu}
)


def short_conv(
    x: Float[Tensor, "B T D"],
    weight: Float[Tensor, "D W"],
    bias: Float[Tensor, "D"] | None = None,
    *,
    activation: str | None = None,
    state: Float[Tensor, "B W-1 D"] | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B W-1 D"]]:
    """Convolve each channel with its own window; `activation` is None or "silu".

    The state stays float32 or wider, y has x's dtype, and `form="auto"` never changes the result.
    """
    _check(x, weight, bias)
    if activation is not None:
        lookup(ACTIVATIONS, activation, kind="activation")
    (B, T, D), W = x.shape, weight.shape[1]
    state = as_state(state, (B, W - 1, D), x, weight, bias)
    run = lookup(FORMS, _pick(state) if form == "auto" else form, kind="form of short_conv")
    resets = None if resets is None else as_resets(resets, x)
    if T == 0:
        return x, state
    wide = (None if w is None else w.to(state.dtype) for w in (x, weight, bias))
    y, state = run(*wide, activation=activation, state=state, resets=resets)
    return y.to(x.dtype), state


def _pick(state: Tensor) -> str:
    native = state.dtype == torch.float32 and state.device.type == "cpu"
    return "cpu" if native and available("short_conv") else "shifted"


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    offset = None if bias is None else tuple(bias.shape)
    fits = x.ndim == 3 and weight.ndim == 2 and weight.shape[0] == x.shape[2] and weight.shape[1]
    if not fits or offset not in (None, weight.shape[:1]):
        raise ValueError(
            "short_conv: want x [B T D], weight [D W] with W at least 1, bias [D]; "
            f"got x {tuple(x.shape)}, weight {tuple(weight.shape)}, bias {offset}"
        )
