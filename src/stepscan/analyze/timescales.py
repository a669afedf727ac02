"""How long a signal, or a unit of a state, remembers itself: its autocorrelation time.

    r(d) = autocorrelation at lag d ~ exp(-d / tau)

tau is read off the straight part of log r: a line through the origin, by least squares over the
lags before r first falls below 1/e^2, or, if that is longer, below what chance makes of white
noise. Units that alternate or turn lose their sign before that, and have the tau of that moment.
Source: intrinsic timescales (Murray et al. 2014, Nature Neuroscience 17), as they are measured of
trained networks by Khajehabdollahi et al. 2024, arXiv:2309.12927.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from stepscan.mixers import Mixer

LEAST = math.exp(-2)  # correlations below it are left out of the fit


def autocorrelation(x: Float[Tensor, "B T D"], lags: int) -> Float[Tensor, "L D"]:
    """Of each channel at lags 0 to `lags`, mean over rows, 1 at lag 0; NaN without variance.

    Every lag is divided by the same T, which pulls long ones towards 0 instead of leaving them
    wild; T should be many times the longest.
    """
    T = x.shape[1]
    if not 0 < lags < T:
        raise ValueError(f"autocorrelation: want lags from 1 to {T - 1}, got {lags}")
    x = x.double() - x.double().mean((0, 1))
    power = torch.fft.rfft(x, n=2 * T, dim=1).abs().square().mean(0)
    found = torch.fft.irfft(power, n=2 * T, dim=0)[: lags + 1]
    return found / found[0]


def autocorrelation_times(x: Float[Tensor, "B T D"], *, lags: int | None = None) -> Tensor:
    """[D]: tau of each channel, in steps; 0 of white noise, NaN of a constant.

    Args:
        x: Signals, as long as many times their tau, after they have settled.
        lags: The longest lag; None: a quarter of T.
    """
    B, T = x.shape[:2]
    r = autocorrelation(x, max(1, T // 4) if lags is None else lags)
    noise = 2 / math.sqrt(B * T)
    times = []
    for channel in r.T:
        if channel.isnan().any():
            times.append(math.nan)
            continue
        below = (channel < max(LEAST, noise)).nonzero()
        count = int(below[0]) if len(below) else len(channel)
        lag = torch.arange(1, count, dtype=r.dtype)
        if not len(lag):  # already the first neighbour is as good as unrelated
            size = channel[1].item()
            times.append(-1 / math.log(size) if noise < size < 1 else 0.0)
            continue
        slope = (lag * channel[1:count].log()).sum() / lag.square().sum()
        times.append(-1 / slope.item() if slope < 0 else math.inf)
    return torch.tensor(times, dtype=r.dtype)


@torch.no_grad()
def state_timescales(
    mixer: Mixer,
    width: int,
    rng: torch.Generator,
    *,
    rows: int = 8,
    steps: int = 2048,
    settle: int = 256,
    lags: int | None = None,
) -> dict[str, Tensor]:
    """tau of every number of a mixer's state, by tensor, while it reads white noise.

    Tensors that grow with the sequence, and counters, are left out.
    """
    if not mixer.causal:
        raise ValueError("state_timescales: want a causal mixer; one that reads both ways has none")
    like = next(mixer.parameters())
    x = torch.randn(rows, settle + steps, width, generator=rng).to(like)
    state: Any = mixer(x[:, :settle])[1]
    seen: dict[str, list[Tensor]] = {}
    for t in range(settle, settle + steps):
        _, state = mixer(x[:, t : t + 1], state)
        for path, leaf in pytree.tree_flatten_with_path(state)[0]:
            if leaf.is_floating_point() and leaf.numel():
                seen.setdefault(pytree.keystr(path), []).append(leaf.flatten(1))
    return {
        name: autocorrelation_times(torch.stack(values, 1), lags=lags)
        for name, values in seen.items()
        if values[0].shape == values[-1].shape
    }
