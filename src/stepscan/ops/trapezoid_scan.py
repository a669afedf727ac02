r"""A decaying memory whose input is integrated by the trapezoid rule: each token is written twice.

    S_t = exp(g_t) (S_{t-1} + early_t sum_r k_{t-1,r} v_{t-1,r}^T) + late_t sum_r k_{t,r} v_{t,r}^T
    y_{t,r} = S_t^T q_{t,r}                                S: [B, H, K, V];  r = 1 .. R

With `late = lambda dt` and `early = (1 - lambda) dt` this is Mamba-3's exponential-trapezoidal rule
for h' = A h + k v^T, g = dt A: lambda = 1 is Mamba's Euler step, lambda = 1/2 is of second order in
dt. R writes and R reads per token share one memory (MIMO). A reset at t empties the memory before
token t, and there is no token before it. Source: Mamba-3 (arXiv:2603.15569).

`chunked` looks at the memory between the two writes, M_t = S_t - late_t sum_r k_{t,r} v_{t,r}^T:

    M_t = exp(g_t) (M_{t-1} + (late_{t-1} + early_t) sum_r k_{t-1,r} v_{t-1,r}^T)

is linear attention over the tokens before, R steps per token; what a token reads of itself is
added. Nothing is subtracted.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state
from stepscan.ops.linear_attention import linear_attention
from stepscan.ops.shift import shift


class TrapezoidState(NamedTuple):
    """The memory, and the token whose second write is still to come."""

    memory: Float[Tensor, "B H K V"]
    key: Float[Tensor, "B R H K"]
    value: Float[Tensor, "B R H V"]


def recurrent(
    q: Float[Tensor, "B T R H K"],
    k: Float[Tensor, "B T R H K"],
    v: Float[Tensor, "B T R H V"],
    *,
    log_decay: Float[Tensor, "B T H"],
    early: Float[Tensor, "B T H"],
    late: Float[Tensor, "B T H"],
    state: TrapezoidState,
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T R H V"], TrapezoidState]:
    """The definition, one step at a time. Every other form is judged against this one."""
    ys: list[Tensor] = []
    steps = zip(*(x.unbind(1) for x in (q, k, v, log_decay, early, late, resets)), strict=True)
    for q_t, k_t, v_t, g_t, early_t, late_t, reset in steps:
        empty = reset[:, None, None, None]
        S, key, value = (x.masked_fill(empty, 0.0) for x in state)
        S = S + _write(key, value, early_t)
        S = g_t.exp()[..., None, None] * S + _write(k_t, v_t, late_t)
        ys.append(torch.einsum("brhk,bhkv->brhv", q_t, S))
        state = TrapezoidState(S, k_t, v_t)
    return torch.stack(ys, 1), state


def chunked(
    q: Float[Tensor, "B T R H K"],
    k: Float[Tensor, "B T R H K"],
    v: Float[Tensor, "B T R H V"],
    *,
    log_decay: Float[Tensor, "B T H"],
    early: Float[Tensor, "B T H"],
    late: Float[Tensor, "B T H"],
    state: TrapezoidState,
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T R H V"], TrapezoidState]:
    """Linear attention over the tokens before, in whatever form it takes."""
    T, R = q.shape[1:3]
    key, last_key = shift(k, state.key, resets)
    value, last_value = shift(v, state.value, resets)
    written, _ = shift(late, torch.zeros_like(late[:, 0]), None)  # S holds the first one already
    value = value * (log_decay.exp() * (written + early))[:, :, None, :, None]
    first = (0, 0, 0, R - 1)  # a token decays, and begins a segment, with the first of its steps
    y, memory = linear_attention(
        *(x.flatten(1, 2) for x in (q, key, value)),
        log_decay=F.pad(log_decay[:, :, None], first).flatten(1, 2),
        state=state.memory,
        resets=F.pad(resets[..., None], (0, R - 1)).flatten(1, 2),
    )
    y = y.unflatten(1, (T, R)) + _read(q, k, v * late[:, :, None, :, None])
    if R > 1:  # step r has read what steps 1 .. r wrote; a token reads it all
        y = y + _read(q, key, value, after=True)
    memory = memory + _write(last_key, last_value, late[:, -1])
    return y, TrapezoidState(memory, last_key, last_value)


def _write(
    k: Float[Tensor, "B R H K"], v: Float[Tensor, "B R H V"], weight: Float[Tensor, "B H"]
) -> Float[Tensor, "B H K V"]:
    return torch.einsum("brhk,brhv->bhkv", k, v * weight[:, None, :, None])


def _read(
    q: Float[Tensor, "B T R H K"],
    k: Float[Tensor, "B T R H K"],
    v: Float[Tensor, "B T R H V"],
    *,
    after: bool = False,
) -> Float[Tensor, "B T R H V"]:
    """What the reads of a token meet of its own writes: of all, or of those after them only."""
    scores = torch.einsum("btrhk,btshk->bthrs", q, k)
    return torch.einsum("bthrs,btshv->btrhv", scores.triu(1) if after else scores, v)


FORMS: Mapping[str, Callable[..., tuple[Tensor, TrapezoidState]]] = MappingProxyType(
    {"recurrent": recurrent, "chunked": chunked}
)


def trapezoid_scan(
    q: Float[Tensor, "B T R H K"],
    k: Float[Tensor, "B T R H K"],
    v: Float[Tensor, "B T R H V"],
    *,
    log_decay: Float[Tensor, "B T H"],
    early: Float[Tensor, "B T H"],
    late: Float[Tensor, "B T H"],
    state: TrapezoidState | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T R H V"], TrapezoidState]:
    """Read and write a decaying memory, each token with two weights.

    The state stays float32 or wider, y has v's dtype, and `form="auto"` never changes the result.
    """
    _check(q, k, v, log_decay, early, late)
    (B, T, R, H, K), V = k.shape, v.shape[-1]
    given = state or TrapezoidState(*(None,) * 3)  # type: ignore[arg-type]
    memory = as_state(given.memory, (B, H, K, V), q, k, v, log_decay, early, late)
    key = as_state(given.key, (B, R, H, K), memory)
    value = as_state(given.value, (B, R, H, V), memory)
    state = TrapezoidState(memory, key, value)
    run = lookup(FORMS, "chunked" if form == "auto" else form, kind="form of trapezoid_scan")
    resets = as_resets(resets, v)
    if T == 0:
        return v, state
    q, k, values, g, early, late = (x.to(memory.dtype) for x in (q, k, v, log_decay, early, late))
    y, state = run(q, k, values, log_decay=g, early=early, late=late, state=state, resets=resets)
    return y.to(v.dtype), state


def _check(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, early: Tensor, late: Tensor) -> None:
    fits = q.ndim == v.ndim == 5 and q.shape == k.shape and q.shape[:4] == v.shape[:4]
    gates = {tuple(x.shape) for x in (log_decay, early, late)}
    if not fits or gates != {(*v.shape[:2], v.shape[3])}:
        raise ValueError(
            "trapezoid_scan: want q, k [B T R H K], v [B T R H V], log_decay, early, late [B T H]; "
            f"got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, "
            f"log_decay {tuple(log_decay.shape)}, early {tuple(early.shape)}, "
            f"late {tuple(late.shape)}"
        )
