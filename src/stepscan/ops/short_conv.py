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

from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({"silu": F.silu})


def recurrent(
    x: Float[Tensor, "B T D"],
    weight: Float[Tensor, "D W"],
    *,
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
    return torch.stack(ys, 1), state


def shifted(
    x: Float[Tensor, "B T D"],
    weight: Float[Tensor, "D W"],
    *,
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
        return y, past[:, T:].clone()  # a view would keep the whole stretch alive
    segment = F.pad(resets.cumsum(1), (W - 1, 0))
    for j in range(W - 1):
        gone = segment[:, j : j + T] != segment[:, W - 1 :]
        y = y + (past[:, j : j + T] * weight[:, j]).masked_fill(gone[..., None], 0.0)
    gone = segment[:, T:] != segment[:, -1:]
    return y, past[:, T:].masked_fill(gone[..., None], 0.0)


FORMS: Mapping[str, Callable[..., tuple[Tensor, Tensor]]] = MappingProxyType(
    {"recurrent": recurrent, "shifted": shifted}
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
    f = None if activation is None else lookup(ACTIVATIONS, activation, kind="activation")
    run = lookup(FORMS, "shifted" if form == "auto" else form, kind="form of short_conv")
    (B, T, D), W = x.shape, weight.shape[1]
    state = as_state(state, (B, W - 1, D), x, weight, bias)
    resets = None if resets is None else as_resets(resets, x)
    if T == 0:
        return x, state
    y, state = run(x.to(state.dtype), weight.to(state.dtype), state=state, resets=resets)
    y = y if bias is None else y + bias
    return (y if f is None else f(y)).to(x.dtype), state


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    offset = None if bias is None else tuple(bias.shape)
    fits = x.ndim == 3 and weight.ndim == 2 and weight.shape[0] == x.shape[2] and weight.shape[1]
    if not fits or offset not in (None, weight.shape[:1]):
        raise ValueError(
            "short_conv: want x [B T D], weight [D W] with W at least 1, bias [D]; "
            f"got x {tuple(x.shape)}, weight {tuple(weight.shape)}, bias {offset}"
        )
