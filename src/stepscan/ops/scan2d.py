r"""The two-dimensional scan of Chimera: over time, and over the variates of each time.

    h1_{t,v} = A11_{t,v} h1_{t-1,v} + A12_{t,v} h2_{t-1,v} + b1_{t,v}        along time
    h2_{t,v} = A21_{t,v} h1_{t,v-1} + A22_{t,v} h2_{t,v-1} + b2_{t,v}        along the variates

per channel, a: [B, T, V, 2, 2, D] (into by from), b, h: [B, T, V, 2, D], real or complex. Nothing
comes before the first variate; before the first time comes the state, h of the last time,
[B, V, 2, D], and a reset at t takes it as zero. With A21 = A22 = 0 every variate is a
one-dimensional scan of its own. Source: Chimera (arXiv:2406.04320), discrete form.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool, Inexact
from torch import Tensor

from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state
from stepscan.ops.linear_scan import linear_scan
from stepscan.ops.shift import shift


def recurrent(
    a: Inexact[Tensor, "B T V 2 2 D"],
    b: Inexact[Tensor, "B T V 2 D"],
    *,
    state: Inexact[Tensor, "B V 2 D"],
    resets: Bool[Tensor, "B T"],
) -> tuple[Inexact[Tensor, "B T V 2 D"], Inexact[Tensor, "B V 2 D"]]:
    """The definition, a time and a variate at a time. Every other form is judged against it."""
    hs: list[Tensor] = []
    for a_t, b_t, reset in zip(a.unbind(1), b.unbind(1), resets.unbind(1), strict=True):
        before = state.masked_fill(reset[:, None, None, None], 0.0)
        near = torch.zeros_like(before[:, 0])
        columns = []
        for v in range(b.shape[2]):
            ahead = (a_t[:, v, 0] * before[:, v]).sum(1) + b_t[:, v, 0]
            across = (a_t[:, v, 1] * near).sum(1) + b_t[:, v, 1]
            near = torch.stack([ahead, across], 1)
            columns.append(near)
        state = torch.stack(columns, 1)
        hs.append(state)
    return torch.stack(hs, 1), state


def by_variate(
    a: Inexact[Tensor, "B T V 2 2 D"],
    b: Inexact[Tensor, "B T V 2 D"],
    *,
    state: Inexact[Tensor, "B V 2 D"],
    resets: Bool[Tensor, "B T"],
) -> tuple[Inexact[Tensor, "B T V 2 D"], Inexact[Tensor, "B V 2 D"]]:
    """Variate after variate, over all times at once: h1 is a linear scan whose input is h2."""
    near: Tensor | None = None
    hs: list[Tensor] = []
    for v in range(b.shape[2]):
        a_v, b_v = a[:, :, v], b[:, :, v]
        across = b_v[:, :, 1]
        if near is not None:
            across = across + (a_v[:, :, 1] * near).sum(2)
        late, _ = shift(across, state[:, v, 1], resets)
        given = a_v[:, :, 0, 1] * late + b_v[:, :, 0]
        ahead, _ = linear_scan(a_v[:, :, 0, 0], given, state=state[:, v, 0], resets=resets)
        near = torch.stack([ahead, across], 2)
        hs.append(near)
    h = torch.stack(hs, 2)
    return h, h[:, -1].clone()  # a view would keep all of h alive


FORMS: Mapping[str, Callable[..., tuple[Tensor, Tensor]]] = MappingProxyType(
    {"recurrent": recurrent, "by_variate": by_variate}
)


def scan2d(
    a: Inexact[Tensor, "B T V 2 2 D"],
    b: Inexact[Tensor, "B T V 2 D"],
    *,
    state: Inexact[Tensor, "B V 2 D"] | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Inexact[Tensor, "B T V 2 D"], Inexact[Tensor, "B V 2 D"]]:
    """All h, and those of the last time. The state stays float32 or wider; h has b's dtype."""
    fits = b.ndim == 5 and b.shape[3] == 2 and b.shape[2] > 0
    if not fits or a.shape != (*b.shape[:3], 2, *b.shape[3:]):
        raise ValueError(
            "scan2d: want a [B T V 2 2 D], b [B T V 2 D] with V at least 1; got a "
            f"{tuple(a.shape)}, b {tuple(b.shape)}"
        )
    B, T, V, _, D = b.shape
    resets = as_resets(resets, b)
    state = as_state(state, (B, V, 2, D), a, b)
    form = ("recurrent" if T <= 1 else "by_variate") if form == "auto" else form
    run = lookup(FORMS, form, kind="form of scan2d")
    dtype = torch.promote_types(a.dtype, b.dtype)
    if T == 0:
        return b.to(dtype), state
    h, state = run(a.to(state.dtype), b.to(state.dtype), state=state, resets=resets)
    return h.to(dtype), state
