"""Softmax attention over the visible past.

    s_tj = q_t^T k_j + bias[h, min(t - j, S - 1)]            the caller scales q
    y_t  = sum_j exp(s_tj) v_j / (exp(sink_h) + sum_j exp(s_tj))

over the tokens j <= t of the same segment, the last `window` of them if a window is given. k and v
may have fewer heads, G of them: q's heads h * H/G ... (h + 1) * H/G - 1 share k's head h. `bias`
[H, S] adds to the scores by distance: entry d for a token d steps back, the last entry for all
farther ones (ALiBi: -slope * d). `sink` [H] is a score whose value is zero; none is minus infinity.

The state grows: all keys and values since the row began, `window` - 1 at most; `AttentionState`.
Sources: Transformer (arXiv:1706.03762), grouped heads (arXiv:2305.13245), sliding window
(arXiv:2004.05150), ALiBi (arXiv:2108.12409), attention sinks (arXiv:2309.17453, gpt-oss).
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state
from stepscan.ops.positions import positions

CHUNK = 128  # queries at a time: fastest of 32 ... 512, with a window and without


class AttentionState(NamedTuple):
    """Keys and values of the visible past, newest last; a row's unused slots come first, zero."""

    keys: Float[Tensor, "B S G K"]
    values: Float[Tensor, "B S G V"]
    length: Int[Tensor, "B"]
    """Tokens since the row's last reset, those beyond the window too: the next position."""

    GROWS = ("keys", "values")  # unannotated: a NamedTuple allows no class variables


def recurrent(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T G K"],
    v: Float[Tensor, "B T G V"],
    *,
    window: int | None,
    bias: Float[Tensor, "H N"] | None,
    sink: Float[Tensor, "H"] | None,
    state: AttentionState,
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T H V"], AttentionState]:
    """The definition, one step at a time. Every other form is judged against this one."""
    (B, _, H, _), G = q.shape, k.shape[2]
    keys, values, length = state
    ys: list[Tensor] = []
    for q_t, k_t, v_t, reset in zip(
        *(x.unbind(1) for x in (q, k, v, as_resets(resets, q))), strict=True
    ):
        empty = reset[:, None, None, None]
        keys = torch.cat([keys.masked_fill(empty, 0.0), k_t[:, None]], 1)
        values = torch.cat([values.masked_fill(empty, 0.0), v_t[:, None]], 1)
        length = length.masked_fill(reset, 0) + 1
        slots = keys.shape[1] if window is None else min(keys.shape[1], window)
        keys, values = (x[:, x.shape[1] - slots :] for x in (keys, values))
        distance = torch.arange(slots, device=q.device).flip(0)
        scores = torch.einsum("bgrk,bsgk->bgrs", q_t.unflatten(1, (G, H // G)), keys).flatten(1, 2)
        if bias is not None:
            scores = scores + bias[:, distance.clamp(max=bias.shape[1] - 1)]
        hidden = distance >= length[:, None]
        scores = scores.masked_fill(hidden[:, None], -torch.inf)
        if sink is not None:
            scores = torch.cat([sink.expand(B, H)[..., None], scores], -1)
        weights = scores.softmax(-1)[..., -slots:].unflatten(1, (G, H // G))
        ys.append(torch.einsum("bgrs,bsgv->bgrv", weights, values).flatten(1, 2))
    if window is not None:
        keys, values = (x[:, max(0, x.shape[1] - window + 1) :] for x in (keys, values))
    return torch.stack(ys, 1), AttentionState(keys, values, length)


def parallel(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T G K"],
    v: Float[Tensor, "B T G V"],
    *,
    window: int | None,
    bias: Float[Tensor, "H N"] | None,
    sink: Float[Tensor, "H"] | None,
    state: AttentionState,
    resets: Bool[Tensor, "B T"] | None,
    dropout: float = 0.0,
) -> tuple[Float[Tensor, "B T H V"], AttentionState]:
    """Masked matrix products, for a chunk of queries at a time: never T x T scores at once."""
    G = k.shape[2]
    ys: list[Tensor] = []
    chunks, state = _chunks(q, k, v, window=window, state=state, resets=resets)
    for q_c, keys, values, hidden in chunks:
        (B, H, C, _), S = q_c.shape, keys.shape[2]
        scores = (q_c.reshape(B, G, H // G * C, -1) @ keys.mT).view(B, H, C, S)
        if bias is not None:
            scores = scores + _by_distance(bias, C, S)
        scores = scores.masked_fill(hidden[:, None], -torch.inf)
        if sink is not None:
            scores = torch.cat([sink[:, None, None].expand(B, H, C, 1), scores], -1)
        weights = F.dropout(scores.softmax(-1)[..., -S:], dropout)
        ys.append((weights.reshape(B, G, H // G * C, S) @ values).view(B, H, C, -1))
    return torch.cat(ys, 2).transpose(1, 2), state


def fused(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T G K"],
    v: Float[Tensor, "B T G K"],
    *,
    window: int | None,
    bias: None,
    sink: None,
    state: AttentionState,
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T H K"], AttentionState]:
    """torch's flash kernel. It takes no bias and no sink, wants K = V, and derives only once."""
    if bias is not None or sink is not None or k.shape[-1] != v.shape[-1]:
        raise ValueError("attention: form='fused' takes no bias, no sink and K = V; use 'parallel'")
    T = q.shape[1]
    if (window is None or window >= T) and resets is None and not state.keys.shape[1]:
        queries, keys, values = (x.transpose(1, 2) for x in (q, k, v))
        y = F.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=1.0, enable_gqa=True
        )
        return y.transpose(1, 2), _next_state(keys, values, window, state.length + T, None)
    ys: list[Tensor] = []
    chunks, state = _chunks(q, k, v, window=window, state=state, resets=resets)
    for q_c, keys, values, hidden in chunks:
        ys.append(
            F.scaled_dot_product_attention(
                q_c, keys, values, attn_mask=~hidden[:, None], scale=1.0, enable_gqa=True
            )
        )
    return torch.cat(ys, 2).transpose(1, 2), state


FORMS: Mapping[str, Callable[..., tuple[Tensor, AttentionState]]] = MappingProxyType(
    {"recurrent": recurrent, "parallel": parallel, "fused": fused}
)


def attention(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T G K"],
    v: Float[Tensor, "B T G V"],
    *,
    window: int | None = None,
    bias: Float[Tensor, "H N"] | None = None,
    sink: Float[Tensor, "H"] | None = None,
    state: AttentionState | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    dropout: float = 0.0,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T H V"], AttentionState]:
    """Attend to the last `window` tokens of the same segment, or to all of them.

    The state stays float32 or wider, y has v's dtype, and `form="auto"` never changes the result;
    who needs second derivatives asks for `form="parallel"`. `dropout` is the probability that a
    weight is dropped, the others scaled up: for training, and in that form alone.
    """
    _check(q, k, v, window, bias, sink)
    B, T, H, _ = q.shape
    if form == "auto":
        flash = bias is None and sink is None and k.shape[-1] == v.shape[-1] and not dropout
        form = "fused" if flash else "parallel"
    run = lookup(FORMS, form, kind="form of attention")
    state = _state(state, q, k, v, bias, sink)
    resets = None if resets is None else as_resets(resets, q)
    if T == 0:
        return v.new_zeros(B, 0, H, v.shape[-1]), state
    q, k, v_wide = (x.to(state.keys.dtype) for x in (q, k, v))
    bias, sink = (None if x is None else x.to(q.dtype) for x in (bias, sink))
    extra: dict[str, float] = {}
    if dropout:
        if form != "parallel":
            raise ValueError(f"attention: dropout wants form='parallel', got {form!r}")
        extra["dropout"] = dropout
    y, state = run(
        q, k, v_wide, window=window, bias=bias, sink=sink, state=state, resets=resets, **extra
    )
    return y.to(v.dtype), state


def remember(
    k: Float[Tensor, "B T G K"],
    v: Float[Tensor, "B T G V"],
    *,
    window: int | None = None,
    state: AttentionState | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
) -> AttentionState:
    """The state that `attention` would leave, without any query."""
    state = _state(state, k, k, v, None, None)
    if k.shape[1] == 0:
        return state
    k, v = k.to(state.keys.dtype), v.to(state.keys.dtype)
    resets = None if resets is None else as_resets(resets, k)
    return _chunks(k, k, v, window=window, state=state, resets=resets)[1]


def _chunks(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T G K"],
    v: Float[Tensor, "B T G V"],
    *,
    window: int | None,
    state: AttentionState,
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Iterator[tuple[Tensor, Tensor, Tensor, Tensor]], AttentionState]:
    """Stretches of queries [B H C K] with the keys and values [B G S .] that they may see, the last
    at the last query, what is hidden of those [B or 1, C, S], and the state after them all.
    """
    T, S = q.shape[1], state.keys.shape[1]
    # Heads first, in memory too: then a step copies the past once, not once more for the product.
    queries, k, v = (x.transpose(1, 2) for x in (q, k, v))
    keys = torch.cat([state.keys.transpose(1, 2), k], 2)
    values = torch.cat([state.values.transpose(1, 2), v], 2)
    if resets is None:
        length = state.length + T
        first = state.length[:, None] if S else state.length.new_zeros(1, 1)
        place = first + torch.arange(T, device=q.device)
    else:
        place = positions(state.length, resets)
        length = place[:, -1] + 1
    reach = place if window is None else place.clamp(max=window - 1)

    def stretches() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        for start in range(0, T, CHUNK):
            end = min(start + CHUNK, T)
            first = 0 if window is None else max(0, S + start - window + 1)
            slots = torch.arange(first, S + end, device=q.device)
            distance = torch.arange(S + start, S + end, device=q.device)[:, None] - slots
            hidden = (distance < 0) | (distance > reach[:, start:end, None])
            seen = slice(first, S + end)
            yield queries[:, :, start:end], keys[:, :, seen], values[:, :, seen], hidden

    return stretches(), _next_state(keys, values, window, length, resets)


def _next_state(
    keys: Float[Tensor, "B G S K"],
    values: Float[Tensor, "B G S V"],
    window: int | None,
    length: Int[Tensor, "B"],
    resets: Bool[Tensor, "B T"] | None,
) -> AttentionState:
    if window is not None and keys.shape[2] >= window:  # a view would keep all slots alive
        keys, values = (x[:, :, x.shape[2] - window + 1 :].clone() for x in (keys, values))
    if resets is not None:
        age = torch.arange(keys.shape[2], device=keys.device).flip(0)
        gone = (age >= length[:, None]) & resets.any(1, keepdim=True)
        keys, values = (x.masked_fill(gone[:, None, :, None], 0.0) for x in (keys, values))
    keys, values = (x.contiguous().transpose(1, 2) for x in (keys, values))
    return AttentionState(keys, values, length)


def _by_distance(bias: Float[Tensor, "H N"], C: int, S: int) -> Float[Tensor, "H C S"]:
    """The bias of each pair, where the last of C queries stands at the last of S slots."""
    distance = torch.arange(S - 1, -C, -1, device=bias.device).clamp(0, bias.shape[1] - 1)
    return bias[:, distance].unfold(1, S, 1).flip(1)


def _state(
    state: AttentionState | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    sink: Tensor | None,
) -> AttentionState:
    B, _, G, K = k.shape
    keys, values, length = (None, None, None) if state is None else state
    S = 0 if keys is None else keys.shape[1]
    inputs = [x for x in (q, k, v, bias, sink, keys, values) if x is not None]
    keys = as_state(keys, (B, S, G, K), *inputs)
    values = as_state(values, (B, S, G, v.shape[-1]), *inputs)
    if length is None:
        length = torch.zeros(B, dtype=torch.int64, device=k.device)
    if length.shape != (B,) or length.dtype != torch.int64:
        raise ValueError(
            f"state: want length int64 {(B,)}, got {length.dtype} {tuple(length.shape)}"
        )
    return AttentionState(keys, values, length)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    bias: Tensor | None,
    sink: Tensor | None,
) -> None:
    fits = q.ndim == k.ndim == v.ndim == 4 and k.shape[:-1] == v.shape[:-1]
    fits = fits and q.shape[:2] == k.shape[:2] and q.shape[3] == k.shape[3]
    if not fits or not k.shape[2] or q.shape[2] % k.shape[2]:
        raise ValueError(
            "attention: want q [B T H K], k [B T G K], v [B T G V] with G a divisor of H; "
            f"got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    H = q.shape[2]
    if bias is not None and (bias.ndim != 2 or bias.shape[0] != H or not bias.shape[1]):
        raise ValueError(
            f"attention: want bias [H N] by distance, H = {H}; got {tuple(bias.shape)}"
        )
    if sink is not None and sink.shape != (H,):
        raise ValueError(f"attention: want sink [H], H = {H}; got {tuple(sink.shape)}")
    if window is not None and window < 1:
        raise ValueError(f"attention: want window at least 1 or None, got {window}")
