"""A linear time-invariant system that is diagonal plus low rank, for every channel: S4.

    x' = (lambda - P P^*) x + b u        lambda, b, c: complex [D, N];  P: complex [D, R, N]
    y  = Re(c . x)                       u, y: [B, T, D];  state x: complex [B, D, N]

in bilinear steps of length dt [D]. Each of the N numbers stands for itself and its conjugate, so
P^* x is 2 Re(sum_n conj(P_n) x_n); put the factor 2 of y into c. A reset empties x before a token.

    recurrent    (1 - dt/2 (lambda - P P^*))^-1 by Woodbury: O(N R) a step
    chunked      the same step as a real matrix, `state_space` in chunks
    fft          the kernel's spectrum at the roots of unity as Cauchy sums, `dplr_kernel`

Sources: S4 (arXiv:2111.00396); -P P^*, which keeps it stable, Sashimi (arXiv:2202.09729).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from stepscan.names import lookup
from stepscan.ops import state_space
from stepscan.ops.arguments import as_resets, as_state
from stepscan.ops.long_conv import convolve

ROOTS = 512  # roots of unity worked on at once, so that their Cauchy sums stay in the cache


class System(NamedTuple):
    """The continuous system with its step."""

    values: Complex[Tensor, "D N"]
    """lambda."""
    P: Complex[Tensor, "D R N"]
    b: Complex[Tensor, "D N"]
    c: Complex[Tensor, "D N"]
    dt: Float[Tensor, "D"]


class Step(NamedTuple):
    """One bilinear step of a system, in its factors: x -> (1 - dt/2 A)^-1 (1 + dt/2 A) x."""

    ahead: Complex[Tensor, "D N"]
    """1 + dt/2 lambda."""
    inverse: Complex[Tensor, "D N"]
    """1 / (1 - dt/2 lambda)."""
    P: Complex[Tensor, "D R N"]
    """sqrt(dt/2) P."""
    middle: Float[Tensor, "D R R"]
    """(1 + P^* inverse P)^-1."""
    gain: Complex[Tensor, "D N"]
    """What an input adds to the state."""

    @classmethod
    def of(cls, system: System) -> "Step":
        """Its factors."""
        half = system.dt[:, None] / 2
        inverse, P = 1 / (1 - half * system.values), half.sqrt()[:, None] * system.P
        small = 2 * torch.einsum("drn,dn,dsn->drs", P.conj(), inverse, P).real
        eye = torch.eye(P.shape[1], dtype=small.dtype, device=small.device)
        step = cls(1 + half * system.values, inverse, P, torch.linalg.inv(eye + small), system.b)
        return step._replace(gain=2 * half * step.solve(system.b))

    def solve(self, x: Complex[Tensor, "*B D N"]) -> Complex[Tensor, "*B D N"]:
        """(1 - dt/2 A)^-1 x."""
        x = self.inverse * x
        seen = torch.einsum("drs,...ds->...dr", self.middle, _onto(self.P, x))
        return x - self.inverse * _spread(self.P, seen)

    def __call__(self, x: Complex[Tensor, "*B D N"]) -> Complex[Tensor, "*B D N"]:
        """The state after a step without input."""
        return self.solve(self.ahead * x - _spread(self.P, _onto(self.P, x)))


def _onto(P: Tensor, x: Tensor) -> Float[Tensor, "*B D R"]:
    """P^* x, over each number and its conjugate."""
    return 2 * torch.einsum("drn,...dn->...dr", P.conj(), x).real


def _spread(P: Tensor, s: Float[Tensor, "*B D R"]) -> Complex[Tensor, "*B D N"]:
    return torch.einsum("drn,...dr->...dn", P, s.to(P.dtype))


def recurrent(
    u: Float[Tensor, "B T D"],
    system: System,
    *,
    state: Complex[Tensor, "B D N"],
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T D"], Complex[Tensor, "B D N"]]:
    """The definition, one step at a time. Every other form is judged against this one."""
    step, ys = Step.of(system), []
    for u_t, reset in zip(u.unbind(1), as_resets(resets, u).unbind(1), strict=True):
        state = step(state.masked_fill(reset[:, None, None], 0.0)) + step.gain * u_t[..., None]
        ys.append((system.c * state).real.sum(-1))
    return torch.stack(ys, 1), state


def dense(system: System) -> tuple[Tensor, Tensor, Tensor]:
    """The discrete system with real and imaginary parts after each other: A [D 2N 2N], b, c."""
    step, N = Step.of(system), system.b.shape[1]
    eye = torch.eye(N, dtype=system.b.dtype, device=system.b.device)
    columns = step(torch.cat([eye, 1j * eye])[:, None].expand(-1, len(system.b), -1))
    return _real(columns).permute(1, 2, 0), _real(step.gain), _real(system.c.conj())


def _real(x: Complex[Tensor, "*B N"]) -> Float[Tensor, "*B M"]:
    return torch.cat([x.real, x.imag], -1)


def _complex(x: Float[Tensor, "*B M"]) -> Complex[Tensor, "*B N"]:
    return torch.complex(*x.chunk(2, -1))


def chunked(
    u: Float[Tensor, "B T D"],
    system: System,
    *,
    state: Complex[Tensor, "B D N"],
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T D"], Complex[Tensor, "B D N"]]:
    """Inside a chunk the kernel, from chunk to chunk the recurrence. Exactly causal."""
    A, b, c = dense(system)
    y, last = state_space.chunked(u, A=A, b=b, c=c, state=_real(state), resets=resets)
    return y, _complex(last)


def fft(
    u: Float[Tensor, "B T D"],
    system: System,
    *,
    state: Complex[Tensor, "B D N"],
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T D"], Complex[Tensor, "B D N"]]:
    """As published. With resets it is `chunked`; causal up to rounding only.

    Where lambda itself hardly decays (`legt`, `fout`) Woodbury takes away what a resonance has put
    in: some 4 of the digits. `chunked` keeps them.
    """
    if resets is not None:
        return chunked(u, system, state=state, resets=resets)
    A, b, c = dense(system)
    y, last = state_space.after(u, A=A, b=b, c=c, state=_real(state))
    return convolve(u, dplr_kernel(system, u.shape[1])) + y, _complex(last)


def dplr_kernel(system: System, length: int) -> Float[Tensor, "D L"]:
    """The first L numbers of the impulse response, O((N + log L) L) and one transform.

    Their generating function c (1 - A^L) (1 - A z)^-1 b at the roots of unity z is a Cauchy sum
    over the eigenvalues, with R + 1 more for the low rank.
    """
    A, _, c = dense(system)
    square, remaining = A, c[:, None]  # c A^L, by the bits of L
    for bit in range(length.bit_length()):
        if length >> bit & 1:
            remaining = remaining @ square
        if length >> (bit + 1):
            square = square @ square
    c = (system.c - _complex(remaining[:, 0]).conj()) / 2  # Re(c x) is half of c x and conjugate
    left = torch.cat([c[:, None], system.P.conj()], 1)  # [D 1+R N]
    right = torch.cat([system.b[:, None], system.P], 1)
    pairs = (left[:, :, None] * right[:, None]).flatten(1, 2)  # [D (1+R)^2 N]
    turn = torch.arange(length // 2 + 1, device=c.device, dtype=system.dt.dtype) / length
    parts = [_spectrum(system, pairs, part) for part in turn.split(ROOTS)]
    return torch.fft.irfft(torch.cat(parts, 1), length)


def _spectrum(
    system: System, pairs: Complex[Tensor, "D P N"], turn: Float[Tensor, "L"]
) -> Complex[Tensor, "D L"]:
    """`dplr_kernel` at z = exp(-2 pi i turn)."""
    z = torch.polar(torch.ones_like(turn), -2 * torch.pi * turn)
    # 2 / (1 + z) / ((2 / dt) (1 - z) / (1 + z) - lambda), also where 1 + z is 0
    dt, values = system.dt[:, None, None], system.values[..., None]
    plus, minus = (dt / (1 - z - dt / 2 * (1 + z) * x) for x in (values, values.conj()))  # [D N L]
    sums, R = pairs @ plus + pairs.conj() @ minus, system.P.shape[1]
    sums = sums.unflatten(1, (1 + R, 1 + R))
    half = (1 + z) / 2
    near = (sums[:, 1:, 1:] * half).permute(0, 3, 1, 2)  # P^* (g - lambda)^-1 P
    right = (sums[:, 1:, 0] * half).mT[..., None]
    eye = torch.eye(R, dtype=near.dtype, device=near.device)
    low = torch.linalg.solve(eye + near, right)[..., 0]
    return sums[:, 0, 0] - torch.einsum("drl,dlr->dl", sums[:, 0, 1:], low)


FORMS: Mapping[str, Callable[..., tuple[Tensor, Tensor]]] = MappingProxyType(
    {"recurrent": recurrent, "chunked": chunked, "fft": fft}
)


def dplr_conv(
    u: Float[Tensor, "B T D"],
    system: System,
    *,
    state: Complex[Tensor, "B D N"] | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T D"], Complex[Tensor, "B D N"]]:
    """Run the system over u.

    The state stays complex64 or wider, y has u's dtype, and `form="auto"` picks by length, never
    changing the result.
    """
    values, P, b, c, dt = system
    D, N = values.shape
    fits = u.ndim == 3 and u.shape[2] == D and values.shape == b.shape == c.shape
    if not fits or P.ndim != 3 or (P.shape[0], P.shape[2]) != (D, N) or dt.shape != (D,):
        got = ", ".join(f"{name} {tuple(x.shape)}" for name, x in system._asdict().items())
        raise ValueError(
            "dplr_conv: want u [B T D], values, b, c [D N], P [D R N] and dt [D]; "
            f"got u {tuple(u.shape)}, {got}"
        )
    B, T, _ = u.shape
    form = ("recurrent" if T <= 4 else "chunked") if form == "auto" else form
    run = lookup(FORMS, form, kind="form of dplr_conv")
    state = as_state(state, (B, D, N), u, *system)
    resets = None if resets is None else as_resets(resets, u)
    if T == 0:
        return u, state
    wide, real = state.dtype, state.real.dtype
    system = System(values.to(wide), P.to(wide), b.to(wide), c.to(wide), dt.to(real))
    y, state = run(u.to(real), system, state=state, resets=resets)
    return y.to(u.dtype), state
