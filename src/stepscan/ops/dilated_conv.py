"""Depthwise causal convolution with holes: W taps, `dilation` tokens apart.

    y_t = bias + sum_j weight[:, j] * x_{t - (W - 1 - j) dilation}      j = 0 .. W-1;  x: [B, T, D]

The last column of `weight` [D, W] meets the newest token. The state holds the last (W - 1) dilation
inputs, newest last; before the row began, and before a reset, inputs are zero. With dilation 1 it
is `short_conv`. Sources: WaveNet (arXiv:1609.03499), TCN (arXiv:1803.01271).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state


def recurrent(
    x: Float[Tensor, "B T D"],
    weight: Float[Tensor, "D W"],
    bias: Float[Tensor, "D"] | None,
    *,
    dilation: int,
    state: Float[Tensor, "B P D"],
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B P D"]]:
    """The definition, one step at a time. Every other form is judged against this one."""
    ys: list[Tensor] = []
    for x_t, reset in zip(x.unbind(1), as_resets(resets, x).unbind(1), strict=True):
        past = torch.cat([state.masked_fill(reset[:, None, None], 0.0), x_t[:, None]], 1)
        y = torch.einsum("bwd,dw->bd", past[:, ::dilation], weight)
        ys.append(y if bias is None else y + bias)
        state = past[:, 1:]
    return torch.stack(ys, 1), state


def shifted(
    x: Float[Tensor, "B T D"],
    weight: Float[Tensor, "D W"],
    bias: Float[Tensor, "D"] | None,
    *,
    dilation: int,
    state: Float[Tensor, "B P D"],
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B P D"]]:
    """One multiply-add over all tokens for each tap."""
    T, P = x.shape[1], state.shape[1]
    past = torch.cat([state, x], 1)
    segment = None if resets is None else F.pad(resets.cumsum(1), (P, 0))
    y = x * weight[:, -1] if bias is None else torch.addcmul(bias, x, weight[:, -1])
    for j in range(weight.shape[1] - 1):
        lagged = slice(j * dilation, j * dilation + T)
        tap = past[:, lagged]
        if segment is not None:
            tap = tap.masked_fill((segment[:, lagged] != segment[:, P:])[..., None], 0.0)
        y = torch.addcmul(y, tap, weight[:, j])
    last = past[:, T:]
    if segment is None:
        return y, last.clone()  # a view would keep the whole stretch alive
    return y, last.masked_fill((segment[:, T:] != segment[:, -1:])[..., None], 0.0)


FORMS: Mapping[str, Callable[..., tuple[Tensor, Tensor]]] = MappingProxyType(
    {"recurrent": recurrent, "shifted": shifted}
)


def dilated_conv(
    x: Float[Tensor, "B T D"],
    weight: Float[Tensor, "D W"],
    bias: Float[Tensor, "D"] | None = None,
    *,
    dilation: int = 1,
    state: Float[Tensor, "B P D"] | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B P D"]]:
    """Convolve each channel with its own taps.

    The state stays float32 or wider, y has x's dtype, and `form="auto"` never changes the result.
    """
    offset = None if bias is None else tuple(bias.shape)
    fits = x.ndim == 3 and weight.ndim == 2 and weight.shape[0] == x.shape[2] and weight.shape[1]
    if not fits or offset not in (None, weight.shape[:1]) or dilation < 1:
        raise ValueError(
            "dilated_conv: want x [B T D], weight [D W] with W at least 1, bias [D], dilation at "
            f"least 1; got {tuple(x.shape)}, {tuple(weight.shape)}, {offset}, {dilation}"
        )
    (B, T, D), W = x.shape, weight.shape[1]
    state = as_state(state, (B, (W - 1) * dilation, D), x, weight, bias)
    run = lookup(FORMS, "shifted" if form == "auto" else form, kind="form of dilated_conv")
    resets = None if resets is None else as_resets(resets, x)
    if T == 0:
        return x, state
    wide = (None if w is None else w.to(state.dtype) for w in (x, weight, bias))
    y, state = run(*wide, dilation=dilation, state=state, resets=resets)
    return y.to(x.dtype), state
