"""A dense linear time-invariant system for every channel: LSSL, and S4 once it is discrete.

    h_t = A h_{t-1} + b u_t        u: [B, T, D];  A: [D, N, N];  b, c: [D, N];  h: [B, D, N]
    y_t = c . h_t                  y: [B, T, D]

The same y is a convolution of u with K_l = c A^l b, l = 0, 1, .. `kernel`. A reset at t empties h
before token t. Powers come from squaring: those of an A that shrinks no norm may grow as they like.
Source: LSSL (arXiv:2110.13985).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state
from stepscan.ops.long_conv import convolve, toeplitz, within_segments

CHUNK = 32


def recurrent(
    u: Float[Tensor, "B T D"],
    *,
    A: Float[Tensor, "D N N"],
    b: Float[Tensor, "D N"],
    c: Float[Tensor, "D N"],
    state: Float[Tensor, "B D N"],
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B D N"]]:
    """The definition, one step at a time. Every other form is judged against this one."""
    ys: list[Tensor] = []
    for u_t, reset in zip(u.unbind(1), as_resets(resets, u).unbind(1), strict=True):
        before = state.masked_fill(reset[:, None, None], 0.0)
        state = torch.einsum("dnm,bdm->bdn", A, before) + b * u_t[..., None]
        ys.append((c * state).sum(-1))
    return torch.stack(ys, 1), state


def chunked(
    u: Float[Tensor, "B T D"],
    *,
    A: Float[Tensor, "D N N"],
    b: Float[Tensor, "D N"],
    c: Float[Tensor, "D N"],
    state: Float[Tensor, "B D N"],
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B D N"]]:
    """Inside a chunk the kernel, from chunk to chunk the recurrence. Exactly causal."""
    ys: list[Tensor] = []
    whole = u.shape[1] // CHUNK * CHUNK
    for start, end, size in ((0, whole, CHUNK), (whole, u.shape[1], u.shape[1] - whole)):
        if end > start:
            marks = None if resets is None else resets[:, start:end]
            y, state = _chunks(u[:, start:end], Powers.of(A, b, c, size), state, marks)
            ys.append(y)
    return torch.cat(ys, 1), state


class Powers(NamedTuple):
    """What a chunk of C steps needs of the powers of A."""

    writes: Float[Tensor, "D N C"]
    """A^l b, l = 0 .. C - 1: what an input becomes l steps later."""
    reads: Float[Tensor, "D C N"]
    """c A^l, l = 1 .. C: what the outputs see of the state before the chunk."""
    whole: Float[Tensor, "D N N"]
    """A^C."""
    kernel: Float[Tensor, "D C"]
    """c A^l b, l = 0 .. C - 1."""

    @classmethod
    def of(cls, A: Tensor, b: Tensor, c: Tensor, size: int) -> "Powers":
        """By doubling: log2(C) squarings of A."""
        square, whole = A, None
        writes, reads = b[..., None], c[:, None] @ A
        for bit in range(size.bit_length()):
            if size >> bit & 1:
                whole = square if whole is None else square @ whole
            if writes.shape[2] < size:
                writes = torch.cat([writes, square @ writes], 2)
                reads = torch.cat([reads, reads @ square], 1)
            if size >> (bit + 1):
                square = square @ square
        assert whole is not None, "want at least one step"
        writes, reads = writes[..., :size], reads[:, :size]
        return cls(writes, reads, whole, (c[:, None] @ writes)[:, 0])


def _chunks(
    u: Float[Tensor, "B T D"],
    powers: Powers,
    state: Float[Tensor, "B D N"],
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B D N"]]:
    """`chunked` where C divides T. S is the number of chunks."""
    (B, T, D), C = u.shape, powers.kernel.shape[1]
    S = T // C
    u = u.reshape(B * S, C, D)
    segment = None if resets is None else resets.reshape(B * S, C).cumsum(1)
    columns = u.permute(2, 1, 0)  # [D C BS]
    if segment is None:
        inside = toeplitz(powers.kernel) @ columns
        fresh = None
    else:
        inside = within_segments(u, powers.kernel, segment).permute(2, 1, 0)
        last = segment[:, -1:]  # the writes of another segment do not reach the end of the chunk
        columns = u.masked_fill((segment != last)[..., None], 0.0).permute(2, 1, 0)
        fresh = (last != 0).view(B, S)
    ends = (powers.writes.flip(2) @ columns).unflatten(2, (B, S))  # [D N B S]
    h, starts = state.permute(1, 2, 0), []
    for s, end in enumerate(ends.unbind(3)):
        starts.append(h)
        kept = powers.whole @ h
        h = end + (kept if fresh is None else kept.masked_fill(fresh[:, s], 0.0))
    carried = powers.reads @ torch.stack(starts, 3).flatten(2)  # [D C BS]
    if segment is not None:
        carried = carried.masked_fill((segment != 0).mT, 0.0)
    return (inside + carried).permute(2, 1, 0).reshape(B, T, D), h.permute(2, 0, 1).contiguous()


def kernel(
    A: Float[Tensor, "D N N"], b: Float[Tensor, "D N"], c: Float[Tensor, "D N"], length: int
) -> Float[Tensor, "D L"]:
    """c A^l b for l below L, from the first sqrt(L) powers and every sqrt(L)-th one."""
    block = max(1, round(length**0.5))
    inner = Powers.of(A, b, c, block)
    outer = Powers.of(inner.whole, b, c, -(-length // block))
    reads = torch.cat([c[:, None], outer.reads[:, :-1]], 1)  # c A^(block i)
    return (reads @ inner.writes).flatten(1)[:, :length]


def fft(
    u: Float[Tensor, "B T D"],
    *,
    A: Float[Tensor, "D N N"],
    b: Float[Tensor, "D N"],
    c: Float[Tensor, "D N"],
    state: Float[Tensor, "B D N"],
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B D N"]]:
    """A product of spectra, as published. With resets it is `chunked`: spectra know no segments.

    Causal up to rounding only.
    """
    if resets is not None:
        return chunked(u, A=A, b=b, c=c, state=state, resets=resets)
    y, last = after(u, A=A, b=b, c=c, state=state)
    return convolve(u, kernel(A, b, c, u.shape[1])) + y, last


def after(
    u: Float[Tensor, "B T D"],
    *,
    A: Float[Tensor, "D N N"],
    b: Float[Tensor, "D N"],
    c: Float[Tensor, "D N"],
    state: Float[Tensor, "B D N"],
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B D N"]]:
    """What is left to a form that has the kernel: the state's part of y, and the state after u."""
    B, T, D = u.shape
    repeat = lambda x: x[:, None].expand(D, B, *x.shape[1:]).flatten(0, 1)  # noqa: E731
    first = torch.einsum("dnm,bdm->dbn", A, state).flatten(0, 1)
    free = kernel(repeat(A), first, repeat(c), T).unflatten(0, (D, B)).permute(1, 2, 0)
    block = max(1, round(T**0.5))
    head, h = T % block, state
    for start, end, size in ((0, head, head), (head, T, block)):
        if end > start:
            powers = Powers.of(A, b, c, size)
            for stretch in u[:, start:end].split(size, 1):
                written = torch.einsum("dnl,bld->bdn", powers.writes.flip(2), stretch)
                h = torch.einsum("dnm,bdm->bdn", powers.whole, h) + written
    return free, h


FORMS: Mapping[str, Callable[..., tuple[Tensor, Tensor]]] = MappingProxyType(
    {"recurrent": recurrent, "chunked": chunked, "fft": fft}
)


def state_space(
    u: Float[Tensor, "B T D"],
    *,
    A: Float[Tensor, "D N N"],
    b: Float[Tensor, "D N"],
    c: Float[Tensor, "D N"],
    state: Float[Tensor, "B D N"] | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B D N"]]:
    """Run the system over u.

    The state stays float32 or wider, y has u's dtype, and `form="auto"` picks by length, never
    changing the result.
    """
    fits = u.ndim == 3 and b.ndim == 2 and b.shape[0] == u.shape[2]
    if not fits or b.shape != c.shape or A.shape != (*b.shape, b.shape[1]):
        raise ValueError(
            "state_space: want u [B T D], A [D N N] and b, c [D N]; "
            f"got u {tuple(u.shape)}, A {tuple(A.shape)}, b {tuple(b.shape)}, c {tuple(c.shape)}"
        )
    B, T, D = u.shape
    form = ("recurrent" if T <= 4 else "chunked") if form == "auto" else form
    run = lookup(FORMS, form, kind="form of state_space")
    state = as_state(state, (B, D, b.shape[1]), u, A, b, c)
    resets = None if resets is None else as_resets(resets, u)
    if T == 0:
        return u, state
    system = {name: x.to(state.dtype) for name, x in (("A", A), ("b", b), ("c", c))}
    y, state = run(u.to(state.dtype), **system, state=state, resets=resets)
    return y.to(u.dtype), state
