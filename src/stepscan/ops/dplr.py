r"""A memory with diagonal plus low-rank transitions.

    S' = diag(exp(g_t)) S_{t-1}                                 S: [B, H, K, V]
    S_t = S' + b_t (a_t^T X) + k_t v_t^T                        X = S', or S_{t-1} if `undecayed`
    y_t = S_t^T q_t                                             y: [B, T, H, V]

A reset at t empties the memory before token t, for X as well.
`delta_rule` is the case a = e, b = -beta k, k = beta k, and cheaper as such; RWKV-7 is the case
`undecayed`, a = -key, b = (rate * key), with its decay at most 1.
Sources: the generalised delta rule of RWKV-7 (arXiv:2503.14456), with `undecayed`; diagonal plus
low rank transitions as in S4 (arXiv:2111.00396), one column here.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state
from stepscan.ops.chunks import (
    STRETCH,
    chunk_length,
    from_start,
    in_chunks,
    out_of_chunks,
    pair_scores,
    to_end,
    unit_lower_inverse,
    walk,
)


def recurrent(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    a: Float[Tensor, "B T H K"],
    b: Float[Tensor, "B T H K"],
    log_decay: Float[Tensor, "B T H #K"],
    undecayed: bool,
    state: Float[Tensor, "B H K V"],
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """The definition, one step at a time. Every other form is judged against this one."""
    ys: list[Tensor] = []
    steps = zip(*(x.unbind(1) for x in (q, k, v, a, b, log_decay, resets)), strict=True)
    for q_t, k_t, v_t, a_t, b_t, g_t, reset in steps:
        state = state.masked_fill(reset[:, None, None, None], 0.0)
        decayed = g_t.exp()[..., None] * state
        held = torch.einsum("bhk,bhkv->bhv", a_t, state if undecayed else decayed)
        state = decayed + b_t[..., None] * held[..., None, :] + k_t[..., None] * v_t[..., None, :]
        ys.append(torch.einsum("bhk,bhkv->bhv", q_t, state))
    return torch.stack(ys, 1), state


def chunked(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    a: Float[Tensor, "B T H K"],
    b: Float[Tensor, "B T H K"],
    log_decay: Float[Tensor, "B T H #K"],
    undecayed: bool,
    state: Float[Tensor, "B H K V"],
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """A triangular system for what each step of a chunk holds, the state carried between chunks."""
    g = log_decay.masked_fill(resets[..., None, None], -torch.inf)
    a = a.masked_fill(resets[..., None, None], 0.0)  # what is read there is empty
    writes = torch.stack([b, k], 3)
    ys: list[Tensor] = []
    for part in zip(*(x.split(STRETCH, 1) for x in (q, writes, v, a, g)), strict=True):
        y, state = _stretch(*part, undecayed=undecayed, state=state)
        ys.append(y)
    return torch.cat(ys, 1), state


def _stretch(
    q: Float[Tensor, "B T H K"],
    writes: Float[Tensor, "B T H 2 K"],
    v: Float[Tensor, "B T H V"],
    a: Float[Tensor, "B T H K"],
    g: Float[Tensor, "B T H #K"],
    *,
    undecayed: bool,
    state: Float[Tensor, "B H K V"],
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """With A_b, A_k the pairs (a_i, b_j) and (a_i, k_j), what is held solves
    (I - A_b) u = A_k v + (decayed a) S.
    """
    T = q.shape[1]
    chunk = chunk_length(T)
    q, writes, v, a, g = (in_chunks(x, chunk) for x in (q, writes, v, a, g))
    # before its own decay, a_t sees what a read at t - 1 sees: the same pairs, one row further up
    reads = torch.stack([F.pad(a[..., 1:, :], (0, 0, 0, 1)) if undecayed else a, q], -2)
    scores = pair_scores(reads, writes, g)  # [N B H C 2 C 2]
    start = from_start(g)
    seen = reads * start[..., None, :]
    pairs, first = scores[..., 0, :, :], seen[..., 0, :]
    if undecayed:
        pairs = F.pad(pairs[..., :-1, :, :], (0, 0, 0, 0, 1, 0))
        first = torch.cat([a[..., :1, :], first[..., :-1, :]], -2)
    inverse = unit_lower_inverse(-pairs[..., 0])
    fresh = inverse @ (pairs[..., 1].tril(-1) @ v)
    ends = writes * to_end(g)[..., None, :]
    given = ends[..., 1, :].mT @ v
    kept = start[..., -1, :, None]
    starts, u, state = walk(fresh, inverse @ first, ends[..., 0, :], kept, given, state)
    written = torch.stack([u, v], -2).flatten(-3, -2)
    y = seen[..., 1, :] @ starts + scores[..., 1, :, :].flatten(-2) @ written
    return out_of_chunks(y, T), state


FORMS: Mapping[str, Callable[..., tuple[Tensor, Tensor]]] = MappingProxyType(
    {"recurrent": recurrent, "chunked": chunked}
)


def dplr(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    a: Float[Tensor, "B T H K"],
    b: Float[Tensor, "B T H K"],
    log_decay: Float[Tensor, "B T H"] | Float[Tensor, "B T H K"] | None = None,
    undecayed: bool = False,
    state: Float[Tensor, "B H K V"] | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """Read and write a memory with transitions diag(exp(g)) + b a^T; the caller scales q.

    The transitions must not grow, or the state does. The state stays float32 or wider, y has v's
    dtype, and `form="auto"` picks by length, never changing the result.
    """
    _check(q, k, v, a, b, log_decay)
    B, T, H, K = q.shape
    form = ("recurrent" if T <= 4 else "chunked") if form == "auto" else form
    run = lookup(FORMS, form, kind="form of dplr")
    resets = as_resets(resets, q)
    state = as_state(state, (B, H, K, v.shape[-1]), q, k, v, a, b, log_decay)
    if T == 0:
        return v, state
    g = q.new_zeros(B, T, H, 1) if log_decay is None else log_decay.reshape(B, T, H, -1)
    wide = {"a": a, "b": b, "log_decay": g}
    wide = {name: x.to(state.dtype) for name, x in wide.items()}
    q, k, x = (x.to(state.dtype) for x in (q, k, v))
    y, state = run(q, k, x, **wide, undecayed=undecayed, state=state, resets=resets)
    return y.to(v.dtype), state


def _check(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor | None) -> None:
    decay = None if log_decay is None else tuple(log_decay.shape)
    fits = q.ndim == 4 and k.shape == a.shape == b.shape == q.shape and v.shape[:-1] == q.shape[:-1]
    if not fits or decay not in (None, q.shape[:3], q.shape):
        raise ValueError(
            "dplr: want q, k, a, b [B T H K], v [B T H V], log_decay [B T H] or [B T H K]; got "
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, a {tuple(a.shape)}, "
            f"b {tuple(b.shape)}, log_decay {decay}"
        )
