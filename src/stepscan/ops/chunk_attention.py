"""Attention inside chunks of C tokens, counted from the last reset: each sees its chunk so far.

    softmax     y_t = sum_j exp(s_tj) v_j / sum_j exp(s_tj)    s_tj = q_t . k_j + bias[t - j]
    laplace     y_t = sum_j Phi(s_tj) v_j                      s_tj = q_t . k_j / n_t + bias[t - j]
    relu2       y_t = sum_j max(0, s_tj)^2 v_j                 the same

over the n_t tokens j <= t of t's chunk. Phi is the normal distribution function with mean sqrt(1/2)
and deviation sqrt(1 / 4 pi): close to relu2, but bounded. The caller scales q; bias is [H, C].
State: C - 1 keys and values, newest last, zero outside the unfinished chunk, and its length.
Sources: MEGA (arXiv:2209.10655), FLASH for relu2 (arXiv:2202.10447).
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state
from stepscan.ops.positions import positions

STRETCH = 128  # queries at a time, whatever the chunk: the products stay small


class ChunkState(NamedTuple):
    """The unfinished chunk."""

    keys: Float[Tensor, "B C-1 H K"]
    values: Float[Tensor, "B C-1 H V"]
    length: Int[Tensor, "B"]
    """Tokens in the unfinished chunk, below C."""


def _laplace(s: Tensor) -> Tensor:
    return torch.special.ndtr((s - math.sqrt(0.5)) * math.sqrt(4 * math.pi))


FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor] | None] = MappingProxyType(
    {"softmax": None, "laplace": _laplace, "relu2": lambda s: s.relu().square()}
)
"""None: not of one score alone."""


def _weigh(
    scores: Float[Tensor, "B H Q S"],
    bias: Float[Tensor, "H Q S"],
    hidden: Bool[Tensor, "B Q S"],
    function: str,
) -> Float[Tensor, "B H Q S"]:
    """The weights of the values."""
    hidden, f = hidden[:, None], FUNCTIONS[function]
    if f is None:
        return (scores + bias).masked_fill(hidden, -torch.inf).softmax(-1)
    seen = (~hidden).sum(-1, keepdim=True)
    return f(scores / seen + bias).masked_fill(hidden, 0.0)


def recurrent(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    bias: Float[Tensor, "H C"],
    function: str,
    state: ChunkState,
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T H V"], ChunkState]:
    """The definition, one step at a time. Every other form is judged against this one."""
    keys, values, length = state
    C, ys = bias.shape[1], []
    distance = torch.arange(C - 1, -1, -1, device=q.device)
    steps = zip(*(x.unbind(1) for x in (q, k, v, as_resets(resets, q))), strict=True)
    for q_t, k_t, v_t, reset in steps:
        length = length.masked_fill(reset, 0)
        empty = (distance > length[:, None])[..., None, None]
        keys = torch.cat([keys, k_t[:, None]], 1).masked_fill(empty, 0.0)
        values = torch.cat([values, v_t[:, None]], 1).masked_fill(empty, 0.0)
        scores = torch.einsum("bhk,bshk->bhs", q_t, keys)[:, :, None]
        hidden = (distance > length[:, None])[:, None]
        weights = _weigh(scores, bias[:, distance][:, None], hidden, function)[:, :, 0]
        ys.append(torch.einsum("bhs,bshv->bhv", weights, values))
        length = (length + 1) % C
        whole = (length == 0)[:, None, None, None]
        keys, values = (x[:, 1:].masked_fill(whole, 0.0) for x in (keys, values))
    return torch.stack(ys, 1), ChunkState(keys, values, length)


def parallel(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    bias: Float[Tensor, "H C"],
    function: str,
    state: ChunkState,
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T H V"], ChunkState]:
    """Masked matrix products, for a stretch of queries at a time: rows may stand anywhere in their
    chunks.
    """
    T, C = q.shape[1], bias.shape[1]
    place = positions(state.length, as_resets(resets, q)) % C
    keys, values = torch.cat([state.keys, k], 1), torch.cat([state.values, v], 1)
    size, ys = min(C, STRETCH), []
    for start in range(0, T, size):
        end = min(start + size, T)
        seen, queries = slice(start, end + C - 1), slice(start, end)
        distance = torch.arange(C - 1, C - 1 + end - start, device=q.device)[:, None]
        distance = distance - torch.arange(end - start + C - 1, device=q.device)
        hidden = (distance < 0) | (distance > place[:, queries, None])
        scores = torch.einsum("bqhk,bshk->bhqs", q[:, queries], keys[:, seen])
        near = bias[:, distance.clamp(0, C - 1)]
        weights = _weigh(scores, near, hidden, function)
        ys.append(torch.einsum("bhqs,bshv->bqhv", weights, values[:, seen]))
    length = (place[:, -1] + 1) % C
    age = torch.arange(C - 2, -1, -1, device=q.device)
    gone = (age >= length[:, None])[..., None, None]
    keys, values = (x[:, T:].masked_fill(gone, 0.0) for x in (keys, values))
    return torch.cat(ys, 1), ChunkState(keys, values, length)


FORMS: Mapping[str, Callable[..., tuple[Tensor, ChunkState]]] = MappingProxyType(
    {"recurrent": recurrent, "parallel": parallel}
)


def chunk_attention(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    bias: Float[Tensor, "H C"],
    function: str = "softmax",
    state: ChunkState | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T H V"], ChunkState]:
    """Attend to the own chunk, as long as `bias` is.

    The state stays float32 or wider, y has v's dtype, and `form="auto"` never changes the result.
    """
    lookup(FUNCTIONS, function, kind="function of chunk_attention")
    fits = q.ndim == v.ndim == 4 and q.shape == k.shape and q.shape[:3] == v.shape[:3]
    if not fits or bias.ndim != 2 or bias.shape[0] != q.shape[2] or not bias.shape[1]:
        raise ValueError(
            "chunk_attention: want q, k [B T H K], v [B T H V], bias [H C] with C at least 1; got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}, {tuple(bias.shape)}"
        )
    (B, T, H, K), C = q.shape, bias.shape[1]
    run = lookup(FORMS, "parallel" if form == "auto" else form, kind="form of chunk_attention")
    keys, values, length = (None, None, None) if state is None else state
    keys = as_state(keys, (B, C - 1, H, K), q, k, v, bias, values)
    values = as_state(values, (B, C - 1, H, v.shape[3]), q, k, v, bias, keys)
    if length is None:
        length = torch.zeros(B, dtype=torch.int64, device=q.device)
    resets = None if resets is None else as_resets(resets, q)
    state = ChunkState(keys, values, length)
    if T == 0:
        return v, state
    wide = (x.to(keys.dtype) for x in (q, k, v))
    y, state = run(*wide, bias=bias.to(keys.dtype), function=function, state=state, resets=resets)
    return y.to(v.dtype), state
