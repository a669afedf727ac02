r"""Gated slot attention: a fixed number of slots, each a running average of keys and of values.

    A_t = A_{t-1} diag(exp(g_t)) + k_t s_t^T                A: [B, H, K, M], the slots' keys
    C_t = diag(exp(g_t)) C_{t-1} + s_t v_t^T                C: [B, H, M, V], the slots' values
    y_t = C_t^T softmax(A_t^T q_t)                          y: [B, T, H, V]

Softmax attention over M slots instead of all tokens. `s` says how much of the token goes into each
slot, `g` is `log_decay`, one per slot; gated slot attention has s = 1 - exp(g), ABC has no decay. A
reset at t empties both memories before token t. The caller scales q.
Sources: GSA (arXiv:2409.07146), ABC (arXiv:2110.02488).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state
from stepscan.ops.chunks import from_start, in_chunks, out_of_chunks, to_end
from stepscan.ops.linear_attention import linear_attention
from stepscan.ops.segment_sums import segment_sums

CHUNK = 16
"""Tokens at once; every pair of them takes one exponential per slot."""


class SlotState(NamedTuple):
    """Keys and values of the slots."""

    keys: Float[Tensor, "B H K M"]
    values: Float[Tensor, "B H M V"]


def recurrent(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    s: Float[Tensor, "B T H M"],
    log_decay: Float[Tensor, "B T H M"],
    state: SlotState,
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], SlotState]:
    """The definition, one step at a time. Every other form is judged against this one."""
    keys, values = state
    ys: list[Tensor] = []
    steps = zip(*(x.unbind(1) for x in (q, k, v, s, log_decay, resets)), strict=True)
    for q_t, k_t, v_t, s_t, g_t, reset in steps:
        empty, kept = reset[:, None, None, None], g_t.exp()
        keys, values = keys.masked_fill(empty, 0.0), values.masked_fill(empty, 0.0)
        keys = keys * kept[..., None, :] + k_t[..., None] * s_t[..., None, :]
        values = values * kept[..., None] + s_t[..., None] * v_t[..., None, :]
        weights = torch.einsum("bhk,bhkm->bhm", q_t, keys).softmax(-1)
        ys.append(torch.einsum("bhm,bhmv->bhv", weights, values))
    return torch.stack(ys, 1), SlotState(keys, values)


def chunked(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    s: Float[Tensor, "B T H M"],
    log_decay: Float[Tensor, "B T H M"],
    state: SlotState,
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], SlotState]:
    """Scores of all chunks at once; the second pass is linear attention with slots for keys."""
    T = q.shape[1]
    g = log_decay.masked_fill(resets[..., None, None], -torch.inf)
    q_c, k_c, s_c, g_c = (in_chunks(x, CHUNK) for x in (q, k, s, g))  # [N B H C .]
    pairs = (q_c @ k_c.mT)[..., None] * segment_sums(g_c).exp()  # [N B H i j M]
    inside = torch.einsum("nbhijm,nbhjm->nbhim", pairs, s_c)
    start, writes = from_start(g_c), k_c.mT @ (s_c * to_end(g_c))
    keys, starts = state.keys, []
    for write, kept in zip(writes, start[..., -1, None, :], strict=True):
        starts.append(keys)
        keys = torch.addcmul(write, keys, kept)
    logits = inside + (q_c @ torch.stack(starts)) * start
    weights = out_of_chunks(logits, T).softmax(-1)
    y, values = linear_attention(
        weights, s, v, log_decay=log_decay, state=state.values, resets=resets
    )
    return y, SlotState(keys, values)


FORMS: Mapping[str, Callable[..., tuple[Tensor, SlotState]]] = MappingProxyType(
    {"recurrent": recurrent, "chunked": chunked}
)


def slot_attention(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    s: Float[Tensor, "B T H M"],
    log_decay: Float[Tensor, "B T H M"] | None = None,
    state: SlotState | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T H V"], SlotState]:
    """Attend to slots that decay; the caller scales q.

    The state stays float32 or wider, y has v's dtype, and `form="auto"` picks by length, never
    changing the result.
    """
    g = torch.zeros_like(s) if log_decay is None else log_decay
    fits = q.ndim == s.ndim == 4 and k.shape == q.shape and g.shape == s.shape
    if not fits or not v.shape[:3] == s.shape[:3] == q.shape[:3]:
        raise ValueError(
            "slot_attention: want q, k [B T H K], v [B T H V], s and log_decay [B T H M]; got "
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, s {tuple(s.shape)}, "
            f"log_decay {tuple(g.shape)}"
        )
    (B, T, H, K), M, V = q.shape, s.shape[3], v.shape[3]
    form = ("recurrent" if T <= 4 else "chunked") if form == "auto" else form
    run = lookup(FORMS, form, kind="form of slot_attention")
    resets = as_resets(resets, q)
    keys, values = (None, None) if state is None else state
    inputs = [x for x in (q, k, v, s, g, keys, values) if x is not None]
    state = SlotState(
        as_state(keys, (B, H, K, M), *inputs), as_state(values, (B, H, M, V), *inputs)
    )
    if T == 0:
        return v, state
    wide = (x.to(state.keys.dtype) for x in (q, k, v))
    s, g = (x.to(state.keys.dtype) for x in (s, g))
    y, state = run(*wide, s=s, log_decay=g, state=state, resets=resets)
    return y.to(v.dtype), state
