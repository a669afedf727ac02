"""HiPPO: linear systems whose state is the recent past, as coefficients of orthogonal functions.

    x' = A x + B u,    x_n(t) = int_0^inf u(t - s) p_n(s) w(s) ds,    so e^{sA} B = p w at time s
    u(t - s) ~ sum_n x_n(t) p_n(s)                                    `reconstruct`

    measure    w(s)              p_n(s)
    legs       e^-s              sqrt(2n + 1) P_n(2 e^-s - 1)      Legendre, all the past, warped
    lagt       e^-s              L_n(s)                            Laguerre, all the past
    legt       1 on [0, 1]       sqrt(2n + 1) P_n(1 - 2s)          Legendre, a window
    fout       1 on [0, 1]       1, 0, sqrt2 cos 2 pi n s, sqrt2 sin 2 pi n s, ..     a window

A window forgets u(t - 1), which is read off the state: exact for `legs` and `lagt`, `legt` and
`fout` are windows only as N grows. A Fourier sum is the mean of both ends at an edge, so `fout` has
2 sum_n x_n p_n(1) - u(t) there, hence B = 2 p(0).

Each A is a normal matrix minus one or two positive terms, A = V diag(lambda) V^* - P P^T, which
S4 relies on: `normal_part`. Everything is float64 or complex128.
Sources: HiPPO (arXiv:2008.07669), S4 (arXiv:2111.00396), generalised HiPPO (arXiv:2206.12037).
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from stepscan.names import lookup

LEAST_DECAY = 1e-4
"""What a trainable decay starts from where a measure has none: its logarithm must be finite."""


class Measure(NamedTuple):
    """One row of the table above, for N coefficients."""

    matrix: Callable[[int], Tensor]
    """A, [N N]."""
    low_rank: Callable[[int], Tensor]
    """P, [N R]."""
    functions: Callable[[int, Tensor], Tensor]
    """p_n(s), [S N]."""
    weight: Callable[[Tensor], Tensor]
    """w(s), [S]."""
    input_gain: float = 1.0
    """B over p(0)."""


def _degrees(N: int) -> Float[Tensor, "N"]:
    return torch.arange(N, dtype=torch.float64)


def _sizes(N: int) -> Float[Tensor, "N"]:
    return (2 * _degrees(N) + 1).sqrt()


def _signs(N: int) -> Float[Tensor, "N"]:
    return 1 - 2 * (_degrees(N) % 2)


def _legs(N: int) -> Tensor:
    return -torch.outer(_sizes(N), _sizes(N)).tril(-1) - torch.diag(_degrees(N) + 1)


def _legt(N: int) -> Tensor:
    size, signed = _sizes(N), _sizes(N) * _signs(N)
    return -torch.outer(size, size).tril() - torch.outer(signed, signed).triu(1)


def _lagt(N: int) -> Tensor:
    return -torch.ones(N, N, dtype=torch.float64).tril()


def _fout_start(N: int) -> Tensor:
    start = math.sqrt(2) * ((_degrees(N) + 1) % 2)
    start[0] = 1.0
    return start


def _fout(N: int) -> Tensor:
    turn = torch.zeros(N, dtype=torch.float64)
    turn[::2] = 2 * math.pi * _degrees((N + 1) // 2)
    skew = torch.diag(turn[:-1], -1) - torch.diag(turn[:-1], 1)
    return skew - 2 * torch.outer(_fout_start(N), _fout_start(N))


def _legendre(N: int, x: Tensor) -> Tensor:
    """sqrt(2n + 1) P_n(x), by the three-term recurrence."""
    terms = [torch.ones_like(x), x]
    for n in range(1, N - 1):
        terms.append(((2 * n + 1) * x * terms[n] - n * terms[n - 1]) / (n + 1))
    return torch.stack(terms[:N], -1) * _sizes(N)


def _laguerre(N: int, s: Tensor) -> Tensor:
    terms = [torch.ones_like(s), 1 - s]
    for n in range(1, N - 1):
        terms.append(((2 * n + 1 - s) * terms[n] - n * terms[n - 1]) / (n + 1))
    return torch.stack(terms[:N], -1)


def _fourier(N: int, s: Tensor) -> Tensor:
    angle = 2 * math.pi * s[..., None] * _degrees((N + 1) // 2)
    pairs = math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], -1).flatten(-2)
    return torch.cat([torch.ones_like(s)[..., None], pairs[..., 1:N]], -1)


def _window(s: Tensor) -> Tensor:
    return ((s >= 0) & (s <= 1)).to(s.dtype)


MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "legs": Measure(
            matrix=_legs,
            low_rank=lambda N: (_sizes(N) / math.sqrt(2))[:, None],
            functions=lambda N, s: _legendre(N, 2 * (-s).exp() - 1),
            weight=lambda s: (-s).exp(),
        ),
        "lagt": Measure(
            matrix=_lagt,
            low_rank=lambda N: torch.full((N, 1), math.sqrt(0.5), dtype=torch.float64),
            functions=_laguerre,
            weight=lambda s: (-s).exp(),
        ),
        "legt": Measure(
            matrix=_legt,
            low_rank=lambda N: torch.stack([_sizes(N), _sizes(N) * _signs(N)], 1) / math.sqrt(2),
            functions=lambda N, s: _legendre(N, 1 - 2 * s),
            weight=_window,
        ),
        "fout": Measure(
            matrix=_fout,
            low_rank=lambda N: math.sqrt(2) * _fout_start(N)[:, None],
            functions=_fourier,
            weight=_window,
            input_gain=2.0,
        ),
    }
)


def hippo(measure: str, N: int) -> tuple[Float[Tensor, "N N"], Float[Tensor, "N"]]:
    """A and B of a measure."""
    m = lookup(MEASURES, measure, kind="HiPPO measure")
    start = m.functions(N, torch.zeros((), dtype=torch.float64))
    return m.matrix(N), m.input_gain * start


def kernels(measure: str, N: int, s: Float[Tensor, "S"]) -> Float[Tensor, "S N"]:
    """What x_n weighs the input s ago with, p_n(s) w(s)."""
    m = lookup(MEASURES, measure, kind="HiPPO measure")
    return m.functions(N, s.double()) * m.weight(s.double())[:, None]


def reconstruct(
    measure: str, x: Float[Tensor, "*B N"], s: Float[Tensor, "S"]
) -> Float[Tensor, "*B S"]:
    """The input s ago, as a state x remembers it."""
    m = lookup(MEASURES, measure, kind="HiPPO measure")
    return x @ m.functions(x.shape[-1], s.double()).to(x).mT


class NormalPart(NamedTuple):
    """A = V diag(values) V^* - P P^T on its N/2 pairs: of each the half with values.imag >= 0.

    A real x is 2 Re(V z) with z = V^* x: so P and B here are V^* times those of `hippo`.
    """

    values: Complex[Tensor, "pairs"]
    P: Complex[Tensor, "R pairs"]
    B: Complex[Tensor, "pairs"]
    V: Complex[Tensor, "N pairs"]


def normal_part(measure: str, N: int) -> NormalPart:
    """The normal part of a measure's A, diagonal, by rising frequency. N is even."""
    if N < 2 or N % 2:
        raise ValueError(f"normal_part: want an even number of states, 2 or more, got {N}")
    (A, B), m = hippo(measure, N), MEASURES[measure]
    P = m.low_rank(N)
    normal = A + P @ P.mT
    decay = normal.diagonal().mean()
    if measure == "fout":  # its pairs are known; frequency 0, twice, has no unique eigenvectors
        values = torch.complex(decay.expand(N // 2), 2 * math.pi * _degrees(N // 2))
        V = torch.zeros(N, N // 2, dtype=values.dtype)
        pair = torch.arange(N // 2)
        V.real[2 * pair, pair] = math.sqrt(0.5)
        V.imag[2 * pair + 1, pair] = -math.sqrt(0.5)
    else:
        skew = normal - decay * torch.eye(N, dtype=A.dtype)
        frequencies, V = torch.linalg.eigh(-1j * skew)
        values = torch.complex(decay.expand(N // 2), frequencies[N // 2 :])
        V = V[:, N // 2 :]
    back = V.mH.contiguous()
    return NormalPart(values, (back @ P.to(back.dtype)).mT, back @ B.to(back.dtype), V)


def diagonal(init: str, pairs: int) -> Complex[Tensor, "pairs"]:
    """Initial A of a diagonal system: "lin" and "inv" (S4D, arXiv:2206.11893), or the normal part
    of a measure.
    """
    n = _degrees(pairs)
    table: dict[str, Callable[[], Tensor]] = {
        "lin": lambda: torch.complex(torch.full_like(n, -0.5), math.pi * n),
        "inv": lambda: torch.complex(
            torch.full_like(n, -0.5), 2 * pairs / math.pi * (2 * pairs / (2 * n + 1) - 1)
        ),
    }
    table |= {name: lambda name=name: normal_part(name, 2 * pairs).values for name in MEASURES}
    return lookup(table, init, kind="initial A")()
