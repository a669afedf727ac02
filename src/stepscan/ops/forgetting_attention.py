r"""Softmax attention that forgets: every score is lowered by the decays since its key.

    s_tj = q_t^T k_j + sum_{j < m <= t} g_m              g is log_decay, [B, T, H], finite
    y_t  = sum_j softmax_j(s_tj) v_j

over the tokens j <= t of the same segment; the caller scales q. With g = 0 it is `attention`.
The state grows: keys and values of all tokens since the row began, and how much each has decayed.
Decays are summed up in float64 within a call: differences of long sums decide the scores.
Source: the forgetting transformer, FoX (arXiv:2503.02130).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state
from stepscan.ops.positions import positions

CHUNK = 64
"""Queries at a time, so that there are never T x T scores at once."""


class ForgettingState(NamedTuple):
    """The visible past, newest last; a row's unused slots come first, zero."""

    keys: Float[Tensor, "B S H K"]
    values: Float[Tensor, "B S H V"]
    decay: Float[Tensor, "B S H"]
    """Sum of the log decays since each slot."""
    length: Int[Tensor, "B"]
    """Tokens since the row's last reset."""

    GROWS = ("keys", "values", "decay")  # unannotated: a NamedTuple allows no class variables


def recurrent(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    log_decay: Float[Tensor, "B T H"],
    state: ForgettingState,
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], ForgettingState]:
    """The definition, one step at a time. Every other form is judged against this one."""
    keys, values, decay, length = state
    ys: list[Tensor] = []
    steps = zip(*(x.unbind(1) for x in (q, k, v, log_decay, resets)), strict=True)
    for q_t, k_t, v_t, g_t, reset in steps:
        length = length.masked_fill(reset, 0) + 1
        age = torch.arange(keys.shape[1] + 1, device=q.device).flip(0)
        gone = (age >= length[:, None])[..., None]  # [B S 1]
        decay = torch.cat([decay + g_t[:, None], torch.zeros_like(g_t)[:, None]], 1)
        decay = decay.masked_fill(gone, 0.0)
        keys = torch.cat([keys, k_t[:, None]], 1).masked_fill(gone[..., None], 0.0)
        values = torch.cat([values, v_t[:, None]], 1).masked_fill(gone[..., None], 0.0)
        scores = torch.einsum("bhk,bshk->bsh", q_t, keys) + decay
        scores = scores.masked_fill(gone, -torch.inf)
        ys.append(torch.einsum("bsh,bshv->bhv", scores.softmax(1), values))
    return torch.stack(ys, 1), ForgettingState(keys, values, decay, length)


def parallel(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    log_decay: Float[Tensor, "B T H"],
    state: ForgettingState,
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], ForgettingState]:
    """Masked matrix products, for a chunk of queries at a time."""
    T, S = q.shape[1], state.keys.shape[1]
    queries = q.transpose(1, 2)
    keys = torch.cat([state.keys, k], 1).transpose(1, 2)  # [B H S+T K]
    values = torch.cat([state.values, v], 1).transpose(1, 2)
    since = log_decay.double().cumsum(1).transpose(1, 2)  # [B H T], from the call's start
    until = torch.cat([state.decay.double().transpose(1, 2), -since], 2)  # [B H S+T]
    place = positions(state.length, resets)
    ys: list[Tensor] = []
    for start in range(0, T, CHUNK):
        end = min(start + CHUNK, T)
        slots = torch.arange(S + end, device=q.device)
        distance = torch.arange(S + start, S + end, device=q.device)[:, None] - slots
        hidden = (distance < 0) | (distance > place[:, start:end, None])  # [B C S]
        decay = since[:, :, start:end, None] + until[:, :, None, : S + end]
        decay = decay.to(q.dtype).masked_fill(hidden[:, None], -torch.inf)
        scores = queries[:, :, start:end] @ keys[:, :, : S + end].mT + decay
        ys.append(scores.softmax(-1) @ values[:, :, : S + end])
    length = place[:, -1] + 1
    age = torch.arange(S + T, device=q.device).flip(0)
    gone = (age >= length[:, None])[:, None]  # [B 1 S+T]
    decay = (since[:, :, -1:] + until).to(q.dtype).masked_fill(gone, 0.0)
    keys, values = (x.masked_fill(gone[..., None], 0.0) for x in (keys, values))
    keys, values, decay = (x.transpose(1, 2) for x in (keys, values, decay))
    state = ForgettingState(keys, values, decay, length)
    return torch.cat(ys, 2).transpose(1, 2), state


FORMS: Mapping[str, Callable[..., tuple[Tensor, ForgettingState]]] = MappingProxyType(
    {"recurrent": recurrent, "parallel": parallel}
)


def forgetting_attention(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    log_decay: Float[Tensor, "B T H"],
    state: ForgettingState | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T H V"], ForgettingState]:
    """Attend to all tokens of the segment, the less the more has decayed since.

    The state stays float32 or wider, y has v's dtype, and `form="auto"` never changes the result.
    """
    fits = q.ndim == 4 and k.shape == q.shape and v.shape[:-1] == q.shape[:-1]
    if not fits or log_decay.shape != q.shape[:3]:
        raise ValueError(
            "forgetting_attention: want q, k [B T H K], v [B T H V], log_decay [B T H]; got "
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, "
            f"log_decay {tuple(log_decay.shape)}"
        )
    run = lookup(FORMS, "parallel" if form == "auto" else form, kind="form of forgetting_attention")
    state = _state(state, q, k, v, log_decay)
    resets = as_resets(resets, q)
    if q.shape[1] == 0:
        return v, state
    dtype = state.keys.dtype
    wide = (x.to(dtype) for x in (q, k, v))
    y, state = run(*wide, log_decay=log_decay.to(dtype), state=state, resets=resets)
    return y.to(v.dtype), state


def _state(
    state: ForgettingState | None, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor
) -> ForgettingState:
    B, _, H, K = k.shape
    keys, values, decay, length = (None, None, None, None) if state is None else state
    S = 0 if keys is None else keys.shape[1]
    inputs = [x for x in (q, k, v, log_decay, keys, values, decay) if x is not None]
    if length is None:
        length = torch.zeros(B, dtype=torch.int64, device=k.device)
    if length.shape != (B,) or length.dtype != torch.int64:
        raise ValueError(
            f"state: want length int64 {(B,)}, got {length.dtype} {tuple(length.shape)}"
        )
    return ForgettingState(
        as_state(keys, (B, S, H, K), *inputs),
        as_state(values, (B, S, H, v.shape[-1]), *inputs),
        as_state(decay, (B, S, H), *inputs),
        length,
    )
