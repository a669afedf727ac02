"""Causal convolution of every channel with its own long kernel.

    y_t = sum_l kernel[:, l] * u_{t-l}        l = 0 .. L-1;  u, y: [B, T, D];  kernel: [D, L]

The state holds the last L-1 inputs, newest last, [B, L-1, D]: before the row began, and before a
reset, inputs are zero. A kernel that comes from a linear system needs no such memory: `ssm_conv`.
Sources: CKConv (arXiv:2102.02611), S4 (arXiv:2111.00396), Hyena (arXiv:2302.10866).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state

SHORT = 4  # lags up to which shifts, exactly causal, are no slower than a transform on a CPU
BLOCK = 64  # tokens of a block, whose spectrum has 128 lags


def recurrent(
    u: Float[Tensor, "B T D"],
    kernel: Float[Tensor, "D L"],
    *,
    state: Float[Tensor, "B L-1 D"],
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B L-1 D"]]:
    """The definition, one step at a time. Every other form is judged against this one."""
    ys: list[Tensor] = []
    for u_t, reset in zip(u.unbind(1), as_resets(resets, u).unbind(1), strict=True):
        past = state.masked_fill(reset[:, None, None], 0.0)
        inputs = torch.cat([past, u_t[:, None]], 1)
        ys.append(torch.einsum("bld,dl->bd", inputs, kernel.flip(1)))
        state = inputs[:, 1:]
    return torch.stack(ys, 1), state


def shifted(
    u: Float[Tensor, "B T D"],
    kernel: Float[Tensor, "D L"],
    *,
    state: Float[Tensor, "B L-1 D"],
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B L-1 D"]]:
    """One multiply-add over all tokens for each lag: exactly causal, exact at resets, O(T L)."""
    T, tail = u.shape[1], state.shape[1]
    inputs, segment = torch.cat([state, u], 1), F.pad(as_resets(resets, u).cumsum(1), (tail, 0))
    y = torch.zeros_like(u)
    for lag, weight in enumerate(kernel.unbind(1)):
        lagged = slice(tail - lag, tail - lag + T)
        gone = segment[:, lagged] != segment[:, tail:]
        y = y + inputs[:, lagged].masked_fill(gone[..., None], 0.0) * weight
    gone = segment[:, T:] != segment[:, -1:]
    return y, inputs[:, T:].masked_fill(gone[..., None], 0.0)


def fft(
    u: Float[Tensor, "B T D"],
    kernel: Float[Tensor, "D L"],
    *,
    state: Float[Tensor, "B L-1 D"],
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B L-1 D"]]:
    """A product of spectra, O(T log T). With resets it is `blocked`: a spectrum knows no segments.

    Causal up to rounding only: a transform mixes all tokens, so that a change of a later token may
    move an earlier output, or its gradient, by some 1e-16 (float64) of the largest value.
    """
    if resets is not None:
        return blocked(u, kernel, state=state, resets=resets)
    T, tail = u.shape[1], state.shape[1]
    inputs = torch.cat([state, u], 1)
    return convolve(inputs, kernel, skip=tail), inputs[:, T:].clone()  # a view keeps u alive


def convolve(
    u: Float[Tensor, "B S D"], kernel: Float[Tensor, "D L"], *, skip: int = 0
) -> Float[Tensor, "B T D"]:
    """The sums of the module docstring by Fourier transform, without the first `skip` of them."""
    S, L = u.shape[1], kernel.shape[1]
    size = max(S, S + L - 1 - skip)  # what wraps around lands among the skipped ones
    size = 1 << (size - 1).bit_length()
    spectrum = torch.fft.rfft(u, size, dim=1) * torch.fft.rfft(kernel, size, dim=1).mT
    return torch.fft.irfft(spectrum, size, dim=1)[:, skip:S]


def blocked(
    u: Float[Tensor, "B T D"],
    kernel: Float[Tensor, "D L"],
    *,
    state: Float[Tensor, "B L-1 D"],
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B L-1 D"]]:
    """Blocks of BLOCK tokens: sums inside a block, spectra from each block to the later ones.

    Exactly causal and exact at resets, as no spectrum holds a token and one before it. Costs T L /
    BLOCK products of numbers in spectra. (Partitioned convolution, Stockham 1966.)
    """
    (B, T), tail, C = u.shape[:2], state.shape[1], BLOCK
    front, back = -tail % C, -T % C  # whole blocks of the past and of u
    segment = F.pad(as_resets(resets, u).cumsum(1), (front + tail, 0))
    segment = torch.cat([segment, segment[:, -1:].expand(B, back)], 1).unflatten(1, (-1, C))
    past = torch.cat([state, u], 1)
    blocks = F.pad(past, (0, 0, front, back)).unflatten(1, (-1, C))  # [B S C D]
    S, first = blocks.shape[1], (front + tail) // C
    last = segment[:, :, -1]  # of each block: what later blocks may see, if they see any
    seen = blocks.masked_fill((segment != last[..., None])[..., None], 0.0)
    spectra = torch.fft.rfft(seen, 2 * C, dim=2)  # [B S F D]
    count = min(S - 1, -(-tail // C))  # blocks back to the first one that a token sees
    lags = F.pad(kernel, (0, max(0, (count + 2) * C - kernel.shape[1]))).unfold(1, 2 * C, C)
    sums = torch.zeros_like(spectra[:, first:])
    for m in range(1, count + 1):  # m blocks back are lags (m - 1) C + 1 .. (m + 1) C - 1
        response = torch.fft.rfft(lags[:, m - 1]).mT  # [F D]
        start = max(first, m)
        alive = last[:, start - m : S - m] == last[:, start - 1 : S - 1]
        part = spectra[:, start - m : S - m] * response
        part = part.masked_fill(~alive[..., None, None], 0.0)
        sums = sums + F.pad(part, (0, 0, 0, 0, start - first, 0))
    crossed = torch.fft.irfft(sums, 2 * C, dim=2)[:, :, C:]
    if resets is None:
        near = F.pad(kernel[:, :C], (0, max(0, C - kernel.shape[1])))
        inside = torch.einsum("dij,bsjd->bsid", toeplitz(near), blocks[:, first:])
    else:
        before = last[:, first - 1 : S - 1] if first else torch.zeros_like(last[:, :S])
        crossed = crossed.masked_fill((segment[:, first:] != before[..., None])[..., None], 0.0)
        own = segment[:, first:].flatten(0, 1)
        inside = within_segments(blocks[:, first:].flatten(0, 1), kernel[:, :C], own)
        inside = inside.view_as(crossed)
    gone = segment.flatten(1)[:, front + T : front + T + tail] != last[:, -1:]
    tail_end = past[:, T:].masked_fill(gone[..., None], 0.0)
    return (inside + crossed).flatten(1, 2)[:, :T], tail_end


def toeplitz(kernel: Float[Tensor, "D C"]) -> Float[Tensor, "D C C"]:
    """The lower triangle that convolves."""
    index = torch.arange(kernel.shape[1], device=kernel.device)
    lag = index[:, None] - index
    return kernel[:, lag.clamp(min=0)].masked_fill(lag < 0, 0.0)


def within_segments(
    u: Float[Tensor, "R C D"], kernel: Float[Tensor, "D L"], segment: Int[Tensor, "R C"]
) -> Float[Tensor, "R C D"]:
    """Convolution of stretches, each from nothing and within its segments: an add per lag."""
    size, y = u.shape[1], u * kernel[:, 0]
    for lag in range(1, min(size, kernel.shape[1])):
        same = (segment[:, lag:] == segment[:, : size - lag])[..., None]
        part = u[:, : size - lag].masked_fill(~same, 0.0) * kernel[:, lag]
        y = y + F.pad(part, (0, 0, lag, 0))
    return y


FORMS: Mapping[str, Callable[..., tuple[Tensor, Tensor]]] = MappingProxyType(
    {"recurrent": recurrent, "shifted": shifted, "blocked": blocked, "fft": fft}
)


def long_conv(
    u: Float[Tensor, "B T D"],
    kernel: Float[Tensor, "D L"],
    *,
    state: Float[Tensor, "B L-1 D"] | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B L-1 D"]]:
    """Convolve each channel with its own kernel; column 0 of `kernel` meets the newest token.

    The state stays float32 or wider, y has u's dtype. `form="auto"` picks by length, never
    changing the result: a short kernel by shifts, a long one by blocks.
    """
    if u.ndim != 3 or kernel.ndim != 2 or kernel.shape[0] != u.shape[2] or not kernel.shape[1]:
        raise ValueError(
            "long_conv: want u [B T D], kernel [D L] with L at least 1; "
            f"got u {tuple(u.shape)}, kernel {tuple(kernel.shape)}"
        )
    (B, T, D), L = u.shape, kernel.shape[1]
    if form == "auto":
        form = "recurrent" if T == 1 else "shifted" if L <= SHORT else "blocked"
    run = lookup(FORMS, form, kind="form of long_conv")
    state = as_state(state, (B, L - 1, D), u, kernel)
    resets = None if resets is None else as_resets(resets, u)
    if T == 0:
        return u, state
    y, state = run(u.to(state.dtype), kernel.to(state.dtype), state=state, resets=resets)
    return y.to(u.dtype), state
