"""Simple forecasts: a season ago, the last value, DLinear; quantiles from their own errors.

DLinear (Zeng et al. 2022, arXiv:2205.13504): the window is split into a moving average of 25 steps
and the rest, each goes through one linear map of all its steps to the horizon, and they are added.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.data.panel import SeriesPacked

SMOOTH = 25
STEPS, WINDOWS = 600, 256


def seasonal_naive(packed: SeriesPacked, at: Int[Tensor, " M"]) -> Float[Tensor, "M H"]:
    """What was there a season before; without a season, the last value."""
    return packed.base_at(at)


def last_value(packed: SeriesPacked, at: Int[Tensor, " M"]) -> Float[Tensor, "M H"]:
    """The last value seen, for the whole horizon."""
    panel = packed.panel
    seen = panel.last_seen[packed.steps[at]]
    value = torch.where(seen >= 0, panel.y[seen], panel.center[packed.series_at(at)])
    return value[:, None].expand(-1, panel.horizon)


class DLinear(nn.Module):
    """See the module docstring; windows are measured from the series' median in its own scale."""

    def __init__(self, window: int, horizon: int) -> None:
        super().__init__()
        self.window = window
        self.trend = nn.Linear(window, horizon)
        self.rest = nn.Linear(window, horizon)
        for layer in (self.trend, self.rest):  # as published: begin as the mean of the window
            nn.init.constant_(layer.weight, 1 / window)

    def forward(self, x: Float[Tensor, "M L"]) -> Float[Tensor, "M H"]:
        """Scaled windows to scaled futures."""
        edges = (SMOOTH // 2, SMOOTH - 1 - SMOOTH // 2)
        smooth = F.avg_pool1d(F.pad(x[:, None], edges, mode="replicate"), SMOOTH, 1)[:, 0]
        return self.trend(smooth) + self.rest(x - smooth)

    def forecast(self, packed: SeriesPacked, at: Int[Tensor, " M"]) -> Float[Tensor, "M H"]:
        """In real units."""
        center, scale = _stats(packed, at)
        with torch.no_grad():
            return self(windows(packed, at, self.window)).double() * scale + center


def fit_dlinear(packed: SeriesPacked, valid: SeriesPacked, seed: int = 0) -> DLinear:
    """Train by Adam on absolute errors; the weights that err least on the validation part stay."""
    panel = packed.panel
    longest = int(packed.lengths.max())
    season = max(panel.season, panel.horizon)
    window = max(SMOOTH, min(2 * season, 1024, longest // 3))
    rng = torch.Generator().manual_seed(seed)
    model = DLinear(window, panel.horizon)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    origins = _thin(valid.origins(), 2000)
    best, kept = torch.inf, {k: v.clone() for k, v in model.state_dict().items()}
    for step in range(STEPS):
        at = torch.randint(len(packed), (WINDOWS,), generator=rng)
        loss = _error(model(windows(packed, at, window)), packed, at)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 19:
            with torch.no_grad():
                score = _error(model(windows(valid, origins, window)), valid, origins).item()
            if score < best:
                best, kept = score, {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(kept)
    return model


def windows(packed: SeriesPacked, at: Int[Tensor, " M"], window: int) -> Float[Tensor, "M L"]:
    """The last `window` values up to each position, scaled; missing ones repeat the last seen."""
    panel = packed.panel
    place = packed.steps[at][:, None] + torch.arange(1 - window, 1)
    begin = panel.begin[packed.series_at(at)][:, None]
    seen = panel.last_seen[torch.maximum(place, begin)]
    value = torch.where(seen >= 0, panel.y[seen], panel.center[packed.series_at(at)][:, None])
    center, scale = _stats(packed, at)
    return ((value - center) / scale).float()


def spread_quantiles(
    middle: Float[Tensor, "M H"],
    scale: Float[Tensor, " M"],
    errors: Float[Tensor, "E H"],
    levels: tuple[float, ...],
) -> Float[Tensor, "M H Q"]:
    """Quantiles around a point forecast: those of its scaled errors on the validation part."""
    steps = []
    for column in errors.T:
        known = column[~column.isnan()].numpy()  # none: a validation part without values
        steps.append(torch.from_numpy(np.quantile(known if len(known) else [0.0], levels)))
    return middle[..., None] + scale[:, None, None] * torch.stack(steps)


def _stats(packed: SeriesPacked, at: Int[Tensor, " M"]) -> tuple[Tensor, Tensor]:
    series = packed.series_at(at)
    return packed.panel.center[series][:, None], packed.panel.scale[series][:, None]


def _error(scaled: Float[Tensor, "M H"], packed: SeriesPacked, at: Tensor) -> Float[Tensor, ""]:
    center, scale = _stats(packed, at)
    wanted = ((packed.actual_at(at) - center) / scale).float()
    asked = ~wanted.isnan()
    return (scaled[asked] - wanted[asked]).abs().mean()


def _thin(at: Int[Tensor, " M"], most: int) -> Int[Tensor, " M"]:
    return at[:: max(1, len(at) // most)]
