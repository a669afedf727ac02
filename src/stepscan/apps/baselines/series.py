"""Simple forecasts: a season ago, the last value, a line, DLinear; bands from their own errors.

DLinear (Zeng et al. 2022, arXiv:2205.13504) is the map of `models.linear_series`, here trained on
windows of its own by absolute errors for a fixed number of steps.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stepscan.data.panel import SeriesPacked
from stepscan.models import LinearSeriesConfig, Regress
from stepscan.models.linear_series import Decomposed

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


def drift(packed: SeriesPacked, at: Int[Tensor, " M"]) -> Float[Tensor, "M H"]:
    """The line from the first value through the last one seen, drawn on."""
    panel = packed.panel
    place = packed.steps[at]
    begin, seen = panel.begin[packed.series_at(at)], panel.last_seen[place]
    slope = (panel.y[seen] - panel.y[begin]) / (seen - begin).clamp(min=1)
    ahead = (place - seen)[:, None] + torch.arange(1, panel.horizon + 1)
    return panel.y[seen][:, None] + slope[:, None] * ahead


class DLinear(nn.Module):
    """See the module docstring; windows are measured from the series' median in its own scale."""

    def __init__(self, window: int, horizon: int) -> None:
        super().__init__()
        self.window = window
        head = Regress(outputs=horizon)
        self.map = Decomposed(
            LinearSeriesConfig(name="dlinear", head=head, reals=2, window=window, smooth=SMOOTH)
        )

    def forward(self, x: Float[Tensor, "M L"]) -> Float[Tensor, "M H"]:
        """Scaled windows to scaled futures."""
        return self.map(x)

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


Method = Callable[[SeriesPacked, Tensor], Tensor]
"""Values or quantiles in real units from positions of a part, [M H] or [M H Q]."""


def simple_methods(
    train: SeriesPacked, valid: SeriesPacked, levels: tuple[float, ...]
) -> Iterator[tuple[str, Method]]:
    """Every simple method as quantiles: those of its own errors on the validation part around it.

    Args:
        train: What DLinear learns from.
        valid: What it is chosen by, and where errors are measured.
        levels: Of the quantiles; the one of 0.5 is the forecast itself.
    """
    points: dict[str, Method] = {
        "seasonal naive": seasonal_naive,
        "last value": last_value,
        "drift": drift,
        "DLinear": fit_dlinear(train, valid).forecast,
    }
    if not valid.panel.season:
        del points["seasonal naive"]
    seen = valid.origins(max(1, valid.panel.horizon // 4))
    for name, method in points.items():
        errors = (valid.actual_at(seen) - method(valid, seen)) / valid.scale_at(seen)[:, None]
        yield name, _banded(method, errors, levels)


def _banded(method: Method, errors: Float[Tensor, "E H"], levels: tuple[float, ...]) -> Method:
    def quantiles(packed: SeriesPacked, at: Int[Tensor, " M"]) -> Float[Tensor, "M H Q"]:
        middle = method(packed, at)
        found = spread_quantiles(middle, packed.scale_at(at), errors, levels)
        found[..., levels.index(0.5)] = middle
        return found.sort(-1).values

    return quantiles


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
