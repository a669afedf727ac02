r"""Ridge regression of values on keys, solved anew at every token.

    H_t = exp(g_t) H_{t-1} + w_t k_t k_t^T      C_t = exp(g_t) C_{t-1} + w_t k_t v_t^T
    y_t = C_t^T (H_t + diag(ridge))^-1 q_t      y: [B, T, H, V]

y_t is M q_t for the matrix M that minimises sum_i decayed w_i |M k_i - v_i|^2 + sum M^2 ridge over
the tokens so far: what an online memory approaches, at once. The ridge does not decay, so the
system stays solvable. State: H and C side by side, [B, H, K, K + V].
With `steps` the system is solved by that many steps of conjugate gradients instead of exactly, as
MesaNet does; no steps after the K-th change more than the rounding.
Without a decay, the form "rls" follows the inverse itself by rank-one updates (recursive least
squares). Sources: test-time regression (arXiv:2501.12352), MesaNet (arXiv:2506.05233).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state
from stepscan.ops.linear_attention import linear_attention
from stepscan.ops.linear_scan import linear_scan

STRETCH = 64
"""Tokens whose H are written out at once."""


def recurrent(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    weight: Float[Tensor, "B T H"],
    log_decay: Float[Tensor, "B T H"] | None,
    ridge: Float[Tensor, "H K"],
    steps: int | None,
    state: Float[Tensor, "B H K _"],
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K _"]]:
    """The definition, one step at a time. Every other form is judged against this one."""
    K, ys = q.shape[-1], []
    for t, reset in enumerate(resets.unbind(1)):
        state = state.masked_fill(reset[:, None, None, None], 0.0)
        if log_decay is not None:
            state = log_decay[:, t, :, None, None].exp() * state
        seen = torch.cat([k[:, t], v[:, t]], -1)
        state = state + (weight[:, t, :, None] * k[:, t])[..., None] * seen[..., None, :]
        solved = _solve(state[..., :K] + torch.diag_embed(ridge), q[:, t], steps)
        ys.append(torch.einsum("bhkv,bhk->bhv", state[..., K:], solved))
    return torch.stack(ys, 1), state


def rls(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    weight: Float[Tensor, "B T H"],
    log_decay: Float[Tensor, "B T H"] | None,
    ridge: Float[Tensor, "H K"],
    steps: int | None,
    state: Float[Tensor, "B H K _"],
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K _"]]:
    """Recursive least squares: the inverse changes by one rank per token."""
    if log_decay is not None or steps is not None:
        raise ValueError(
            'ridge_regression: want no log_decay and no steps with form="rls", or form="auto"'
        )
    K, ys = q.shape[-1], []
    prior = torch.diag_embed(ridge)
    inverse, first = torch.linalg.inv(state[..., :K] + prior), torch.diag_embed(1 / ridge)
    for t, reset in enumerate(resets.unbind(1)):
        empty = reset[:, None, None, None]
        state, inverse = state.masked_fill(empty, 0.0), torch.where(empty, first, inverse)
        seen = torch.cat([k[:, t], v[:, t]], -1)
        write = weight[:, t, :, None] * k[:, t]
        state = state + write[..., None] * seen[..., None, :]
        # two sides, as a derivative may leave the symmetric matrices
        left = torch.einsum("bhij,bhj->bhi", inverse, write)
        right = torch.einsum("bhij,bhi->bhj", inverse, k[:, t])
        right = right / (1 + (k[:, t] * left).sum(-1, keepdim=True))
        inverse = inverse - left[..., None] * right[..., None, :]
        solved = torch.einsum("bhij,bhj->bhi", inverse, q[:, t])
        ys.append(torch.einsum("bhkv,bhk->bhv", state[..., K:], solved))
    return torch.stack(ys, 1), state


def chunked(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    weight: Float[Tensor, "B T H"],
    log_decay: Float[Tensor, "B T H"] | None,
    ridge: Float[Tensor, "H K"],
    steps: int | None,
    state: Float[Tensor, "B H K _"],
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K _"]]:
    """All systems of a stretch solved at once; the solutions are queries of linear attention."""
    (B, _, H, K), writes = q.shape, weight[..., None] * k
    kept = torch.ones_like(weight) if log_decay is None else log_decay.exp()
    gram, prior, solved = state[..., :K].reshape(B, -1), torch.diag_embed(ridge), []
    for k_s, w_s, q_s, a_s, r_s in zip(
        *(x.split(STRETCH, 1) for x in (k, writes, q, kept, resets)), strict=True
    ):
        b = (w_s[..., None] * k_s[..., None, :]).flatten(2)
        a = a_s[..., None].expand(*a_s.shape, K * K).flatten(2)
        every, gram = linear_scan(a, b, state=gram, resets=r_s)
        every = every.unflatten(-1, (H, K, K))
        solved.append(_solve(every + prior, q_s, steps))
    y, cross = linear_attention(
        torch.cat(solved, 1), writes, v, log_decay=log_decay, state=state[..., K:], resets=resets
    )
    return y, torch.cat([gram.view(B, H, K, K), cross], -1)


FORMS: Mapping[str, Callable[..., tuple[Tensor, Tensor]]] = MappingProxyType(
    {"recurrent": recurrent, "rls": rls, "chunked": chunked}
)


def ridge_regression(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    ridge: Float[Tensor, "H K"],
    weight: Float[Tensor, "B T H"] | None = None,
    log_decay: Float[Tensor, "B T H"] | None = None,
    steps: int | None = None,
    state: Float[Tensor, "B H K _"] | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K _"]]:
    """Fit values to keys and answer the queries; `weight` is how much a token counts, 1 if none.

    `steps` of conjugate gradients replace the exact solution; gradients are those of the exact one.
    The state stays float32 or wider, y has v's dtype, and `form="auto"` never changes the result.
    """
    shapes = {n: None if x is None else tuple(x.shape) for n, x in
              (("weight", weight), ("log_decay", log_decay))}  # fmt: skip
    fits = q.ndim == 4 and k.shape == q.shape and v.shape[:-1] == q.shape[:-1]
    plain = (None, tuple(q.shape[:3]))
    if not fits or ridge.shape != q.shape[2:] or any(s not in plain for s in shapes.values()):
        raise ValueError(
            "ridge_regression: want q, k [B T H K], v [B T H V], ridge [H K], weight and log_decay "
            f"[B T H]; got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, "
            f"ridge {tuple(ridge.shape)}, {shapes}"
        )
    if steps is not None and steps < 1:
        raise ValueError(f"ridge_regression: want steps at least 1, or None for all, got {steps}")
    B, T, H, K = q.shape
    resets = as_resets(resets, q)
    state = as_state(state, (B, H, K, K + v.shape[-1]), q, k, v, weight, log_decay, ridge)
    form = ("recurrent" if T <= 4 else "chunked") if form == "auto" else form
    run = lookup(FORMS, form, kind="form of ridge_regression")
    if T == 0:
        return v, state
    q, k, x, ridge = (part.to(state.dtype) for part in (q, k, v, ridge))
    weight = torch.ones_like(q[..., 0]) if weight is None else weight.to(state.dtype)
    g = None if log_decay is None else log_decay.to(state.dtype)
    options = {"weight": weight, "log_decay": g, "ridge": ridge, "steps": steps}
    y, state = run(q, k, x, **options, state=state, resets=resets)
    return y.to(v.dtype), state


def _solve(
    A: Float[Tensor, "*N K K"], q: Float[Tensor, "*N K"], steps: int | None
) -> Float[Tensor, "*N K"]:
    if steps is None:
        return torch.linalg.solve(A, q)
    return _ConjugateGradients.apply((A + A.mT) / 2, q, steps)  # type: ignore[no-any-return]


class _ConjugateGradients(torch.autograd.Function):
    """A^-1 q for symmetric, positive A. The gradient solves one more system: that of the steps
    would divide by residuals that have become rounding errors.
    """

    @staticmethod
    def forward(ctx: Any, A: Tensor, q: Tensor, steps: int) -> Tensor:
        x = _conjugate_gradients(A, q, steps)
        ctx.save_for_backward(A, x)
        ctx.steps = steps
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        A, x = ctx.saved_tensors
        dq = _conjugate_gradients(A, grads[0], ctx.steps)
        return -dq[..., None] * x[..., None, :], dq, None


def _conjugate_gradients(A: Tensor, q: Tensor, steps: int) -> Tensor:
    """Started as if A were diagonal."""
    tiny = torch.finfo(q.dtype).tiny
    x = q / A.diagonal(dim1=-2, dim2=-1)
    r = q - _times(A, x)
    p, square = r, r.square().sum(-1, keepdim=True)
    for _ in range(steps):
        Ap = _times(A, p)
        length = square / (p * Ap).sum(-1, keepdim=True).clamp(min=tiny)
        x, r = x + length * p, r - length * Ap
        before, square = square, r.square().sum(-1, keepdim=True)
        p = r + square / before.clamp(min=tiny) * p
    return x


def _times(A: Tensor, x: Tensor) -> Tensor:
    return (A @ x[..., None]).squeeze(-1)
