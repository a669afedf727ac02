"""Steps that lie on no grid of time: how long ago the last one was, how far ahead the asked lie.

    since     log(time since the step before / usual gap)                     0 at the first step
    until     log(time to the h-th step ahead / (h usual gaps))               h = 1 .. H

The usual gap is the median of the training part. With the value and its missing flag these make the
triple (value, mask, time gap) of models of irregular series, such as GRU-D (Che et al. 2016,
arXiv:1606.01865), for any mixer. The times of the steps ahead are asked for, not forecast: in
training they are those that came, in a forecast those of the rows after the last value, and beyond
the rows given a usual gap each. 0 stands for what is usual.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan.data.grid import Grid, Stats, robust_columns

SHORT = 50
"""Irregular series with a median of fewer steps than this to learn from, such as the visits of
patients, share one center, scale and spread: a few values of its own measure no series well, and
where one stands among the others is what tells its course."""


def usual_gap(
    series: Int[np.ndarray, " N"],
    stamps: Int[np.ndarray, " N"],
    cut: Int[np.ndarray, " S"],
) -> float:
    """The median time between steps of a series that both lie before its cut; 0 without any."""
    inside = np.arange(len(stamps)) < cut[series]
    same = (np.diff(series) == 0) & inside[1:]
    gaps = np.diff(stamps)[same]
    return float(np.median(gaps)) if len(gaps) else 0.0


def measure_together(grid: Grid, cut: Int[np.ndarray, " S"], stats: Stats) -> Stats:
    """The center, scale and spread of all series before their cuts, for each of them."""
    y = np.where(np.arange(len(grid.y)) < cut[grid.series], grid.y, np.nan)
    before = np.roll(y, 1)
    before[grid.begin] = np.nan
    found = robust_columns(np.stack([y, y - before], 1))
    count = len(stats.center)
    return stats._replace(
        center=np.full(count, found[0][0]),
        scale=np.full(count, found[1][0]),
        spread=np.full(count, found[1][1]),
    )


def stamps_ahead(
    stamps: Int[Tensor, " N"],
    end: Int[Tensor, "..."],
    at: Int[Tensor, "..."],
    horizon: int,
    gap: float,
) -> Int[Tensor, "... H"]:
    """The times of the steps ahead: as in the table, then a usual gap after the other.

    Args:
        stamps: Of every step of the table.
        end: Where the series of each position ends.
        at: The positions.
        horizon: H.
        gap: The usual gap.
    """
    place = at[..., None] + torch.arange(1, horizon + 1)
    last = end[..., None] - 1
    beyond = (place - last).clamp(min=0)
    return stamps[torch.minimum(place, last)] + (beyond * gap).round().long()


def gap_inputs(
    stamps: Int[Tensor, " N"],
    begin: Int[Tensor, "..."],
    end: Int[Tensor, "..."],
    at: Int[Tensor, "..."],
    horizon: int,
    gap: float,
) -> Float[Tensor, "... C"]:
    """`since`, then `until` for each step ahead: see the module docstring."""
    now = stamps[at]
    since = (now - stamps[(at - 1).clamp(min=0)]).double() / gap
    since = torch.where(at > begin, since, torch.ones_like(since))
    until = (stamps_ahead(stamps, end, at, horizon, gap) - now[..., None]).double() / gap
    until = until / torch.arange(1, horizon + 1)
    return torch.cat([since[..., None], until], -1).clamp(min=1e-6).log()
