"""Chaotic systems and their integrators, many trajectories at once, in float64.

    lorenz                 x' = 10 (y - x);  y' = x (28 - z) - y;  z' = x y - 8/3 z
    roessler               x' = -y - z;  y' = x + 0.2 y;  z' = 0.2 + z (x - 5.7)
    lorenz96               x_i' = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + 8,  i on a ring
    kuramoto_sivashinsky   u_t = -u u_x - u_xx - u_xxxx,  x on a ring of length 22

Runge and Kutta's method of order 4; the last, which is stiff, by ETDRK4 over its Fourier modes: the
linear part is exact, phi functions by contour integrals (Kassam & Trefethen 2005,
doi:10.1137/S1064827502410633). Sources: Lorenz 1963, Roessler 1976, Lorenz 1996, Kuramoto 1978,
Sivashinsky 1977. The largest exponents of the first two are those of the literature (Sprott 2003);
of the others they come from `analyze.chaos.largest_exponent` (for the last, papers have 0.043 to
0.048).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class System:
    """A flow that is looked at in equal intervals."""

    name: str
    size: int
    """Numbers N of a state."""
    every: float
    """Time between two samples."""
    exponent: float
    """Largest Lyapunov exponent, per unit of time; 1 / exponent is the Lyapunov time."""
    mean: tuple[float, ...]
    """Of each observed number on the attractor; a single one holds for all."""
    scale: tuple[float, ...]
    """Their standard deviations."""
    advance: Callable[[Float[Tensor, "B N"]], Float[Tensor, "B N"]]
    """States one sample later."""
    start: Callable[[int, torch.Generator], Float[Tensor, "B N"]]
    """States from which the attractor is reached."""
    observe: Callable[[Float[Tensor, "*b N"]], Float[Tensor, "*b O"]] = lambda x: x
    """What is seen of a state."""

    def standardized(self, x: Float[Tensor, "*b O"]) -> Float[Tensor, "*b O"]:
        """Observations of mean 0 and variance 1."""
        return (x - x.new_tensor(self.mean)) / x.new_tensor(self.scale)


def trajectories(
    system: System, n: int, steps: int, rng: torch.Generator, *, settle: int = 300
) -> Float[Tensor, "B T O"]:
    """`n` trajectories of `steps` samples, float64, after `settle` samples that are not shown."""
    state, seen = system.start(n, rng), []
    for t in range(settle + steps):
        if t >= settle:
            seen.append(system.observe(state))
        state = system.advance(state)
    return torch.stack(seen, 1)


def runge_kutta(
    rate: Callable[[Float[Tensor, "B N"]], Float[Tensor, "B N"]], *, every: float, largest: float
) -> Callable[[Float[Tensor, "B N"]], Float[Tensor, "B N"]]:
    """A map over the time `every`, in equal steps of at most `largest`."""
    count = max(1, math.ceil(every / largest - 1e-9))
    dt = every / count

    def advance(x: Tensor) -> Tensor:
        for _ in range(count):
            a = rate(x)
            b = rate(torch.add(x, a, alpha=dt / 2))
            c = rate(torch.add(x, b, alpha=dt / 2))
            d = rate(torch.add(x, c, alpha=dt))
            x = x + (dt / 6) * (a + d + 2 * (b + c))
        return x

    return advance


def lorenz(every: float = 0.1) -> System:
    """Lorenz 1963: two wings, exponent 0.906."""

    def rate(s: Tensor) -> Tensor:
        x, y, z = s.unbind(-1)
        return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - (8 / 3) * z], -1)

    return System(
        name="lorenz",
        size=3,
        every=every,
        exponent=0.9056,
        mean=(0.0, 0.0, 23.55),
        scale=(7.92, 9.01, 8.62),
        advance=runge_kutta(rate, every=every, largest=0.02),
        start=_near((0.0, 0.0, 23.55), 5.0),
    )


def roessler(every: float = 1.0) -> System:
    """Roessler 1976: one band with a fold, exponent 0.0714."""

    def rate(s: Tensor) -> Tensor:
        x, y, z = s.unbind(-1)
        return torch.stack([-y - z, x + 0.2 * y, 0.2 + z * (x - 5.7)], -1)

    return System(
        name="roessler",
        size=3,
        every=every,
        exponent=0.0714,
        mean=(0.17, -0.87, 0.88),
        scale=(5.13, 4.82, 2.87),
        advance=runge_kutta(rate, every=every, largest=0.1),
        start=_near((0.0, -5.0, 0.1), 0.5),
    )


def lorenz96(size: int = 20, every: float = 0.2) -> System:
    """Lorenz 1996 with a force of 8: a ring of weather, exponent 1.55 on 20 places (1.70 on 40)."""

    def rate(x: Tensor) -> Tensor:
        before, after, second = x.roll(1, -1), x.roll(-1, -1), x.roll(2, -1)
        return torch.addcmul(8 - x, after - second, before)

    return System(
        name="lorenz96",
        size=size,
        every=every,
        exponent=1.55,
        mean=(2.35,),
        scale=(3.64,),
        advance=runge_kutta(rate, every=every, largest=0.025),
        start=_near((2.35,) * size, 1.0),
    )


def kuramoto_sivashinsky(size: int = 32, every: float = 2.0, domain: float = 22.0) -> System:
    """Flame fronts: chaos in space and time, exponent 0.048 on a ring of 22; `size` points."""
    count = max(1, math.ceil(every / 0.25 - 1e-9))
    dt = every / count
    wave = torch.arange(size // 2 + 1, dtype=torch.float64) * (2 * math.pi / domain)
    linear = wave**2 - wave**4
    slope = -0.5j * wave
    slope[-1] = 0  # the fastest wave of an even number of points has no slope
    full, half = (dt * linear).exp(), (dt / 2 * linear).exp()
    points = 32
    circle = torch.exp(1j * math.pi * (torch.arange(points, dtype=torch.float64) + 0.5) / points)
    z = dt * linear[:, None] + circle
    phi = lambda f: dt * f.mean(1).real  # noqa: E731
    to_half = phi(torch.expm1(z.real / 2 + 0.5j * z.imag) / z)
    first = phi((-4 - z + z.exp() * (4 - 3 * z + z**2)) / z**3)
    middle = phi((2 + z + z.exp() * (z - 2)) / z**3)
    last = phi((-4 - 3 * z - z**2 + z.exp() * (4 - z)) / z**3)

    def bend(v: Tensor) -> Tensor:
        return slope * torch.fft.rfft(torch.fft.irfft(v, size).square())

    def advance(u: Tensor) -> Tensor:
        v = torch.fft.rfft(u)
        for _ in range(count):
            at_v = bend(v)
            a = half * v + to_half * at_v
            at_a = bend(a)
            at_b = bend(half * v + to_half * at_a)
            at_c = bend(half * a + to_half * (2 * at_b - at_v))
            v = full * v + first * at_v + 2 * middle * (at_a + at_b) + last * at_c
        return torch.fft.irfft(v, size)

    def start(n: int, rng: torch.Generator) -> Tensor:
        u = torch.randn(n, size, generator=rng, dtype=torch.float64)
        return u - u.mean(1, keepdim=True)  # the mean stays what it is: 0

    return System(
        name="kuramoto_sivashinsky",
        size=size,
        every=every,
        exponent=0.048,
        mean=(0.0,),
        scale=(1.19,),
        advance=advance,
        start=start,
    )


def _near(center: tuple[float, ...], spread: float) -> Callable[[int, torch.Generator], Tensor]:
    def start(n: int, rng: torch.Generator) -> Tensor:
        place = torch.randn(n, len(center), generator=rng, dtype=torch.float64)
        return torch.tensor(center, dtype=torch.float64) + spread * place

    return start
