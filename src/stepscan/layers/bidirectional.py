"""A causal recurrence run both ways over a stretch, in one call over twice the rows.

    forward     tokens 0, 1, ..., T-1                            from the state
    backward    tokens T-r-1, ..., 1, 0, T-r, ..., T-1           from a fresh state

Each segment between resets is mirrored in its own place, so that both directions have the same
resets and nothing crosses one; the last r = `keep` tokens of a segment stay where they are
(partial flip, SIGMA, arXiv:2408.11451), r = 0 is the plain reversal (Vision Mamba,
arXiv:2401.09417). The state that goes on to the next stretch is the forward one: a stretch sees
the past through it, and never the stretch after.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from stepscan.layers.convolution import ShortConv
from stepscan.ops.attention import AttentionState, remember
from stepscan.ops.short_conv import short_conv

S = TypeVar("S")
Run = Callable[[tuple[Tensor, ...], S | None, Tensor | None], tuple[Tensor, S]]


def both_ways(
    run: Run[S],
    forward: tuple[Tensor, ...],
    backward: tuple[Tensor, ...],
    state: S | None,
    resets: Bool[Tensor, "B T"] | None,
    *,
    keep: int = 0,
) -> tuple[Tensor, Tensor, S]:
    """The outputs of either direction, both in the order of the tokens, and the forward state.

    Args:
        run: `(inputs, state, resets) -> (y, state)`, causal; a fresh state of it is all zeros.
        forward: What it takes forwards, [B T ...] each.
        backward: What it takes backwards, in the order of the tokens.
        state: Of the forward direction.
        resets: Where segments begin.
        keep: Tokens at the end of each segment that the backward direction does not mirror.
    """
    pairs = zip(forward, backward, strict=True)
    inputs = tuple(torch.cat([a, mirror(b, resets, keep)]) for a, b in pairs)
    twice = None if resets is None else torch.cat([resets, resets])
    if state is not None:
        state = pytree.tree_map(lambda t: torch.cat([t, torch.zeros_like(t)]), state)
    y, state = run(inputs, state, twice)
    ahead, back = y.chunk(2)
    after = pytree.tree_map(lambda t: t.chunk(2)[0], state)
    return ahead, mirror(back, resets, keep), after


def mirror(
    x: Float[Tensor, "B T *rest"], resets: Bool[Tensor, "B T"] | None = None, keep: int = 0
) -> Float[Tensor, "B T *rest"]:
    """Reverse each segment in its place, but for its last `keep` tokens. Its own inverse."""
    if resets is None:
        turned = max(x.shape[1] - keep, 0)
        return torch.cat([x[:, :turned].flip(1), x[:, turned:]], 1)
    index = _mirrored(resets, keep)
    return x.gather(1, index.view(*index.shape, *(1,) * (x.ndim - 2)).expand_as(x))


def _mirrored(resets: Bool[Tensor, "B T"], keep: int) -> Int[Tensor, "B T"]:
    """The token that takes the place of each."""
    T = resets.shape[1]
    place = torch.arange(T, device=resets.device).expand_as(resets)
    start = torch.where(resets, place, 0).cummax(1).values
    begins = torch.where(F.pad(resets[:, 1:], (0, 1), value=True), place + 1, T)
    end = begins.flip(1).cummin(1).values.flip(1) - keep
    return torch.where(place < end, start + end - 1 - place, place)


def attend_both_ways(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T G K"],
    v: Float[Tensor, "B T G K"],
    *,
    state: AttentionState | None,
    resets: Bool[Tensor, "B T"] | None,
    dropout: float = 0.0,
) -> tuple[Float[Tensor, "B T H K"], AttentionState]:
    """Softmax attention to every token of the same segment, before and after; the caller scales q.

    The first segment also sees the past that the state holds. T x T scores are held at once.
    """
    after = remember(k, v, state=state, resets=resets)
    (B, T), S = q.shape[:2], 0 if state is None else state.keys.shape[1]
    wide = after.keys.dtype
    queries, keys, values = (x.to(wide).transpose(1, 2) for x in (q, k, v))
    segment = q.new_zeros(B, T, dtype=torch.int64) if resets is None else resets.cumsum(1)
    seen = segment[:, :, None] == segment[:, None]
    if state is not None and S:
        keys = torch.cat([state.keys.transpose(1, 2), keys], 2)
        values = torch.cat([state.values.transpose(1, 2), values], 2)
        used = torch.arange(S, device=q.device).flip(0) < state.length[:, None]
        seen = torch.cat([(segment == 0)[:, :, None] & used[:, None], seen], 2)
    y = F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=seen[:, None],
        dropout_p=dropout,
        scale=1.0,
        enable_gqa=True,
    )
    return y.transpose(1, 2).to(v.dtype), after


class CentredConv(ShortConv):
    """A window of `window` tokens per channel around each token, an odd number.

    As a causal window of the tokens up to this one, and another of those after it. The state holds
    the last inputs, for the tokens to come; those that end a stretch see nothing to their right.
    """

    def __init__(self, width: int, window: int, *, bias: bool = True) -> None:
        if window < 1 or window % 2 == 0:
            raise ValueError(f"CentredConv: want an odd window, got {window}; add or take away 1")
        super().__init__(width, window, activation=None, bias=bias)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "B P D"]:
        """No inputs yet: zeros for the P = (window - 1) / 2 before, float32 or wider."""
        window = super().init_state(batch, device=device, dtype=dtype)
        return window[:, : window.shape[1] // 2].clone()

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: Float[Tensor, "B P D"] | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B P D"]]:
        """Convolve along T."""
        until, after = self.weight.split(
            [self.weight.shape[1] // 2 + 1, self.weight.shape[1] // 2], 1
        )
        y, state = short_conv(x, until, self.bias, state=state, resets=resets)
        after = F.pad(after.flip(1), (0, 1))  # the token itself has been met
        back, _ = short_conv(mirror(x, resets), after, resets=resets)
        return y + mirror(back, resets), state
