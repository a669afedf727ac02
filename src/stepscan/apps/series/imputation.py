"""What a gap in a series most likely held: forecasts into it from before and back from after.

The model forecasts from the last value before the gap, and, on the series turned around, from the
first value after it: the same weights, which never learned to read backwards. Two more answers are
the straight line between the two values, and the mean of the values a season before and after. None
of them is trusted: all four fill runs of known values of the same data, of about the length of the
gap, and count by the inverse of their mean squared errors there, at each distance from both ends:

    m = sum_i w_i m_i,   w_i = e_i^-2 / sum_j e_j^-2

The bands are those of the two forecasts, averaged level by level with their weights (so they cannot
cross), and stretched to hold, on those runs, the share of values that they claim. Further from both
ends than the horizon the line and the season are left, with the bands of the last step ahead. What
lies after the last value of a series is a forecast, and is left alone. Where enough of them lie
after the time up to which the weights were chosen, these runs alone are taken; otherwise the
weights may have learned from them, and the errors of the forecasts can look too small.
"""

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan.apps.series.domain import forecast
from stepscan.apps.series.frames import moments
from stepscan.data.panel import SeriesPacked, last_seen
from stepscan.data.series import SeriesSchema
from stepscan.models import Forecast, SequenceModel

if TYPE_CHECKING:
    import pandas as pd

LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # of the runs that the answers are tried on
RUNS = 200  # of each length
FEWEST = 20  # runs; with fewer the answers count alike
ENOUGH = 100  # runs that the weights have not learned from: with so many no others are taken


class Gap(NamedTuple):
    """Steps without a value, between two with one."""

    before: int
    """Position of the last value, in the packed part."""
    after: int
    """Position of the next one."""

    @property
    def length(self) -> int:
        """Steps without a value."""
        return self.after - self.before - 1


class Sides(NamedTuple):
    """Four answers for each step of M gaps of one length G."""

    medians: Float[Tensor, "4 M G"]
    """Forth, back, line, season; NaN where there is none."""
    offsets: Float[Tensor, "2 M G Q"]
    """Of the quantiles of the first two from their medians."""


class Trust(NamedTuple):
    """How much the answers count in gaps of one length."""

    weights: Float[Tensor, "4 G"]
    stretch: float


def find_gaps(packed: SeriesPacked) -> list[Gap]:
    """All of a part, in order."""
    y = packed.panel.y[packed.steps]
    known = (~y.isnan()).nonzero()[:, 0]
    series = packed.series_at(known)
    inside = (known.diff() > 1) & (series.diff() == 0)
    return [
        Gap(a, b)
        for a, b in zip(known[:-1][inside].tolist(), known[1:][inside].tolist(), strict=True)
    ]


def turned(packed: SeriesPacked) -> SeriesPacked:
    """Every series backwards, with the clock, the covariates and the values of each step."""
    panel = packed.panel
    place = torch.arange(len(packed))
    ends = (packed.begins + packed.lengths - 1).repeat_interleave(packed.lengths)
    begins = packed.begins.repeat_interleave(packed.lengths)
    order = packed.steps[ends - (place - begins)]
    y = panel.y[order]
    series = panel.series[order]
    begin, end = torch.zeros_like(panel.begin), torch.zeros_like(panel.end)
    begin[series[packed.begins]] = packed.begins
    end[series[packed.begins]] = packed.begins + packed.lengths
    other = copy.copy(packed)
    other.steps = place
    other.panel = replace(
        panel,
        y=y,
        series=series,
        begin=begin,
        end=end,
        stamps=-panel.stamps[order],
        channels=panel.channels[order],
        ahead=panel.ahead[order],
        last_seen=torch.from_numpy(last_seen(~np.isnan(y.numpy()))),
    )
    return other


class Filler:
    """A model that fills the gaps of one part: it reads the part once forth and once back."""

    def __init__(
        self,
        model: SequenceModel,
        schema: SeriesSchema,
        packed: SeriesPacked,
        *,
        reach: int,
        seen_until: int | None = None,
    ) -> None:
        assert isinstance(model.config.head, Forecast)
        self.seen_until = seen_until
        self.schema, self.packed = schema, packed
        self.levels = model.config.head.quantiles
        self.middle = len(self.levels) // 2
        self.y = packed.panel.y[packed.steps]
        ends = packed.begins + packed.lengths - 1
        mirror = (packed.begins + ends).repeat_interleave(packed.lengths)
        self.gaps = find_gaps(packed)
        self.runs = {length: self._runs(length) for length in {self.nearest(g) for g in self.gaps}}
        before = [torch.tensor([gap.before for gap in self.gaps], dtype=torch.int64)]
        after = [torch.tensor([gap.after for gap in self.gaps], dtype=torch.int64)]
        before += list(self.runs.values())
        after += [at + length + 1 for length, at in self.runs.items()]
        self._said = []
        every = torch.arange(len(packed))
        for part, wanted, at in (
            (packed, torch.cat(before).unique(), every),
            (turned(packed), torch.cat(after).unique(), mirror - every),
        ):
            row = torch.full((len(packed),), -1)
            row[wanted] = torch.arange(len(wanted))
            self._said.append((row, forecast(model, schema, part, at[wanted], reach=reach)))

    def nearest(self, gap: Gap) -> int:
        """The length of the runs that stand for a gap."""
        found = min(LENGTHS, key=lambda length: abs(np.log(length / gap.length)))
        return min(found, 2 * self.schema.horizon)

    def sides(self, before: Int[Tensor, " M"], length: int) -> Sides:
        """The answers for gaps of one length, by the position of the value before each."""
        after = before + length + 1
        horizon, count = self.schema.horizon, len(before)
        quantiles = torch.full((2, count, length, len(self.levels)), torch.nan, dtype=torch.float64)
        reach = min(length, horizon)
        steps = torch.arange(reach)
        for side, at, into in ((0, before, steps), (1, after, length - 1 - steps)):
            row, said = self._said[side]
            quantiles[side][:, into] = said[row[at], :reach]
        part = (torch.arange(1, length + 1) / (length + 1)).double()
        line = self.y[before, None] * (1 - part) + self.y[after, None] * part
        season = self._season(before, after, length)
        season = torch.where(season.isnan(), line, season)
        medians = torch.cat([quantiles[..., self.middle], line[None], season[None]])
        return Sides(medians, quantiles - quantiles[..., [self.middle]])

    def _runs(self, length: int) -> Int[Tensor, " M"]:
        """Positions before runs of known values of this length, evenly spread over the part."""
        known = ~self.y.isnan()
        whole = known.float().cumsum(0)
        sequence = self.packed.starts.cumsum(0)
        at = torch.arange(len(self.y) - length - 1)
        after = at + length + 1
        run = (whole[after] - whole[at] == length + 1) & known[at]
        since = at - self.packed.begins[sequence[at] - 1]
        run &= (sequence[at] == sequence[after]) & (since >= self.schema.season)
        if self.seen_until is not None:  # of what was learned from the forecasts look too good
            new = run & (self.packed.stamps_at(at) > self.seen_until)
            run = new if int(new.sum()) >= ENOUGH else run
        at = run.nonzero()[:, 0]
        chosen = torch.linspace(0, max(len(at) - 1, 0), min(RUNS, len(at)))
        return at[chosen.round().long()]

    def trust(self, length: int) -> Trust:
        """From the runs of this length."""
        at = self.runs[length]
        if len(at) < FEWEST:
            return Trust(torch.full((4, length), 1 / 4, dtype=torch.float64), 1.0)
        sides = self.sides(at, length)
        actual = self.y[at[:, None] + torch.arange(1, length + 1)]
        unit = self.packed.scale_at(at)[:, None]
        squared = ((sides.medians - actual) / unit).square().mean(1)
        weights = (1 / squared.clamp(min=1e-12)).nan_to_num(0.0)
        weights = weights / weights.sum(0)
        middle, bands = self.joined(sides, weights)
        edge = torch.where(actual > middle, bands[..., -1], -bands[..., 0])
        claimed = self.levels[-1] - self.levels[0]
        ratio = ((actual - middle).abs() / edge.clamp(min=1e-12)).flatten()
        return Trust(weights, float(ratio.quantile(claimed)))

    def joined(
        self, sides: Sides, weights: Float[Tensor, "4 G"]
    ) -> tuple[Float[Tensor, "M G"], Float[Tensor, "M G Q"]]:
        """The weighted answer, and the offsets of its bands before they are stretched."""
        middle = (weights[:, None] * sides.medians.nan_to_num(0.0)).sum(0)
        share = weights[:2] / weights[:2].sum(0).clamp(min=1e-12)
        return middle, (share[:, None, :, None] * sides.offsets.nan_to_num(0.0)).sum(0)

    def fill(self, gap: Gap, trust: Trust) -> Float[Tensor, "G Q"]:
        """Quantiles of every step of a gap; of a long one, seen from both ends only."""
        length, reach = len(trust.weights[0]), self.schema.horizon
        weights, at = trust.weights, torch.tensor([gap.before])
        if gap.length != length:  # by the distance from the nearer end
            step = torch.arange(gap.length)
            from_end = torch.minimum(step, gap.length - 1 - step).clamp(max=(length - 1) // 2)
            first = step < gap.length / 2
            weights = weights[:, torch.where(first, from_end, length - 1 - from_end)]
        sides = self.sides(at, gap.length)
        known = ~sides.medians[:, 0].isnan()
        weights = weights * known
        weights = weights / weights.sum(0).clamp(min=1e-12)
        middle, bands = self.joined(sides, weights)
        middle, bands = middle[0], bands[0] * trust.stretch
        inner = ~known[:2].any(0)  # out of reach of both ends
        bands = torch.where(inner[:, None], bands[min(reach, gap.length) - 1], bands)
        return middle[:, None] + bands

    def _season(
        self, before: Int[Tensor, " M"], after: Int[Tensor, " M"], length: int
    ) -> Float[Tensor, "M G"]:
        """The mean of the nearest known values whole seasons before and after, outside of the gap;
        NaN without any.
        """
        season, sequence = self.schema.season, self.packed.starts.cumsum(0)
        at = before[:, None] + torch.arange(1, length + 1)
        found = torch.full((2, *at.shape), torch.nan, dtype=torch.float64)
        if not season:
            return found[0]
        for side, sign in ((0, -1), (1, 1)):
            for times in range(1, length // season + 4):
                place = at + sign * times * season
                inside = place.clamp(0, len(self.y) - 1)
                there = (inside == place) & (sequence[inside] == sequence[at])
                there &= (place <= before[:, None]) | (place >= after[:, None])
                value = torch.where(there, self.y[inside], torch.nan)
                found[side] = torch.where(found[side].isnan(), value, found[side])
        return found.nanmean(0)


def fill_frame(
    model: SequenceModel,
    schema: SeriesSchema,
    packed: SeriesPacked,
    *,
    reach: int,
    seen_until: int | None = None,
) -> "pd.DataFrame":
    """The frame of `SeriesModel.impute`; `seen_until` is the time up to which it was chosen."""
    import pandas as pd  # noqa: PLC0415

    filler = Filler(model, schema, packed, reach=reach, seen_until=seen_until)
    quantiles = filler.y[:, None].expand(-1, len(filler.levels)).clone()
    trusted = {length: filler.trust(length) for length in filler.runs}
    for gap in filler.gaps:
        quantiles[gap.before + 1 : gap.after] = filler.fill(gap, trusted[filler.nearest(gap)])
    every = torch.arange(len(packed))
    return pd.DataFrame(
        {
            "series": np.array(packed.names, dtype=object)[packed.series_at(every).numpy()],
            "time": moments(packed.stamps_at(every).numpy(), schema),
            "value": quantiles[:, filler.middle].numpy(),
            "missing": filler.y.isnan().numpy(),
            "low": quantiles[:, 0].numpy(),
            "high": quantiles[:, -1].numpy(),
        }
    )
