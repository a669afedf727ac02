r"""Softmax attention whose positions are reflections: every token turns all keys before it.

    k_j <- (I - beta_t w_t w_t^T) k_j        for all j < t, then k_t joins them as it is
    s_tj = q_t^T k_j + sum_{j < m <= t} g_m  g is log_decay, [B, T, H]; none is zero
    y_t  = sum_j softmax_j(s_tj) v_j

over the tokens j <= t of the same segment; the caller scales q and normalises w. So between q_t and
k_j stand the Householder-like matrices of all tokens in between, in their order: a position that
the input makes, in place of a rotation by the distance. With |w| = 1 a key never grows for beta in
[0, 2]; beta = 2 is a reflection, 1 a projection, and with beta = 0 it is `forgetting_attention`.
The state grows: all keys as they stand now, values, and how much each has decayed.
Source: PaTH attention, and PaTH-FoX with the decay (arXiv:2505.16381).

`chunked` solves, for a chunk's w as rows of W and keys as rows of K, the triangular system
(I + tril(beta W W^T, -1)) U = beta W K^T for what each token takes away: K becomes K - U^T W, and
the queries of the chunk meet Q K^T - tril(Q W^T) U.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepscan.names import lookup
from stepscan.ops.arguments import as_resets
from stepscan.ops.fading_cache import Fading, FadingCache, as_cache

CHUNK = 64
"""Tokens at a time: then all keys are written anew."""


def recurrent(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    w: Float[Tensor, "B T H K"],
    beta: Float[Tensor, "B T H"],
    log_decay: Float[Tensor, "B T H"],
    state: FadingCache,
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], FadingCache]:
    """The definition, one step at a time. Every other form is judged against this one."""
    keys, values, decay, length = state
    ys: list[Tensor] = []
    steps = zip(*(x.unbind(1) for x in (q, k, v, w, beta, log_decay, resets)), strict=True)
    for q_t, k_t, v_t, w_t, beta_t, g_t, reset in steps:
        length = length.masked_fill(reset, 0) + 1
        age = torch.arange(keys.shape[1] + 1, device=q.device).flip(0)
        gone = (age >= length[:, None])[..., None]  # [B S 1]
        taken = beta_t[:, None] * torch.einsum("bhk,bshk->bsh", w_t, keys)
        keys = keys - taken[..., None] * w_t[:, None]
        keys = torch.cat([keys, k_t[:, None]], 1).masked_fill(gone[..., None], 0.0)
        values = torch.cat([values, v_t[:, None]], 1).masked_fill(gone[..., None], 0.0)
        decay = torch.cat([decay + g_t[:, None], torch.zeros_like(g_t)[:, None]], 1)
        decay = decay.masked_fill(gone, 0.0)
        scores = torch.einsum("bhk,bshk->bsh", q_t, keys) + decay
        scores = scores.masked_fill(gone, -torch.inf)
        ys.append(torch.einsum("bsh,bshv->bhv", scores.softmax(1), values))
    return torch.stack(ys, 1), FadingCache(keys, values, decay, length)


def chunked(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    w: Float[Tensor, "B T H K"],
    beta: Float[Tensor, "B T H"],
    log_decay: Float[Tensor, "B T H"],
    state: FadingCache,
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], FadingCache]:
    """A triangular system for all turns of a chunk, masked matrix products for its queries."""
    T, S = q.shape[1], state.keys.shape[1]
    q, k, v, w, keys, values = (x.transpose(1, 2) for x in (q, k, v, w, *state[:2]))
    beta = beta.transpose(1, 2)[..., None]
    values = torch.cat([values, v], 2)  # [B H S+T V]
    fading = Fading(log_decay, state, resets)
    ys: list[Tensor] = []
    for start in range(0, T, CHUNK):
        end = min(start + CHUNK, T)
        Q, W, b = (x[:, :, start:end] for x in (q, w, beta))
        keys = torch.cat([keys, k[:, :, start:end]], 2)
        seen = (b * (W @ keys.mT)).tril(S + start - 1)  # a token turns those before it alone
        taken = torch.linalg.solve_triangular(
            (b * (W @ W.mT)).tril(-1), seen, upper=False, unitriangular=True
        )
        scores = Q @ keys.mT - (Q @ W.mT).tril() @ taken + fading.scores(start, end)
        ys.append(scores.softmax(-1) @ values[:, :, : S + end])
        keys = keys - taken.mT @ W
    return torch.cat(ys, 2).transpose(1, 2), fading.cache(keys, values)


FORMS: Mapping[str, Callable[..., tuple[Tensor, FadingCache]]] = MappingProxyType(
    {"recurrent": recurrent, "chunked": chunked}
)


def path_attention(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    w: Float[Tensor, "B T H K"],
    beta: Float[Tensor, "B T H"],
    log_decay: Float[Tensor, "B T H"] | None = None,
    state: FadingCache | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T H V"], FadingCache]:
    """Attend to all tokens of the segment, along the path of turns to each.

    The state stays float32 or wider, y has v's dtype, and `form="auto"` never changes the result.
    """
    g = torch.zeros_like(beta) if log_decay is None else log_decay
    fits = q.ndim == 4 and k.shape == w.shape == q.shape and v.shape[:-1] == q.shape[:-1]
    if not fits or not beta.shape == g.shape == q.shape[:3]:
        raise ValueError(
            "path_attention: want q, k, w [B T H K], v [B T H V], beta and log_decay [B T H]; got "
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, w {tuple(w.shape)}, v {tuple(v.shape)}, "
            f"beta {tuple(beta.shape)}, log_decay {tuple(g.shape)}"
        )
    form = ("recurrent" if q.shape[1] <= 4 else "chunked") if form == "auto" else form
    run = lookup(FORMS, form, kind="form of path_attention")
    state = as_cache(state, k, v, q, w, beta, g)
    resets = as_resets(resets, q)
    if q.shape[1] == 0:
        return v, state
    dtype = state.keys.dtype
    q, k, x, w = (each.to(dtype) for each in (q, k, v, w))
    beta, g = beta.to(dtype), g.to(dtype)
    y, state = run(q, k, x, w=w, beta=beta, log_decay=g, state=state, resets=resets)
    return y.to(v.dtype), state
