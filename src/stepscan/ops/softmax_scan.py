"""Softmax-weighted means of all prefixes: attention with a query that does not change.

    m_t = max(m_{t-1}, s_t)                                     m: [B, H], the largest score
    u_t = u_{t-1} e^(m_{t-1} - m_t) + e^(s_t - m_t)             u: [B, H], the sum of weights
    w_t = w_{t-1} e^(m_{t-1} - m_t) + e^(s_t - m_t) v_t         w: [B, H, V], the weighted sum
    y_t = w_t / u_t = sum_{j<=t} softmax_j(s_j) v_j

Nothing overflows whatever the scores are: all weights are at most 1. A prefix is a triple, two
neighbouring stretches `merge` to the triple of both, and the empty one is (-inf, 0, 0): the state
before the first token and after a reset. So a prefix scan gives all y, and a token costs O(V).
m is a mere scale: y is the same for any, so no gradient passes through the maximum, where two
equal scores would share it by chance of rounding.
Source: Attention as an RNN (arXiv:2405.13956).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state
from stepscan.ops.linear_scan import linear_scan
from stepscan.ops.semiring_scan import semiring_scan


class SoftmaxSum(NamedTuple):
    """A stretch of tokens: its largest score, and its sums relative to that."""

    peak: Float[Tensor, "*N H"]
    weight: Float[Tensor, "*N H"]
    total: Float[Tensor, "*N H V"]


def merge(left: SoftmaxSum, right: SoftmaxSum) -> SoftmaxSum:
    """Two stretches as one. Associative; a stretch without tokens is neutral."""
    peak = torch.maximum(left.peak, right.peak).detach()
    finite = peak.clamp(min=torch.finfo(peak.dtype).min)  # -inf - (-inf) of two empty ones is NaN
    a, b = (left.peak - finite).exp(), (right.peak - finite).exp()
    weight = a * left.weight + b * right.weight
    return SoftmaxSum(peak, weight, a[..., None] * left.total + b[..., None] * right.total)


def recurrent(
    s: Float[Tensor, "B T H"],
    v: Float[Tensor, "B T H V"],
    *,
    state: SoftmaxSum,
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], SoftmaxSum]:
    """The definition, one step at a time. Every other form is judged against this one."""
    ys: list[Tensor] = []
    for s_t, v_t, reset in zip(s.unbind(1), v.unbind(1), resets.unbind(1), strict=True):
        state = merge(_emptied(state, reset), _tokens(s_t, v_t))
        ys.append(state.total / state.weight[..., None])
    return torch.stack(ys, 1), state


def doubling(
    s: Float[Tensor, "B T H"],
    v: Float[Tensor, "B T H V"],
    *,
    state: SoftmaxSum,
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], SoftmaxSum]:
    """The published prefix scan: stretches of 1, 2, 4 ... tokens merge, log2 T times."""
    T = s.shape[1]
    one = _tokens(s, v)
    first = SoftmaxSum(*(x[:, 0] for x in one))
    first = merge(_emptied(state, resets[:, 0]), first)
    sums = SoftmaxSum(
        *(torch.cat([x[:, None], rest[:, 1:]], 1) for x, rest in zip(first, one, strict=True))
    )
    cut, reach = resets, 1  # cut: a stretch's beginning is in it, what came before is not
    while reach < T:
        before = SoftmaxSum(*(F.pad(x[:, :-reach], _in_front(x, reach)) for x in sums))
        alone = cut | (torch.arange(T, device=s.device) < reach)
        sums = merge(_emptied(before, alone), sums)
        cut, reach = cut | F.pad(cut[:, :-reach], (reach, 0)), 2 * reach
    return sums.total / sums.weight[..., None], SoftmaxSum(*(x[:, -1] for x in sums))


def scan(
    s: Float[Tensor, "B T H"],
    v: Float[Tensor, "B T H V"],
    *,
    state: SoftmaxSum,
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], SoftmaxSum]:
    """A running maximum first; with it the sums are linear, and both scans have native forms."""
    scores, old = s.detach(), state.peak.detach()
    still = torch.zeros_like(scores)
    peaks, peak = semiring_scan(still, scores, "max_plus", state=old, resets=resets)
    before = torch.cat([state.peak[:, None], peaks[:, :-1]], 1)
    before = before.masked_fill(resets[..., None], -torch.inf)
    kept, gain = (before - peaks).exp(), (s - peaks).exp()
    written = gain[..., None] * F.pad(v, (0, 1), value=1.0)
    start = torch.cat([state.total, state.weight[..., None]], -1)
    sums, last = linear_scan(
        kept[..., None].expand_as(written).flatten(2),
        written.flatten(2),
        state=start.flatten(1),
        resets=resets,
    )
    sums, last = sums.view_as(written), last.view_as(start)
    y = sums[..., :-1] / sums[..., -1:]
    return y, SoftmaxSum(peak, last[..., -1], last[..., :-1])


FORMS: Mapping[str, Callable[..., tuple[Tensor, SoftmaxSum]]] = MappingProxyType(
    {"recurrent": recurrent, "doubling": doubling, "scan": scan}
)


def softmax_scan(
    s: Float[Tensor, "B T H"],
    v: Float[Tensor, "B T H V"],
    *,
    state: SoftmaxSum | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T H V"], SoftmaxSum]:
    """The mean of v over each prefix, weighted by softmax(s); and the state after the last token.

    The state stays float32 or wider, y has v's dtype, and `form="auto"` never changes the result.
    """
    if s.ndim != 3 or v.ndim != 4 or v.shape[:3] != s.shape:
        raise ValueError(
            f"softmax_scan: want s [B T H], v [B T H V]; got s {tuple(s.shape)}, v {tuple(v.shape)}"
        )
    B, T, H, V = v.shape
    resets = as_resets(resets, s)
    peak, weight, total = (None, None, None) if state is None else state
    wide = SoftmaxSum(
        as_state(peak, (B, H), s, v, weight, total),
        as_state(weight, (B, H), s, v, peak, total),
        as_state(total, (B, H, V), s, v, peak, weight),
    )
    if state is None:
        wide = wide._replace(peak=torch.full_like(wide.peak, -torch.inf))
    run = lookup(FORMS, "scan" if form == "auto" else form, kind="form of softmax_scan")
    if T == 0:
        return v, wide
    y, wide = run(s.to(wide.peak.dtype), v.to(wide.peak.dtype), state=wide, resets=resets)
    return y.to(v.dtype), wide


def _tokens(s: Float[Tensor, "*N H"], v: Float[Tensor, "*N H V"]) -> SoftmaxSum:
    """Each token for itself: the weight is 1, and grows with the score."""
    weight = (s - s.detach()).exp()
    return SoftmaxSum(s.detach(), weight, weight[..., None] * v)


def _emptied(x: SoftmaxSum, at: Bool[Tensor, "*N"]) -> SoftmaxSum:
    at = at[..., None]
    return SoftmaxSum(
        x.peak.masked_fill(at, -torch.inf),
        x.weight.masked_fill(at, 0.0),
        x.total.masked_fill(at[..., None], 0.0),
    )


def _in_front(x: Tensor, slots: int) -> tuple[int, ...]:
    return (0, 0) * (x.ndim - 2) + (slots, 0)
