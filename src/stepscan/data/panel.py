"""Several series on one grid of time, and the steps of one part of them.

The base forecast at step t for t + h is the value one season (or as many as are needed to be known
at t) before t + h; where that one is missing, the value a season earlier still; else the last value
seen. It is the seasonal naive forecast, and what the targets are measured from:

    future[t, h] = (y[t + h] - base[t, h]) / spread

so a model that answers 0 is the seasonal naive forecast.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepscan.data.base import Packed
from stepscan.data.irregular import gap_inputs, stamps_ahead

LARGEST = 10.0  # of changes and covariates, in standard deviations: one wild reading stays one


@dataclass(frozen=True, kw_only=True)
class Panel:
    """S series laid end to end, N steps in all, every step of the grid between first and last."""

    y: Float[Tensor, " N"]
    """float64; NaN where missing."""
    series: Int[Tensor, " N"]
    """Which series."""
    begin: Int[Tensor, " S"]
    """Where each series begins; `end` is where it ends."""
    end: Int[Tensor, " S"]
    stamps: Int[Tensor, " N"]
    """Times, as in `tables.Times`."""
    channels: Float[Tensor, "N C"]
    """Scaled covariates, then the calendar."""
    ahead: Float[Tensor, "N F"]
    """The scaled covariates that are known ahead."""
    center: Float[Tensor, " S"]
    """Median of each series, and its robust standard deviation (`scale`)."""
    scale: Float[Tensor, " S"]
    spread: Float[Tensor, " S"]
    """Robust standard deviation of the errors of the base: the unit of the targets."""
    horizon: int
    season: int
    lags: tuple[int, ...]
    """Further seasons: what the seasonal naive forecast would say with them is an input too."""
    last_seen: Int[Tensor, " N"]
    """The last step at or before this one with a value: every series begins with one."""
    static: Float[Tensor, "S K"] | None = None
    """What is constant within a series: scaled numbers, and categories as 0 and 1."""
    gap: float = 0.0
    """The usual time between steps that lie on no grid: see `irregular`; 0 on a grid."""

    @property
    def width(self) -> int:
        """The number of real channels of a step."""
        forecasts = 1 + len(self.lags) + self.ahead.shape[1]
        static = 0 if self.static is None else self.static.shape[1]
        times = 1 + self.horizon if self.gap else 0
        return 3 + forecasts * self.horizon + self.channels.shape[1] + static + times

    def base(self, at: Int[Tensor, "..."], season: int | None = None) -> Float[Tensor, "... H"]:
        """The seasonal naive forecast made at these steps, in real units; `season` may differ."""
        season = self.season if season is None else season
        ahead = torch.arange(1, self.horizon + 1)
        begin = self.begin[self.series[at]][..., None]
        base = self.y[self.last_seen[at]][..., None].expand(*at.shape, self.horizon)
        if not season:
            return base
        back = -(-ahead // season) * season
        for earlier in (season, 0):  # the nearest season is looked at last, and wins
            place = at[..., None] + ahead - back - earlier
            value = self.y[place.clamp(min=0)]
            base = torch.where((place >= begin) & ~value.isnan(), value, base)
        return base

    def inputs(self, at: Int[Tensor, "..."]) -> Float[Tensor, "... C"]:
        """Value, missing, change in a season, base, the base of each lag, covariates, calendar,
        known ahead, what is constant within a series, times off a grid.
        """
        series = self.series[at]
        value, center, scale = self.y[at], self.center[series], self.scale[series]
        before = at - max(self.season, 1)
        change = (value - self.y[before.clamp(min=0)]) / self.spread[series]
        change = change.masked_fill(before < self.begin[series], 0).clamp(-LARGEST, LARGEST)
        base = self.base(at)
        spread = self.spread[series][..., None]
        others = [(self.base(at, lag) - base) / spread for lag in self.lags]
        parts = [
            torch.stack([(value - center) / scale, value.isnan(), change], -1).nan_to_num(0.0),
            (base - center[..., None]) / scale[..., None],
            *(other.clamp(-LARGEST, LARGEST) for other in others),
            self.channels[at],
        ]
        if self.ahead.shape[1]:
            place = at[..., None] + torch.arange(1, self.horizon + 1)
            inside = place < self.end[series][..., None]
            known = self.ahead[place.clamp(max=len(self.y) - 1)] * inside[..., None]
            parts.append(known.flatten(-2))
        if self.static is not None:
            parts.append(self.static[series])
        if self.gap:
            times = self.begin[series], self.end[series], at, self.horizon, self.gap
            parts.append(gap_inputs(self.stamps, *times).clamp(-LARGEST, LARGEST))
        return torch.cat([part.float() for part in parts], -1)


class SeriesPacked(Packed):
    """The steps `first[s] .. last[s]` of each series, asked for values in `low[s] .. high[s]`."""

    def __init__(
        self,
        panel: Panel,
        names: Sequence[str],
        *,
        first: Int[np.ndarray, " S"],
        last: Int[np.ndarray, " S"],
        low: Int[np.ndarray, " S"],
        high: Int[np.ndarray, " S"],
    ) -> None:
        self.panel = panel
        self.names = tuple(names)
        """The name of each series of the panel."""
        self.steps = _ranges(first, last)
        """The place of each step of this part in the panel."""
        starts = torch.zeros(len(self.steps), dtype=torch.bool)
        begins = np.cumsum(np.maximum(last - first, 0)) - np.maximum(last - first, 0)
        starts[begins[last > first]] = True
        super().__init__(starts)
        self._low, self._high = torch.from_numpy(low), torch.from_numpy(high)

    @property
    def reals(self) -> Float[Tensor, "N C"]:
        """All inputs at once; `inputs_at` builds only those asked for."""
        return self.panel.inputs(self.steps)

    def inputs_at(self, at: Int[Tensor, "..."]) -> tuple[None, Float[Tensor, "... C"]]:
        """No tokens, and the reals at these positions."""
        return None, self.panel.inputs(self.steps[at])

    def targets_at(self, at: Int[Tensor, "..."]) -> dict[str, Tensor]:
        """ "future": measured from the base, in units of the spread; "level": from the median of
        the series, in its scale. See `origin_at`.
        """
        actual, found = self.actual_at(at), {}
        for name, measured in (("future", "base"), ("level", "level")):
            origin, unit = self.origin_at(at, measured)
            found[name] = ((actual - origin) / unit[..., None]).float()
        return found

    def origin_at(
        self, at: Int[Tensor, "..."], measured: str = "base"
    ) -> tuple[Float[Tensor, "... H"], Float[Tensor, "..."]]:
        """What answers are measured from here, and their unit: see `Forecast.measured`."""
        if measured == "base":
            return self.base_at(at), self.scale_at(at)
        series = self.series_at(at)
        center = self.panel.center[series][..., None]
        return center.expand(*at.shape, self.panel.horizon), self.panel.scale[series]

    def actual_at(self, at: Int[Tensor, "..."]) -> Float[Tensor, "... H"]:
        """The values asked for at these positions, in real units; NaN where not asked."""
        step = self.steps[at]
        series = self.panel.series[step]
        place = step[..., None] + torch.arange(1, self.panel.horizon + 1)
        low, high = self._low[series][..., None], self._high[series][..., None]
        asked = (place >= low) & (place < high) & (step >= low[..., 0] - 1)[..., None]
        value = self.panel.y[place.clamp(max=len(self.panel.y) - 1)]
        return value.masked_fill(~asked, torch.nan)

    def base_at(self, at: Int[Tensor, "..."]) -> Float[Tensor, "... H"]:
        """The seasonal naive forecast at these positions, in real units."""
        return self.panel.base(self.steps[at])

    def scale_at(self, at: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The unit of the targets at these positions, in real units."""
        return self.panel.spread[self.series_at(at)]

    def value_at(self, at: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The value of the step itself, in real units; NaN where missing."""
        return self.panel.y[self.steps[at]]

    def stamps_ahead(self, at: Int[Tensor, "..."]) -> Int[Tensor, "... H"]:
        """The times of the steps ahead that a model of irregular steps is asked for."""
        panel, step = self.panel, self.steps[at]
        end = panel.end[panel.series[step]]
        return stamps_ahead(panel.stamps, end, step, panel.horizon, panel.gap)

    def series_at(self, at: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Which series, as a place in `names`."""
        return self.panel.series[self.steps[at]]

    def asked(self) -> Bool[Tensor, " N"]:
        """Whether the value of each step is one of those asked for."""
        series = self.panel.series[self.steps]
        return (self.steps >= self._low[series]) & (self.steps < self._high[series])

    def stamps_at(self, at: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """The time of the step, as in `tables.Times`."""
        return self.panel.stamps[self.steps[at]]

    @property
    def asked_from(self) -> Int[np.ndarray, " S"]:
        """The place in the panel of the first value asked for, of each series."""
        return self._low.numpy()

    def origins(self, stride: int | None = None) -> Int[Tensor, " M"]:
        """Positions to forecast from so that the part is covered, every `stride` (horizon) steps.

        The first lies just before the part asked for; a last horizon may reach past its end.
        """
        stride = stride or self.panel.horizon
        series = self.panel.series[self.steps]
        since = self.steps - (self._low[series] - 1)
        chosen = (since >= 0) & (since % stride == 0) & (self.steps < self._high[series] - 1)
        return chosen.nonzero()[:, 0]

    def ends(self) -> Int[Tensor, " S"]:
        """The last position of each series: where its future begins."""
        return self.begins + self.lengths - 1


def cut_parts(
    panel: Panel,
    names: Sequence[str],
    cuts: tuple[Int[np.ndarray, " S"], Int[np.ndarray, " S"], Int[np.ndarray, " S"]],
    context: int,
) -> dict[str, Packed]:
    """The parts train, valid and test: up to each cut in turn, the later ones after some context.

    Args:
        panel: The series.
        names: Of each series.
        cuts: Places where the valid and the test part of each series begin, and where it stops.
        context: Steps read before a held-out part.
    """
    valid, test, stop = cuts
    begin = panel.begin.numpy()
    parts: dict[str, Packed] = {
        "train": SeriesPacked(panel, names, first=begin, last=valid, low=begin + 1, high=valid)
    }
    for part, low, high in (("valid", valid, test), ("test", test, stop)):
        first = np.maximum(begin, low - context)
        last = np.where(high > low, high, first)
        parts[part] = SeriesPacked(panel, names, first=first, last=last, low=low, high=high)
    return parts


def last_seen(seen: Bool[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """The last step seen at or before each one; every series begins with a step that is seen."""
    return np.maximum.accumulate(np.where(seen, np.arange(len(seen)), 0))


def _ranges(first: Int[np.ndarray, " S"], last: Int[np.ndarray, " S"]) -> Int[Tensor, " N"]:
    pieces = [torch.arange(a, b) for a, b in zip(first.tolist(), last.tolist(), strict=True)]
    return torch.cat([torch.empty(0, dtype=torch.int64), *pieces])
