r"""Local regression of values on keys: softmax attention is the constant case.

    p_tj = softmax_j(q_t^T k_j)                                     the caller scales q
    degree 0:  y_t = sum_j p_tj v_j                                 Nadaraya-Watson: attention
    degree 1:  y_t = m_v + S_kv^T (S_kk + ridge)^-1 (x_t - m_k)     local linear

over the tokens j <= t of the same segment; m and S are the means and covariances of keys and values
under p_t, x_t is the point asked for, in the space of the keys. The constant is not penalised. A
line through the neighbours removes the bias of their mean where x_t lies at their edge.
The state grows: all keys and values since the row began, as `ops/attention.py`.
Source: test-time regression (arXiv:2501.12352), section 3.3.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state
from stepscan.ops.attention import AttentionState
from stepscan.ops.positions import positions


def recurrent(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    x: Float[Tensor, "B T H K"],
    degree: int,
    ridge: float,
    state: AttentionState,
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], AttentionState]:
    """The definition, one step at a time. Every other form is judged against this one."""
    keys, values, length = state
    ys: list[Tensor] = []
    for t, reset in enumerate(resets.unbind(1)):
        empty = reset[:, None, None, None]
        keys = torch.cat([keys.masked_fill(empty, 0.0), k[:, t, None]], 1)
        values = torch.cat([values.masked_fill(empty, 0.0), v[:, t, None]], 1)
        length = length.masked_fill(reset, 0) + 1
        age = torch.arange(keys.shape[1], device=q.device).flip(0)
        scores = torch.einsum("bhk,bshk->bhs", q[:, t], keys)
        p = scores.masked_fill((age >= length[:, None])[:, None], -torch.inf).softmax(-1)
        mean, fit = torch.einsum("bhs,bshv->bhv", p, values), 0.0
        if degree:
            centre = torch.einsum("bhs,bshk->bhk", p, keys)
            off = keys - centre[:, None]
            spread = torch.einsum("bhs,bshk,bshl->bhkl", p, off, off)
            slope = torch.einsum("bhs,bshk,bshv->bhkv", p, off, values)
            spread = spread + ridge * torch.eye(spread.shape[-1]).to(spread)
            solved = torch.linalg.solve(spread, x[:, t] - centre)
            fit = torch.einsum("bhk,bhkv->bhv", solved, slope)
        ys.append(mean + fit)
    return torch.stack(ys, 1), AttentionState(keys, values, length)


def parallel(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    x: Float[Tensor, "B T H K"],
    degree: int,
    ridge: float,
    state: AttentionState,
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], AttentionState]:
    """All pairs at once; the moments of all queries are products with p."""
    before, T, K = state.keys.shape[1], q.shape[1], q.shape[-1]
    keys, values = torch.cat([state.keys, k], 1), torch.cat([state.values, v], 1)
    place = positions(state.length, resets)
    slots = torch.arange(before + T, device=q.device)
    age = slots[before:, None] - slots
    hidden = (age < 0) | (age > place[..., None])  # [B T S]
    scores = torch.einsum("bthk,bshk->bhts", q, keys)
    p = scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1)
    y = torch.einsum("bhts,bshv->bthv", p, values)
    if degree:
        both = torch.cat([keys, values], -1)
        products = (keys[..., None] * both[..., None, :]).flatten(-2)  # [B S H K(K+V)]
        centre = torch.einsum("bhts,bshk->bthk", p, keys)
        moments = torch.einsum("bhts,bshm->bthm", p, products).unflatten(-1, (K, -1))
        moments = moments - centre[..., None] * torch.cat([centre, y], -1)[..., None, :]
        spread = moments[..., :K] + ridge * torch.eye(K).to(moments)
        solved = torch.linalg.solve(spread, x - centre)
        y = y + torch.einsum("bthk,bthkv->bthv", solved, moments[..., K:])
    segment = F.pad(resets.cumsum(1), (before, 0))
    gone = (segment != segment[:, -1:])[..., None, None]
    keys, values = keys.masked_fill(gone, 0.0), values.masked_fill(gone, 0.0)
    return y, AttentionState(keys, values, place[:, -1] + 1)


FORMS: Mapping[str, Callable[..., tuple[Tensor, AttentionState]]] = MappingProxyType(
    {"recurrent": recurrent, "parallel": parallel}
)


def local_regression(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    degree: int = 1,
    ridge: float = 0.1,
    x: Float[Tensor, "B T H K"] | None = None,
    state: AttentionState | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T H V"], AttentionState]:
    """The local fit's value at x; x is q sqrt(K), the unscaled query, unless given.

    The state stays float32 or wider, y has v's dtype, and `form="auto"` never changes the result.
    """
    x = q * q.shape[-1] ** 0.5 if x is None else x
    fits = q.ndim == 4 and k.shape == x.shape == q.shape and v.shape[:-1] == q.shape[:-1]
    if not fits or degree not in (0, 1) or not ridge > 0:
        raise ValueError(
            "local_regression: want q, k, x [B T H K], v [B T H V], degree 0 or 1, ridge above 0; "
            f"got q {tuple(q.shape)}, k {tuple(k.shape)}, x {tuple(x.shape)}, v {tuple(v.shape)}, "
            f"degree={degree}, ridge={ridge}"
        )
    (B, T, H, K), V = q.shape, v.shape[-1]
    if state is None:
        none = torch.zeros(B, device=q.device, dtype=torch.int64)
        state = AttentionState(k.new_zeros(B, 0, H, K), v.new_zeros(B, 0, H, V), none)
    S = state.keys.shape[1]
    keys = as_state(state.keys, (B, S, H, K), q, k, v)
    state = AttentionState(keys, as_state(state.values, (B, S, H, V), keys), state.length)
    run = lookup(FORMS, "parallel" if form == "auto" else form, kind="form of local_regression")
    if T == 0:
        return v, state
    q, k, u, x = (part.to(keys.dtype) for part in (q, k, v, x))
    resets = as_resets(resets, q)
    y, state = run(q, k, u, x=x, degree=degree, ridge=ridge, state=state, resets=resets)
    return y.to(v.dtype), state
