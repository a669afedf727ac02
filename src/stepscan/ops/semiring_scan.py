"""The diagonal recurrence over another pair of operations than * and +.

    h_t = plus(times(a_t, h_{t-1}), b_t)        a, b, h: [B, T, D], real;  state: h_T, [B, D]

    semiring          times(a, h)   plus(x, y)           used by
    min_max           min(a, h)     max(x, y)            MinMax networks: h = max(min(a, h), b)
    max_plus          a + h         max(x, y)            running maxima of mLSTM and of Aaren
    logsumexp_plus    a + h         log(e^x + e^y)       LightNet, Aaren: sums kept as logarithms

`plus` has the neutral element -inf in all three: the default for what h is before the first token
and after a reset. Another value, such as the 0 of a MinMax network, is given as `initial`.
Numbers in `a` and `b` are finite. Sources: Blelloch (1990) for the scan over a semiring, Aaren
(arXiv:2405.13956), LightNet (arXiv:2405.21022).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from stepscan.kernels import available
from stepscan.kernels import semiring_scan as native
from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state

BLOCK = 32


class Semiring(NamedTuple):
    """Two operations, `times` distributing over `plus`, and what leaves h alone under `times`."""

    times: Callable[[Tensor, Tensor], Tensor]
    plus: Callable[[Tensor, Tensor], Tensor]
    one: float
    number: int
    """What the native kernel knows it by."""


SEMIRINGS: Mapping[str, Semiring] = MappingProxyType(
    {
        "min_max": Semiring(torch.minimum, torch.maximum, torch.inf, 0),
        "max_plus": Semiring(torch.add, torch.maximum, 0.0, 1),
        "logsumexp_plus": Semiring(torch.add, torch.logaddexp, 0.0, 2),
    }
)


def recurrent(
    a: Float[Tensor, "B T D"],
    b: Float[Tensor, "B T D"],
    semiring: Semiring,
    *,
    initial: float,
    state: Float[Tensor, "B D"],
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B D"]]:
    """The definition, one step at a time. Every other form is judged against this one."""
    hs: list[Tensor] = []
    for a_t, b_t, reset in zip(a.unbind(1), b.unbind(1), resets.unbind(1), strict=True):
        state = state.masked_fill(reset[:, None], initial)
        state = semiring.plus(semiring.times(a_t, state), b_t)
        hs.append(state)
    return torch.stack(hs, 1), state


def blocked(
    a: Float[Tensor, "B T D"],
    b: Float[Tensor, "B T D"],
    semiring: Semiring,
    *,
    initial: float,
    state: Float[Tensor, "B D"],
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B D"]]:
    """All blocks at once from nothing, then the states from block to block: 32 + T/32 steps."""
    (B, T, D), one = b.shape, semiring.one
    fresh = semiring.plus(semiring.times(a, torch.full_like(a, initial)), b)
    b = torch.where(resets[..., None], fresh, b)
    a = a.masked_fill(resets[..., None], -torch.inf)  # times(-inf, h) is -inf: nothing is left of h
    blocks = -(-T // BLOCK)
    padding = (0, 0, 0, blocks * BLOCK - T)  # with steps that keep h
    a = F.pad(a, padding, value=one).reshape(B * blocks, BLOCK, D)
    b = F.pad(b, padding, value=-torch.inf).reshape(B * blocks, BLOCK, D)
    inside, kept = [b[:, 0]], [a[:, 0]]
    for a_t, b_t in zip(a.unbind(1)[1:], b.unbind(1)[1:], strict=True):
        inside.append(semiring.plus(semiring.times(a_t, inside[-1]), b_t))
        kept.append(semiring.times(a_t, kept[-1]))
    inside, kept = (torch.stack(x, 1).view(B, blocks, BLOCK, D) for x in (inside, kept))
    starts = [state]
    for kept_s, inside_s in zip(kept[:, :, -1].unbind(1), inside[:, :, -1].unbind(1), strict=True):
        starts.append(semiring.plus(semiring.times(kept_s, starts[-1]), inside_s))
    h = semiring.plus(semiring.times(kept, torch.stack(starts[:-1], 1)[:, :, None]), inside)
    return h.flatten(1, 2)[:, :T], starts[-1]


def cpu(
    a: Float[Tensor, "B T D"],
    b: Float[Tensor, "B T D"],
    semiring: Semiring,
    *,
    initial: float,
    state: Float[Tensor, "B D"],
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B D"]]:
    """The native kernel, float32 on CPU: vectors of channels, threads over rows and channels."""
    h = native.semiring_scan(a, b, state, resets, semiring.number, float(initial))
    return h, h[:, -1].clone()  # a view would keep all of h alive


FORMS: Mapping[str, Callable[..., tuple[Tensor, Tensor]]] = MappingProxyType(
    {"recurrent": recurrent, "blocked": blocked, "cpu": cpu}
)


def semiring_scan(
    a: Float[Tensor, "B T D"],
    b: Float[Tensor, "B T D"],
    semiring: str,
    *,
    initial: float = -torch.inf,
    state: Float[Tensor, "B D"] | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B D"]]:
    """All h, and the last one. The state stays float32 or wider; h has the dtype of a and b.

    `form="auto"` picks by length, device and dtype, never changing the result.
    """
    pair = lookup(SEMIRINGS, semiring, kind="semiring")
    if a.ndim != 3 or a.shape != b.shape or a.is_complex() or b.is_complex():
        raise ValueError(
            "semiring_scan: want real a, b [B T D]; "
            f"got a {a.dtype} {tuple(a.shape)}, b {b.dtype} {tuple(b.shape)}"
        )
    B, T, D = b.shape
    resets = as_resets(resets, b)
    given, state = state, as_state(state, (B, D), a, b)
    state = torch.full_like(state, initial) if given is None else state
    run = lookup(FORMS, _pick(T, state) if form == "auto" else form, kind="form of semiring_scan")
    dtype = torch.promote_types(a.dtype, b.dtype)
    if T == 0:
        return b.to(dtype), state
    wide = (x.to(state.dtype) for x in (a, b))
    h, state = run(*wide, pair, initial=initial, state=state, resets=resets)
    return h.to(dtype), state


def _pick(T: int, state: Tensor) -> str:
    if state.dtype == torch.float32 and state.device.type == "cpu" and available("semiring_scan"):
        return "cpu"
    return "recurrent" if T <= 2 * BLOCK else "blocked"
