r"""The delta rule: a memory that corrects what it holds at a key, with an optional decay.

    S  =  diag(exp(g_t)) S_{t-1}                        S: [B, H, K, V]
    S  =  S + beta_j k_j (v_j - S^T e_j)^T              for each of the token's n steps j
    y_t = S^T q_t                                       y: [B, T, H, V]

The decay comes first, once a token; then n writes (Householder steps), one after the other, n = 1
unless k, v and beta have a dimension for them; the read comes last. A step erases what the memory
holds at e, which is k unless `erase` is given. A reset at t empties S before token t.
`beta |k|^2` above 2 (or, with `erase`, `beta (e . k)` outside [0, 2]) makes S grow without bound:
normalise k, or divide beta by |k|^2.
Sources: DeltaNet (arXiv:2406.06484), Gated DeltaNet (arXiv:2412.06464), DeltaProduct
(arXiv:2502.10297), Kimi Delta Attention with a decay per channel (arXiv:2510.26692).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepscan.kernels import available
from stepscan.kernels import delta_rule as native
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
    k: Float[Tensor, "B T n H K"],
    v: Float[Tensor, "B T n H V"],
    *,
    beta: Float[Tensor, "B T n H"],
    log_decay: Float[Tensor, "B T H #K"],
    erase: Float[Tensor, "B T n H K"] | None,
    state: Float[Tensor, "B H K V"],
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """The definition, one step at a time. Every other form is judged against this one."""
    erase = k if erase is None else erase
    ys: list[Tensor] = []
    tokens = zip(*(x.unbind(1) for x in (q, k, v, beta, erase, log_decay, resets)), strict=True)
    for q_t, *writes, g_t, reset in tokens:
        state = state.masked_fill(reset[:, None, None, None], 0.0)
        state = g_t.exp()[..., None] * state
        for k_j, v_j, beta_j, e_j in zip(*(x.unbind(1) for x in writes), strict=True):
            error = v_j - torch.einsum("bhk,bhkv->bhv", e_j, state)
            state = state + (beta_j[..., None] * k_j)[..., None] * error[..., None, :]
        ys.append(torch.einsum("bhk,bhkv->bhv", q_t, state))
    return torch.stack(ys, 1), state


def chunked(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T n H K"],
    v: Float[Tensor, "B T n H V"],
    *,
    beta: Float[Tensor, "B T n H"],
    log_decay: Float[Tensor, "B T H #K"],
    erase: Float[Tensor, "B T n H K"] | None,
    state: Float[Tensor, "B H K V"],
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """A triangular system for all errors of a chunk, the state carried between chunks."""
    erase = k if erase is None else erase
    g = log_decay.masked_fill(resets[..., None, None], -torch.inf)
    k, v, beta, erase = (x.transpose(2, 3) for x in (k, v, beta[..., None], erase))
    ys: list[Tensor] = []
    for part in zip(*(x.split(STRETCH, 1) for x in (q, beta * k, v, erase, g)), strict=True):
        y, state = _stretch(*part, state=state)
        ys.append(y)
    return torch.cat(ys, 1), state


def _stretch(
    q: Float[Tensor, "B T H K"],
    writes: Float[Tensor, "B T H n K"],
    v: Float[Tensor, "B T H n V"],
    erase: Float[Tensor, "B T H n K"],
    g: Float[Tensor, "B T H #K"],
    *,
    state: Float[Tensor, "B H K V"],
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """With L the pairs (e_i, beta_j k_j), the errors u solve (I + L) u = v - (decayed e) S."""
    T, n = q.shape[1], v.shape[3]
    chunk = chunk_length(T, n)
    q, writes, v, erase, g = (in_chunks(x, chunk) for x in (q, writes, v, erase, g))
    reads = torch.cat([erase, q[..., None, :]], -2)  # [N B H C n+1 K]
    scores = pair_scores(reads, writes, g).flatten(-2)  # [N B H C n+1 (C n)]
    start = from_start(g)
    seen = reads * start[..., None, :]
    steps = slice(0, n)
    inverse = unit_lower_inverse(scores[..., steps, :].flatten(-3, -2))
    fresh = inverse @ v.flatten(-3, -2)
    held = -inverse @ seen[..., steps, :].flatten(-3, -2)
    ends = (writes * to_end(g)[..., None, :]).flatten(-3, -2)
    kept = start[..., -1, :, None]
    starts, u, state = walk(fresh, held, ends, kept, torch.zeros_like(kept), state)
    y = seen[..., n, :] @ starts + scores[..., n, :] @ u
    return out_of_chunks(y, T), state


def cpu(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T n H K"],
    v: Float[Tensor, "B T n H V"],
    *,
    beta: Float[Tensor, "B T n H"],
    log_decay: Float[Tensor, "B T H #K"],
    erase: Float[Tensor, "B T n H K"] | None,
    state: Float[Tensor, "B H K V"],
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """The native kernel, float32 on CPU: chunks with the state in cache, threads over heads."""
    inputs = (q, k, v, beta, log_decay, erase, state)
    learns = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    saved = native.saved_tokens(q.shape[1], k.shape[2]) if learns else 0
    y, last, _ = native.delta_rule(*inputs, resets, saved)
    return y, last


FORMS: Mapping[str, Callable[..., tuple[Tensor, Tensor]]] = MappingProxyType(
    {"recurrent": recurrent, "chunked": chunked, "cpu": cpu}
)


def delta_rule(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T *n H K"],
    v: Float[Tensor, "B T *n H V"],
    *,
    beta: Float[Tensor, "B T *n H"],
    log_decay: Float[Tensor, "B T H"] | Float[Tensor, "B T H K"] | None = None,
    erase: Float[Tensor, "B T *n H K"] | None = None,
    state: Float[Tensor, "B H K V"] | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """Correct a decaying memory and read it; the caller scales q.

    The state stays float32 or wider, y has v's dtype, and `form="auto"` picks by length, device and
    dtype, never changing the result.
    """
    _check(q, k, v, beta, log_decay, k if erase is None else erase)
    B, T, H, K = q.shape
    resets = as_resets(resets, q)
    state = as_state(state, (B, H, K, v.shape[-1]), q, k, v, beta, log_decay, erase)
    form = _pick(T, state) if form == "auto" else form
    run = lookup(FORMS, form, kind="form of delta_rule")
    erase = erase if erase is None else erase.to(state.dtype)
    if k.ndim == 4:
        k, v, beta = (x[:, :, None] for x in (k, v, beta))
        erase = erase if erase is None else erase[:, :, None]
    if T == 0:
        return v[:, :, 0], state
    g = q.new_zeros(B, T, H, 1) if log_decay is None else log_decay.reshape(B, T, H, -1)
    q, k, x, beta, g = (x.to(state.dtype) for x in (q, k, v, beta, g))
    y, state = run(q, k, x, beta=beta, log_decay=g, erase=erase, state=state, resets=resets)
    return y.to(v.dtype), state


def _pick(T: int, state: Tensor) -> str:
    if state.dtype == torch.float32 and state.device.type == "cpu" and available("delta_rule"):
        return "cpu"
    return "recurrent" if T <= 4 else "chunked"


def _check(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, erase: Tensor
) -> None:
    decay = None if log_decay is None else tuple(log_decay.shape)
    fits = (
        q.ndim == 4
        and k.ndim in (4, 5)
        and (*k.shape[:2], *k.shape[-2:]) == q.shape
        and v.shape[:-1] == beta.shape == k.shape[:-1]
        and erase.shape == k.shape
        and k.shape[2:-2] != (0,)
    )
    if not fits or decay not in (None, q.shape[:3], q.shape):
        raise ValueError(
            "delta_rule: want q [B T H K], k (and erase) [B T H K], v [B T H V], beta [B T H], all "
            "but q with n steps as [B T n H .] if there are several, log_decay [B T H] or "
            f"[B T H K]; got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, "
            f"beta {tuple(beta.shape)}, erase {tuple(erase.shape)}, log_decay {decay}"
        )
