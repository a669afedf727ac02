"""The recurrence of `semiring_scan` with a small matrix for each neuron.

    h_t[i] = max(max_j times(A_t[i, j], h_{t-1}[j]), b_t[i])

    A: [B, T, D, N, N];  b, h: [B, T, D, N], real;  state: h_T, [B, D, N]

`times` is min for the semiring `min_max` and + for `max_plus`: the two whose sum is a maximum.
Where max and min only select, every form gives the same bits. Numbers in A and b are finite; what h
is before the first token and after a reset is `initial`.
Sources: MinMax Recurrent Neural Cascades (arXiv:2605.06384), Blelloch (1990) for the scan.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state
from stepscan.ops.semiring_scan import SEMIRINGS, Semiring

BLOCK = 16

MAXIMA: Mapping[str, Semiring] = MappingProxyType(
    {name: SEMIRINGS[name] for name in ("min_max", "max_plus")}
)


def recurrent(
    a: Float[Tensor, "B T D N N"],
    b: Float[Tensor, "B T D N"],
    semiring: Semiring,
    *,
    initial: float,
    state: Float[Tensor, "B D N"],
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T D N"], Float[Tensor, "B D N"]]:
    """The definition, one step at a time. Every other form is judged against this one."""
    hs: list[Tensor] = []
    for a_t, b_t, reset in zip(a.unbind(1), b.unbind(1), resets.unbind(1), strict=True):
        state = state.masked_fill(reset[:, None, None], initial)
        state = torch.maximum(_applied(semiring, a_t, state), b_t)
        hs.append(state)
    return torch.stack(hs, 1), state


def blocked(
    a: Float[Tensor, "B T D N N"],
    b: Float[Tensor, "B T D N"],
    semiring: Semiring,
    *,
    initial: float,
    state: Float[Tensor, "B D N"],
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T D N"], Float[Tensor, "B D N"]]:
    """All blocks at once from nothing, then the states from block to block: 16 + T/16 steps."""
    T = b.shape[1]
    fresh = torch.maximum(_applied(semiring, a, torch.full_like(b, initial)), b)
    b = torch.where(resets[..., None, None], fresh, b)
    a = a.masked_fill(resets[..., None, None, None], -torch.inf)  # nothing is left of h
    a, b = (torch.cat([x, rest], 1) for x, rest in zip((a, b), _still(b, semiring), strict=True))
    a, b = (x.unflatten(1, (-1, BLOCK)) for x in (a, b))
    inside, kept = [b[:, :, 0]], [a[:, :, 0]]
    for a_t, b_t in zip(a.unbind(2)[1:], b.unbind(2)[1:], strict=True):
        inside.append(torch.maximum(_applied(semiring, a_t, inside[-1]), b_t))
        kept.append(semiring.times(a_t[..., None], kept[-1][..., None, :, :]).amax(-2))
    starts = [state]
    for kept_s, inside_s in zip(kept[-1].unbind(1), inside[-1].unbind(1), strict=True):
        starts.append(torch.maximum(_applied(semiring, kept_s, starts[-1]), inside_s))
    start = torch.stack(starts[:-1], 1)[:, :, None]
    h = torch.maximum(_applied(semiring, torch.stack(kept, 2), start), torch.stack(inside, 2))
    return h.flatten(1, 2)[:, :T], starts[-1]


FORMS: Mapping[str, Callable[..., tuple[Tensor, Tensor]]] = MappingProxyType(
    {"recurrent": recurrent, "blocked": blocked}
)


def semiring_matrix_scan(
    a: Float[Tensor, "B T D N N"],
    b: Float[Tensor, "B T D N"],
    semiring: str,
    *,
    initial: float = -torch.inf,
    state: Float[Tensor, "B D N"] | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T D N"], Float[Tensor, "B D N"]]:
    """All h, and the last one. The state stays float32 or wider; h has the dtype of a and b.

    `form="auto"` picks by length, never changing the result.
    """
    pair = lookup(MAXIMA, semiring, kind="semiring of matrices")
    real = not (a.is_complex() or b.is_complex())
    if b.ndim != 4 or a.shape != (*b.shape, b.shape[-1]) or not real:
        raise ValueError(
            "semiring_matrix_scan: want real a [B T D N N], b [B T D N]; "
            f"got a {a.dtype} {tuple(a.shape)}, b {b.dtype} {tuple(b.shape)}"
        )
    B, T, D, N = b.shape
    resets = as_resets(resets, b)
    given, state = state, as_state(state, (B, D, N), a, b)
    state = torch.full_like(state, initial) if given is None else state
    form = ("recurrent" if T <= 2 * BLOCK else "blocked") if form == "auto" else form
    run = lookup(FORMS, form, kind="form of semiring_matrix_scan")
    dtype = torch.promote_types(a.dtype, b.dtype)
    if T == 0:
        return b.to(dtype), state
    wide = (x.to(state.dtype) for x in (a, b))
    h, state = run(*wide, pair, initial=initial, state=state, resets=resets)
    return h.to(dtype), state


def _applied(
    semiring: Semiring, a: Float[Tensor, "*n N N"], h: Float[Tensor, "*#n N"]
) -> Float[Tensor, "*n N"]:
    return semiring.times(a, h[..., None, :]).amax(-1)


def _still(b: Float[Tensor, "B T D N"], semiring: Semiring) -> tuple[Tensor, Tensor]:
    """Steps that keep h, as many as fill the last block."""
    B, T, D, N = b.shape
    off = b.new_full((N, N), -torch.inf).fill_diagonal_(semiring.one)
    missing = -T % BLOCK
    return off.expand(B, missing, D, N, N), b.new_full((B, missing, D, N), -torch.inf)
