"""The selective scan of Mamba: a diagonal recurrence per channel whose step size sees the input.

    h_t = exp(dt_t A) * h_{t-1} + dt_t B_t x_t        h: [B, E, N], the state
    y_t = h_t C_t + D x_t                             y: [B, T, E]
    y_t = y_t * silu(z_t)                             when z is given

`dt` is softplus(dt + dt_bias), or dt + dt_bias with `dt_softplus=False`. B enters by an Euler step,
A by an exact one, as published. B and C are shared by all channels, [B, T, N], or by the channels
of a group, [B, T, G, N]: channel e belongs to group e // (E / G). A reset at t empties h before
token t. Source: Mamba (arXiv:2312.00752).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stepscan.kernels import available
from stepscan.kernels import selective_scan as native
from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state
from stepscan.ops.linear_scan import linear_scan

BLOCK = 64


def recurrent(
    x: Float[Tensor, "B T E"],
    dt: Float[Tensor, "B T E"],
    *,
    A: Float[Tensor, "E N"],
    B: Float[Tensor, "B T G N"],
    C: Float[Tensor, "B T G N"],
    D: Float[Tensor, "E"] | None,
    z: Float[Tensor, "B T E"] | None,
    dt_bias: Float[Tensor, "E"] | None,
    dt_softplus: bool,
    state: Float[Tensor, "B E N"],
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T E"], Float[Tensor, "B E N"]]:
    """The definition, one step at a time. Every other form is judged against this one."""
    dt = _step_size(dt, dt_bias, dt_softplus)
    B, C = (each.repeat_interleave(len(A) // each.shape[2], 2) for each in (B, C))  # [B T E N]
    ys: list[Tensor] = []
    steps = zip(*(each.unbind(1) for each in (x, dt, B, C, resets)), strict=True)
    for x_t, dt_t, B_t, C_t, reset in steps:
        state = state.masked_fill(reset[:, None, None], 0.0)
        state = (dt_t[..., None] * A).exp() * state + (dt_t * x_t)[..., None] * B_t
        ys.append((state * C_t).sum(-1))
    return _skip_and_gate(torch.stack(ys, 1), x, D, z), state


def blocked(
    x: Float[Tensor, "B T E"],
    dt: Float[Tensor, "B T E"],
    *,
    A: Float[Tensor, "E N"],
    B: Float[Tensor, "B T G N"],
    C: Float[Tensor, "B T G N"],
    D: Float[Tensor, "E"] | None,
    z: Float[Tensor, "B T E"] | None,
    dt_bias: Float[Tensor, "E"] | None,
    dt_softplus: bool,
    state: Float[Tensor, "B E N"],
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T E"], Float[Tensor, "B E N"]]:
    """A `linear_scan` over E x N channels, block after block, so that the h of one fit a cache.

    Gradients go back the same way and compute the h of a block again: at no time is there more
    than a block of them, the states between blocks aside.
    """
    dt = _step_size(dt, dt_bias, dt_softplus)
    again = torch.is_grad_enabled() and x.shape[1] > BLOCK
    ys: list[Tensor] = []
    blocks = zip(*(each.split(BLOCK, 1) for each in (x, dt, B, C, resets)), strict=True)
    for x_c, dt_c, B_c, C_c, resets_c in blocks:
        args = x_c, dt_c, A, B_c, C_c, state, resets_c
        y, state = checkpoint(_block, *args, use_reentrant=False) if again else _block(*args)
        ys.append(y)
    return _skip_and_gate(torch.cat(ys, 1), x, D, z), state


def _step_size(dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool) -> Tensor:
    dt = dt if dt_bias is None else dt + dt_bias
    return F.softplus(dt) if dt_softplus else dt


def _skip_and_gate(y: Tensor, x: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    y = y if D is None else y + D * x
    return y if z is None else y * F.silu(z)


def _block(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, resets: Tensor
) -> tuple[Tensor, Tensor]:
    groups = B.shape[2], len(A) // B.shape[2]
    a = (dt[..., None] * A).exp().flatten(2)  # [B C EN]
    b = ((dt * x).unflatten(2, groups)[..., None] * B[..., None, :]).flatten(2)
    h, state = linear_scan(a, b, state=state.flatten(1), resets=resets)
    h = h.unflatten(2, (*groups, A.shape[1]))
    return (h @ C[..., None]).squeeze(-1).flatten(2), state.unflatten(1, A.shape)


def cpu(
    x: Float[Tensor, "B T E"],
    dt: Float[Tensor, "B T E"],
    *,
    A: Float[Tensor, "E N"],
    B: Float[Tensor, "B T G N"],
    C: Float[Tensor, "B T G N"],
    D: Float[Tensor, "E"] | None,
    z: Float[Tensor, "B T E"] | None,
    dt_bias: Float[Tensor, "E"] | None,
    dt_softplus: bool,
    state: Float[Tensor, "B E N"],
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T E"], Float[Tensor, "B E N"]]:
    """The native kernel, float32 on CPU: all of it in one pass, the states in registers.

    For the gradients it keeps the states of every 16th step and computes the others again.
    """
    given = x, dt, A, B, C, D, z, dt_bias, state
    save = torch.is_grad_enabled() and any(
        each is not None and each.requires_grad for each in given
    )
    y, last, _ = native.selective_scan(*given, resets, dt_softplus, save)
    return y, last


FORMS: Mapping[str, Callable[..., tuple[Tensor, Tensor]]] = MappingProxyType(
    {"recurrent": recurrent, "blocked": blocked, "cpu": cpu}
)


def selective_scan(
    x: Float[Tensor, "B T E"],
    dt: Float[Tensor, "B T E"],
    *,
    A: Float[Tensor, "E N"],
    B: Float[Tensor, "B T N"] | Float[Tensor, "B T G N"],
    C: Float[Tensor, "B T N"] | Float[Tensor, "B T G N"],
    D: Float[Tensor, "E"] | None = None,
    z: Float[Tensor, "B T E"] | None = None,
    dt_bias: Float[Tensor, "E"] | None = None,
    dt_softplus: bool = True,
    state: Float[Tensor, "B E N"] | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T E"], Float[Tensor, "B E N"]]:
    """Scan, skip and gate; A is negative for a stable recurrence.

    The state stays float32 or wider, y has x's dtype, and `form="auto"` picks by length, device and
    dtype, never changing the result.
    """
    _check(x, dt, A, B, C, D, z, dt_bias)
    resets = as_resets(resets, x)
    state = as_state(state, (x.shape[0], *A.shape), x, dt, A, B, C, D, z, dt_bias)
    form = _pick(x.shape[1], state) if form == "auto" else form
    run = lookup(FORMS, form, kind="form of selective_scan")
    if x.shape[1] == 0:
        return x, state
    wide, dt, A, B, C = (each.to(state.dtype) for each in (x, dt, A, B, C))
    D, z, dt_bias = (None if each is None else each.to(state.dtype) for each in (D, z, dt_bias))
    B, C = (each[:, :, None] if each.ndim == 3 else each for each in (B, C))
    weights = {"A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias}
    y, state = run(wide, dt, **weights, dt_softplus=dt_softplus, state=state, resets=resets)
    return y.to(x.dtype), state


def _pick(T: int, state: Tensor) -> str:
    if state.dtype == torch.float32 and state.device.type == "cpu" and available("selective_scan"):
        return "cpu"
    return "recurrent" if T <= 4 else "blocked"


def _check(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
) -> None:
    fits = x.ndim == 3 and dt.shape == x.shape and A.ndim == 2 and len(A) == x.shape[2]
    fits = fits and B.ndim in (3, 4) and B.shape == C.shape
    fits = fits and B.shape[:2] == x.shape[:2] and B.shape[-1] == A.shape[1]
    if not fits or (B.ndim == 4 and (B.shape[2] == 0 or len(A) % B.shape[2])):
        raise ValueError(
            "selective_scan: want x, dt [B T E], A [E N], B, C [B T N] or [B T G N] with G a "
            f"divisor of E; got x {tuple(x.shape)}, dt {tuple(dt.shape)}, A {tuple(A.shape)}, "
            f"B {tuple(B.shape)}, C {tuple(C.shape)}"
        )
    for name, given, want in (
        ("D", D, x.shape[2:]),
        ("dt_bias", dt_bias, x.shape[2:]),
        ("z", z, x.shape),
    ):
        if given is not None and given.shape != want:
            raise ValueError(f"selective_scan: want {name} {tuple(want)}, got {tuple(given.shape)}")
