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

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepscan.names import lookup
from stepscan.ops.arguments import as_resets
from stepscan.ops.fading_cache import Fading, FadingCache, as_cache

CHUNK = 64
"""Queries at a time, so that there are never T x T scores at once."""


def recurrent(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    log_decay: Float[Tensor, "B T H"],
    state: FadingCache,
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], FadingCache]:
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
    return torch.stack(ys, 1), FadingCache(keys, values, decay, length)


def parallel(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    log_decay: Float[Tensor, "B T H"],
    state: FadingCache,
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], FadingCache]:
    """Masked matrix products, for a chunk of queries at a time."""
    T, S = q.shape[1], state.keys.shape[1]
    queries = q.transpose(1, 2)
    keys = torch.cat([state.keys, k], 1).transpose(1, 2)  # [B H S+T K]
    values = torch.cat([state.values, v], 1).transpose(1, 2)
    fading = Fading(log_decay, state, resets)
    ys: list[Tensor] = []
    for start in range(0, T, CHUNK):
        end = min(start + CHUNK, T)
        decay = fading.scores(start, end)
        scores = queries[:, :, start:end] @ keys[:, :, : S + end].mT + decay
        ys.append(scores.softmax(-1) @ values[:, :, : S + end])
    return torch.cat(ys, 2).transpose(1, 2), fading.cache(keys, values)


FORMS: Mapping[str, Callable[..., tuple[Tensor, FadingCache]]] = MappingProxyType(
    {"recurrent": recurrent, "parallel": parallel}
)


def forgetting_attention(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    log_decay: Float[Tensor, "B T H"],
    state: FadingCache | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T H V"], FadingCache]:
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
    state = as_cache(state, k, v, q, log_decay)
    resets = as_resets(resets, q)
    if q.shape[1] == 0:
        return v, state
    dtype = state.keys.dtype
    wide = (x.to(dtype) for x in (q, k, v))
    y, state = run(*wide, log_decay=log_decay.to(dtype), state=state, resets=resets)
    return y.to(v.dtype), state
