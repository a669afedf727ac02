"""Attention to what attention gave before: a recurrence through all of the past.

    alpha_tj = softmax_j(q_t^T k_j)          over j < t of the same segment; none, and all are 0
    y_t = x_t + gain_t sum_{j<t} alpha_tj y_j

    x: [B, T, H, V];  q, k: [B, T, H, K], the caller scales q;  gain: [B, T, H]

With A the matrix of gain_t alpha_tj, below the diagonal only, y solves (I - A) y = x: the parallel
form is a unit triangular system. |gain| < 1 bounds y. With equal weights and a constant gain c an
impulse fades as the power c - 1 of its age, slower than any exponential.
The state grows: all keys and outputs since the row began; `AttentionState`.
Source: Sessa (arXiv:2604.18580).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state
from stepscan.ops.attention import AttentionState
from stepscan.ops.positions import positions

CHUNK = 128
"""Steps in one triangular system: never T x T weights at once."""


def recurrent(
    x: Float[Tensor, "B T H V"],
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    *,
    gain: Float[Tensor, "B T H"],
    state: AttentionState,
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], AttentionState]:
    """The definition, one step at a time. Every other form is judged against this one."""
    keys, values, length = state
    ys: list[Tensor] = []
    steps = zip(*(part.unbind(1) for part in (x, q, k, gain, resets)), strict=True)
    for x_t, q_t, k_t, gain_t, reset in steps:
        empty = reset[:, None, None, None]
        keys, values = keys.masked_fill(empty, 0.0), values.masked_fill(empty, 0.0)
        length = length.masked_fill(reset, 0)
        age = torch.arange(keys.shape[1], device=x.device).flip(0)
        scores = torch.einsum("bhk,bshk->bhs", q_t, keys)
        weights = _softmax(scores, (age >= length[:, None])[:, None])
        y_t = x_t + gain_t[..., None] * torch.einsum("bhs,bshv->bhv", weights, values)
        ys.append(y_t)
        keys = torch.cat([keys, k_t[:, None]], 1)
        values = torch.cat([values, y_t[:, None]], 1)
        length = length + 1
    return torch.stack(ys, 1), AttentionState(keys, values, length)


def triangular(
    x: Float[Tensor, "B T H V"],
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    *,
    gain: Float[Tensor, "B T H"],
    state: AttentionState,
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], AttentionState]:
    """A chunk of steps after the other, each a product with the past and a triangular system."""
    T, S = x.shape[1], state.keys.shape[1]
    place = positions(state.length, resets)
    x, q, k, gain = (part.transpose(1, 2) for part in (x, q, k, gain[..., None]))  # [B H T .]
    keys = torch.cat([state.keys.transpose(1, 2), k], 2)
    ys = [state.values.transpose(1, 2)]
    for start in range(0, T, CHUNK):
        end, now = min(start + CHUNK, T), S + start
        past = torch.cat(ys, 2)
        slots = torch.arange(S + end, device=x.device)
        distance = slots[now:, None] - slots
        hidden = (distance <= 0) | (distance > place[:, start:end, None])  # [B C S + end]
        chunk = slice(start, end)
        weights = _softmax(q[:, :, chunk] @ keys[:, :, : S + end].mT, hidden[:, None])
        before, inside = (gain[:, :, chunk] * weights).split((now, end - start), -1)
        ys.append(
            torch.linalg.solve_triangular(
                -inside, x[:, :, chunk] + before @ past, upper=False, unitriangular=True
            )
        )
    values, length = torch.cat(ys, 2), place[:, -1] + 1
    age = torch.arange(S + T, device=x.device).flip(0)
    gone = (age >= length[:, None]) & resets.any(1, keepdim=True)
    keys, all_values = (
        part.masked_fill(gone[:, None, :, None], 0.0).transpose(1, 2) for part in (keys, values)
    )
    return values[:, :, S:].transpose(1, 2), AttentionState(keys, all_values, length)


FORMS: Mapping[str, Callable[..., tuple[Tensor, AttentionState]]] = MappingProxyType(
    {"recurrent": recurrent, "triangular": triangular}
)


def feedback_attention(
    x: Float[Tensor, "B T H V"],
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    *,
    gain: Float[Tensor, "B T H"],
    state: AttentionState | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T H V"], AttentionState]:
    """Add to each x what attention finds among the outputs before it.

    The state stays float32 or wider, y has x's dtype, and `form="auto"` never changes the result.
    """
    fits = x.ndim == q.ndim == 4 and k.shape == q.shape and x.shape[:3] == q.shape[:3]
    if not fits or gain.shape != x.shape[:3]:
        raise ValueError(
            "feedback_attention: want x [B T H V], q, k [B T H K], gain [B T H]; "
            f"got x {tuple(x.shape)}, q {tuple(q.shape)}, k {tuple(k.shape)}, "
            f"gain {tuple(gain.shape)}"
        )
    (B, T, H, V), K = x.shape, k.shape[-1]
    resets = as_resets(resets, x)
    keys, values, length = (None, None, None) if state is None else state
    S = 0 if keys is None else keys.shape[1]
    given = (x, q, k, gain, keys, values)
    keys, values = as_state(keys, (B, S, H, K), *given), as_state(values, (B, S, H, V), *given)
    if length is None:
        length = torch.zeros(B, dtype=torch.int64, device=x.device)
    state = AttentionState(keys, values, length)
    run = lookup(FORMS, "triangular" if form == "auto" else form, kind="form of feedback_attention")
    if T == 0:
        return x, state
    wide = (part.to(keys.dtype) for part in (x, q, k))
    y, state = run(*wide, gain=gain.to(keys.dtype), state=state, resets=resets)
    return y.to(x.dtype), state


def _softmax(scores: Float[Tensor, "*N S"], hidden: Bool[Tensor, "*#N S"]) -> Float[Tensor, "*N S"]:
    """Zero where hidden, also where everything is."""
    least = torch.finfo(scores.dtype).min
    return scores.masked_fill(hidden, least).softmax(-1).masked_fill(hidden, 0.0)
