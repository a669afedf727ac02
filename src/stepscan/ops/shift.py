"""The token before: x_{t-1} at t, zero at a reset."""

import torch
from jaxtyping import Bool, Inexact
from torch import Tensor


def shift(
    x: Inexact[Tensor, "B T *rest"],
    state: Inexact[Tensor, "B *rest"],
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Inexact[Tensor, "B T *rest"], Inexact[Tensor, "B *rest"]]:
    """All the tokens before, and the last token; `state` is the token before the first."""
    past = torch.cat([state[:, None], x.to(state.dtype)], 1)
    before, last = past[:, :-1].to(x.dtype), past[:, -1].clone()
    if resets is not None:
        before = before.masked_fill(resets.view(*resets.shape, *(1,) * (x.ndim - 2)), 0.0)
    return before, last
