"""How good a forecast, or a model that runs freely, is of a chaotic system.

    largest_exponent    growth rate of a small error: two trajectories, pulled together again after
                        every sample (Benettin et al. 1980)
    valid_time          how long a forecast holds, in Lyapunov times: until the error, in standard
                        deviations of the system, passes a threshold (Vlachas et al. 2020,
                        arXiv:1910.05266: 0.5)
    state_divergence    D_stsp: whether a free run visits the same places as often: the Kullback-
                        Leibler divergence of occupied bins, data to model (Hess et al. 2023)
    spectrum_distance   D_H: whether it moves with the same frequencies: the Hellinger distance of
                        smoothed power spectra, mean over channels (Mikhaeil et al. 2022)

The second asks for the trajectory, the last two for the attractor: no forecast of a chaotic system
holds for long, and a good model still has its statistics. Bins and smoothing as published where the
papers say so (30 bins a dimension; a Gaussian of 20 frequencies); range and floor are our own.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from stepscan.tasks.dynamics import System

MOST_BINS = 1 << 24


def largest_exponent(
    system: System,
    rng: torch.Generator,
    *,
    rows: int = 32,
    samples: int = 1000,
    settle: int = 300,
    apart: float = 1e-7,
) -> float:
    """Largest Lyapunov exponent per unit of time, mean over `rows` trajectories."""
    state = system.start(rows, rng)
    gap = torch.randn(state.shape, generator=rng, dtype=state.dtype)
    other = state + gap * (apart / gap.norm(dim=1, keepdim=True))
    grown = torch.zeros(rows, dtype=state.dtype)
    for t in range(settle + samples):
        state, other = system.advance(state), system.advance(other)
        gap = other - state
        size = gap.norm(dim=1)
        grown += (size / apart).log() if t >= settle else 0.0
        other = state + gap * (apart / size)[:, None]
    return grown.mean().item() / (samples * system.every)


def valid_time(
    said: Float[Tensor, "B T O"],
    truth: Float[Tensor, "B T O"],
    system: System,
    *,
    threshold: float = 0.5,
) -> Float[Tensor, " B"]:
    """Lyapunov times until a forecast is off by `threshold` standard deviations, row by row.

    Both start one sample after the last one that was seen. NaN counts as off.
    """
    error = (system.standardized(said.double()) - system.standardized(truth.double())).square()
    held = (error.mean(2).sqrt() < threshold).long().cumprod(1).sum(1)
    return held * (system.every * system.exponent)


def state_divergence(
    said: Float[Tensor, "*m O"], truth: Float[Tensor, "*n O"], *, bins: int = 30
) -> float:
    """D_stsp: KL divergence of the places that the truth visits from those of a free run, in nats.

    The bins span the range of the truth; what leaves it is in none of them. Every bin gets 1e-6
    visits more than it had, so that a place that is never visited costs much, not everything.
    """
    said, truth = said.double().flatten(0, -2), truth.double().flatten(0, -2)
    size = truth.shape[1]
    if bins**size > MOST_BINS:
        raise ValueError(
            f"state_divergence: {bins} bins in {size} dimensions are too many; "
            f"want at most {MOST_BINS:,} in all: take fewer bins, or some of the channels"
        )
    low, high = truth.min(0).values, truth.max(0).values
    p, q = (_occupied(x, low, high, bins) for x in (truth, said))
    return (p * (p / q).log()).sum().item()


def _occupied(
    x: Float[Tensor, "n O"], low: Float[Tensor, " O"], high: Float[Tensor, " O"], bins: int
) -> Float[Tensor, " bins"]:
    inside = ((x >= low) & (x <= high)).all(1)
    place = ((x[inside] - low) / (high - low) * bins).long().clamp(max=bins - 1)
    number = (place * bins ** torch.arange(x.shape[1])).sum(1)
    count = torch.bincount(number, minlength=bins ** x.shape[1]).double() / max(len(x), 1)
    count += 1e-6 / max(len(x), 1)
    return count / count.sum()


def spectrum_distance(
    said: Float[Tensor, "B T O"], truth: Float[Tensor, "B T O"], *, smooth: float = 20.0
) -> float:
    """D_H: from 0, the same, to 1. Both are to have the same number of steps."""
    if said.shape[1:] != truth.shape[1:]:
        raise ValueError(
            f"spectrum_distance: want as many steps and channels in both, "
            f"got {tuple(said.shape[1:])} and {tuple(truth.shape[1:])}"
        )
    if not said.isfinite().all():
        return 1.0
    p, q = (_spectrum(x.double(), smooth) for x in (said, truth))
    overlap = (p * q).sqrt().sum(0).clamp(max=1)
    return (1 - overlap).sqrt().mean().item()


def _spectrum(x: Float[Tensor, "B T O"], smooth: float) -> Float[Tensor, "F O"]:
    power = torch.fft.rfft(x - x.mean(1, keepdim=True), dim=1).abs().square().mean(0)
    if smooth:
        reach = min(math.ceil(4 * smooth), power.shape[0] - 1)
        place = torch.arange(-reach, reach + 1, dtype=power.dtype)
        kernel = (-0.5 * (place / smooth).square()).exp()
        edged = torch.nn.functional.pad(power.T[:, None], (reach, reach), mode="reflect")
        power = torch.nn.functional.conv1d(edged, (kernel / kernel.sum())[None, None])[:, 0].T
    return power / power.sum(0).clamp_min(torch.finfo(power.dtype).tiny)
