"""A diagonal linear time-invariant system as a convolution: S4D, DSS and their kin.

    h_t = exp(log_a) * h_{t-1} + b * u_t        u: [B, T, D];  log_a, b, c: complex or real [D, N]
    y_t = sum_n Re(c * h_t)                     y: [B, T, D];  h: as they are, [B, D, N]

The same y is a convolution of u with K_l = sum_n Re(c * b * exp(l * log_a)), l = 0, 1, ..
A conjugate pair counts once: put its factor 2 into c. The real part of `log_a` is at most 0.
A reset at t empties h before token t. Sources: DSS (arXiv:2203.14343), S4D (arXiv:2206.11893);
real systems are moving averages, as in MEGA (arXiv:2209.10655).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor

from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state
from stepscan.ops.linear_scan import linear_scan
from stepscan.ops.long_conv import convolve, toeplitz, within_segments

CHUNK = 32


def recurrent(
    u: Float[Tensor, "B T D"],
    *,
    log_a: Inexact[Tensor, "D N"],
    b: Inexact[Tensor, "D N"],
    c: Inexact[Tensor, "D N"],
    state: Inexact[Tensor, "B D N"],
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T D"], Inexact[Tensor, "B D N"]]:
    """The definition, one step at a time. Every other form is judged against this one."""
    ys: list[Tensor] = []
    a = log_a.exp()
    for u_t, reset in zip(u.unbind(1), as_resets(resets, u).unbind(1), strict=True):
        state = a * state.masked_fill(reset[:, None, None], 0.0) + b * u_t[..., None]
        ys.append((c * state).real.sum(-1))
    return torch.stack(ys, 1), state


def chunked(
    u: Float[Tensor, "B T D"],
    *,
    log_a: Inexact[Tensor, "D N"],
    b: Inexact[Tensor, "D N"],
    c: Inexact[Tensor, "D N"],
    state: Inexact[Tensor, "B D N"],
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T D"], Inexact[Tensor, "B D N"]]:
    """Inside a chunk the kernel, from chunk to chunk the recurrence: real matrix products.

    Exactly causal, and exact at resets. The tokens after the last whole chunk make one more.
    """
    T = u.shape[1]
    ys: list[Tensor] = []
    for start, size in ((0, CHUNK), (T - T % CHUNK, T % CHUNK)):
        stretch = slice(start, T - T % CHUNK) if size == CHUNK else slice(start, T)
        if size and u[:, stretch].shape[1]:
            marks = None if resets is None else resets[:, stretch]
            system = {"log_a": log_a, "b": b, "c": c, "state": state}
            y, state = _chunks(u[:, stretch], **system, resets=marks, size=size)
            ys.append(y)
    return torch.cat(ys, 1), state


def _chunks(
    u: Tensor,
    *,
    log_a: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor,
    resets: Tensor | None,
    size: int,
) -> tuple[Tensor, Tensor]:
    """`chunked` where `size` divides T. S is the number of chunks, C their size."""
    (B, T, D), N = u.shape, log_a.shape[1]
    S = T // size
    powers = _powers(log_a, size + 1)  # [D N C+1]
    kernel = ((c * b)[..., None] * powers[..., :-1]).real.sum(1)  # [D C]
    writes = _pairs((b[..., None] * powers[..., :-1]).flip(2))  # [D 2N C], onto the last token
    reads = _pairs((c[..., None] * powers[..., 1:]).conj()).mT  # [D C 2N], off the state before
    u = u.reshape(B * S, size, D)
    segment = None if resets is None else resets.reshape(B * S, size).cumsum(1)
    if segment is None:
        columns = u.permute(2, 1, 0)  # [D C BS]
        kept = powers[..., -1].expand(B, S, D, N)
        inside = toeplitz(kernel) @ columns
    else:
        last = segment[:, -1:]  # the writes of another segment do not reach the end of the chunk
        columns = u.masked_fill((segment != last)[..., None], 0.0).permute(2, 1, 0)
        kept = powers[..., -1].masked_fill((last != 0).view(B, S, 1, 1), 0.0)
        inside = within_segments(u, kernel, segment).permute(2, 1, 0)
    ends = (writes @ columns).view(D, -1, N, B, S).permute(3, 4, 0, 2, 1)
    ends = _from_parts(ends)  # [B S D N], what a chunk adds to the state
    hs, last_h = linear_scan(kept.flatten(2), ends.flatten(2), state=state.flatten(1))
    starts = torch.cat([state.flatten(1)[:, None], hs[:, :-1]], 1).view(B, S, D, N)
    starts = _parts(starts).permute(2, 4, 3, 0, 1).reshape(D, -1, B * S)
    carried = reads @ starts  # [D C BS]
    if segment is not None:
        carried = carried.masked_fill((segment != 0).mT, 0.0)
    y = (inside + carried).permute(2, 1, 0).reshape(B, T, D)
    return y, last_h.view(B, D, N)


def _powers(log_a: Tensor, count: int) -> Tensor:
    """exp(l * log_a) for l below `count`: [D N count]."""
    return (log_a[..., None] * torch.arange(count, device=log_a.device)).exp()


def _pairs(x: Tensor) -> Tensor:
    """[D N C] as real and imaginary parts after each other: [D 2N C]; real ones stay [D N C]."""
    return torch.cat([x.real, x.imag], 1) if x.is_complex() else x


def _parts(x: Tensor) -> Tensor:
    """Real and imaginary part on a last axis, which is of length 1 where all is real."""
    return torch.view_as_real(x) if x.is_complex() else x[..., None]


def _from_parts(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x[..., 0]


def fft(
    u: Float[Tensor, "B T D"],
    *,
    log_a: Inexact[Tensor, "D N"],
    b: Inexact[Tensor, "D N"],
    c: Inexact[Tensor, "D N"],
    state: Inexact[Tensor, "B D N"],
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T D"], Inexact[Tensor, "B D N"]]:
    """A product of spectra, as published. With resets it is `chunked`: spectra know no segments.

    Causal up to rounding only: a change of a later token may move an earlier output, or its
    gradient, by some 1e-16 (float64) of the largest value. `chunked` is exactly causal.
    """
    if resets is not None:
        return chunked(u, log_a=log_a, b=b, c=c, state=state, resets=resets)
    powers = _powers(log_a, u.shape[1] + 1)
    kernel = ((c * b)[..., None] * powers[..., :-1]).real.sum(1)
    y = (
        convolve(u, kernel)
        + torch.einsum("dnt,bdn->btd", c[..., None] * powers[..., 1:], state).real
    )
    written = torch.einsum("dnt,btd->bdn", powers[..., :-1].flip(2), u.to(powers.dtype))
    return y, powers[..., -1] * state + b * written


FORMS: Mapping[str, Callable[..., tuple[Tensor, Tensor]]] = MappingProxyType(
    {"recurrent": recurrent, "chunked": chunked, "fft": fft}
)


def ssm_conv(
    u: Float[Tensor, "B T D"],
    *,
    log_a: Inexact[Tensor, "D N"],
    b: Inexact[Tensor, "D N"],
    c: Inexact[Tensor, "D N"],
    state: Inexact[Tensor, "B D N"] | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T D"], Inexact[Tensor, "B D N"]]:
    """Run the system over u; the state it ends in is the recurrence's, not a tail of inputs.

    The state stays float32 or wider, complex where the system is, y has u's dtype, and
    `form="auto"` picks by length, never changing the result.
    """
    shapes = [tuple(x.shape) for x in (u, log_a, b, c)]
    fits = u.ndim == 3 and log_a.ndim == 2 and log_a.shape[0] == u.shape[2]
    if not fits or not log_a.shape == b.shape == c.shape:
        raise ValueError(
            "ssm_conv: want u [B T D] and log_a, b, c [D N]; got u {}, log_a {}, b {}, c {}".format(
                *shapes
            )
        )
    B, T, D = u.shape
    form = ("recurrent" if T <= 4 else "chunked") if form == "auto" else form
    run = lookup(FORMS, form, kind="form of ssm_conv")
    state = as_state(state, (B, D, log_a.shape[1]), u, log_a, b, c)
    resets = None if resets is None else as_resets(resets, u)
    if T == 0:
        return u, state
    system = {"log_a": log_a, "b": b, "c": c}
    system = {name: x.to(state.dtype) for name, x in system.items()}
    y, state = run(u.to(state.real.dtype), **system, state=state, resets=resets)
    return y.to(u.dtype), state
