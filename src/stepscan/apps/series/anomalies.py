"""How surprising each value of a series is, given what came before it.

A value y_t is put into the forecasts that were made of it h steps before, for each h of a few leads
(1 and the whole horizon): z = Phi^-1(F(y_t)), its place in the predictive distribution as a normal
score (`calibration.normal_scores`). One step ahead a spike stands out; a whole horizon ahead so
does every step of a shifted level or a broken season, which a forecast of one step gets used to.

How often such a |z| comes without any anomaly is told by the validation part: its share there up to
the 90 % quantile u, and beyond it a generalised Pareto tail fitted to the excesses (peaks over
threshold; Pickands 1975; for streams Siffer et al. 2017, KDD):

    P(|z| > x) = (n_u / n) (1 + gamma (x - u) / sigma)^(-1 / gamma)        x > u

by probability-weighted moments (Hosking and Wallis 1987), gamma from 0 to 0.5, so that no score is
infinite. The leads are put together by Bonferroni: p = min over the L leads of L p_h. The score is
-log10 p, and a value with p up to the wanted rate is an anomaly: of sound data that share is called
one. The validation part also chose the weights, so the true rate may lie a little above.

What is called an anomaly is hidden from the model in a second pass, as a missing value, so that it
does not raise the score of what comes after it.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepscan.apps.series.calibration import normal_scores
from stepscan.apps.series.frames import moments
from stepscan.apps.series.walking import quantiles_ahead
from stepscan.data.base import DataError
from stepscan.data.panel import SeriesPacked, last_seen
from stepscan.data.series import SeriesSchema
from stepscan.models import Forecast, SequenceModel

if TYPE_CHECKING:
    import pandas as pd

BULK = 0.9  # of the validation scores are described by their own share, the rest by a tail
FEWEST = 50  # validation scores: with fewer the normal distribution must do
HEAVIEST = 0.5  # tail: beyond it the variance is infinite
NAIVE = "seasonal naive"


class Tail(NamedTuple):
    """How often a score is exceeded where nothing is wrong."""

    bulk: Float[np.ndarray, " N"]
    """The scores seen, ascending; empty: the normal distribution of |z|."""
    edge: float = 0.0
    """Where the fitted tail begins."""
    gamma: float = 0.0
    sigma: float = 1.0

    def p(self, score: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
        """The probability of a score as large as this or larger; NaN stays NaN."""
        if not len(self.bulk):
            log = torch.special.log_ndtr(-torch.from_numpy(np.array(score))) + math.log(2)
            return log.exp().numpy()
        count = len(self.bulk)
        above = count - np.searchsorted(self.bulk, score, side="left")
        found = (above + 1) / (count + 1)
        excess = np.maximum(score - self.edge, 0) / self.sigma
        log = -np.log1p(self.gamma * excess) / self.gamma if self.gamma else -excess
        share = (self.bulk > self.edge).mean()
        found = np.where(score > self.edge, share * np.exp(log), found)
        return np.where(np.isnan(score), np.nan, np.minimum(found, 1.0))


def fit_tail(scores: Float[np.ndarray, " N"]) -> Tail:
    """From the scores of sound data; NaN are left out."""
    bulk = np.sort(scores[~np.isnan(scores)])
    if len(bulk) < FEWEST:
        return Tail(np.empty(0))
    edge = float(np.quantile(bulk, BULK))
    gamma, sigma = pareto(bulk[bulk > edge] - edge)
    return Tail(bulk, edge, gamma, sigma)


def pareto(excess: Float[np.ndarray, " N"]) -> tuple[float, float]:
    """Shape gamma (0 to 0.5) and scale sigma of a generalised Pareto distribution of excesses."""
    if len(excess) < 2 or not excess.max() > 0:
        return 0.0, max(float(excess.mean()) if len(excess) else 0.0, 1e-9)
    ascending = np.sort(excess)
    rank = (np.arange(1, len(excess) + 1) - 0.35) / len(excess)
    first, second = ascending.mean(), (ascending * (1 - rank)).mean()
    gamma = 2 - first / max(first - 2 * second, 1e-12)
    gamma = min(max(gamma, 0.0), HEAVIEST)
    return gamma, float(first * (1 - gamma))  # the mean of the distribution is kept


class Scored(NamedTuple):
    """Every step of a part."""

    z: Float[np.ndarray, "N L"]
    """|z| for each lead; NaN where there is no value or no forecast of it."""
    naive: Float[np.ndarray, " N"]
    """Distance from the seasonal naive forecast a step before, in units of its spread."""
    band: Float[np.ndarray, "N 3"]
    """Lowest quantile, median, highest, a step ahead."""


def score_steps(
    model: SequenceModel,
    schema: SeriesSchema,
    packed: SeriesPacked,
    leads: Sequence[int],
    *,
    reach: int,
    values: Float[Tensor, " N"] | None = None,
) -> Scored:
    """What the forecasts before it say of each step of a part.

    Args:
        model: With a forecast head.
        schema: Of the data.
        packed: The part; the model reads it as it is.
        leads: Steps ahead to judge by, ascending, the first of them 1.
        reach: See `Domain.reach`.
        values: What came, if something else than what the model reads.
    """
    head = model.config.head
    assert isinstance(head, Forecast)
    count = len(packed)
    actual = packed.panel.y[packed.steps] if values is None else values
    said = quantiles_ahead(model, schema, packed, leads, reach=reach)
    sequence = packed.starts.cumsum(0)
    z = torch.full((count, len(leads)), torch.nan, dtype=torch.float64)
    band = torch.full((count, 3), torch.nan, dtype=torch.float64)
    for i, lead in enumerate(leads):
        into = torch.arange(lead, count)
        into = into[sequence[into] == sequence[into - lead]]
        quantiles = said[into - lead, i]
        z[into, i] = normal_scores(quantiles, actual[into], head.quantiles).abs()
        if lead == 1:
            middle = len(head.quantiles) // 2
            band[into] = quantiles[:, [0, middle, len(head.quantiles) - 1]]
    naive = torch.full((count,), torch.nan, dtype=torch.float64)
    into = torch.arange(1, count)
    into = into[sequence[into] == sequence[into - 1]]
    base = packed.panel.base(packed.steps[into - 1])[:, 0]
    naive[into] = ((actual[into] - base) / packed.scale_at(into)).abs()
    return Scored(z.numpy(), naive.numpy(), band.numpy())


def hidden(packed: SeriesPacked, steps: Bool[np.ndarray, " N"]) -> SeriesPacked:
    """The same part with the values of these steps missing; a series keeps its first value."""
    y = packed.panel.y.clone()
    y[packed.steps[torch.from_numpy(steps)]] = torch.nan
    y[packed.panel.begin] = packed.panel.y[packed.panel.begin]
    seen = torch.from_numpy(last_seen(~np.isnan(y.numpy())))
    other = copy.copy(packed)
    other.panel = replace(packed.panel, y=y, last_seen=seen)
    return other


def find(
    model: SequenceModel,
    schema: SeriesSchema,
    packed: SeriesPacked,
    sound: SeriesPacked | None,
    *,
    rate: float,
    leads: Sequence[int] | None,
    hide: bool,
    reach: int,
) -> "pd.DataFrame":
    """The frame of `SeriesModel.anomalies`.

    Args:
        model: With a forecast head.
        schema: Of the data.
        packed: What to look at; the steps asked for, or all after a first season.
        sound: The validation part; None takes the normal distribution.
        rate: Share of sound values to be called anomalies.
        leads: Steps ahead to judge by; None is the first and the last of the horizon.
        hide: Look a second time, without what was found.
        reach: See `Domain.reach`.
    """
    import pandas as pd  # noqa: PLC0415

    if not 0 < rate < 1:
        raise DataError(f"anomalies: want a rate between 0 and 1, such as 0.001, got {rate:g}")
    leads = sorted({1, schema.horizon} if leads is None else {1, *map(int, leads)})
    if leads[0] < 1 or leads[-1] > schema.horizon:
        raise DataError(f"anomalies: want steps ahead from 1 to {schema.horizon}, got {leads}")
    tails, naive_tail = [Tail(np.empty(0))] * len(leads), Tail(np.empty(0))
    if sound is not None:
        found = score_steps(model, schema, sound, leads, reach=reach)
        asked = packed_asked(sound, schema)
        tails = [fit_tail(column[asked]) for column in found.z.T]
        naive_tail = fit_tail(found.naive[asked])
    asked, values = packed_asked(packed, schema), packed.panel.y[packed.steps]
    if not asked.any():
        raise DataError(
            f"anomalies: want series of more than {max(schema.season, schema.horizon)} steps, by "
            f"which the next are judged; the longest here has {int(packed.lengths.max())}"
        )

    def look(part: SeriesPacked) -> tuple[Scored, np.ndarray]:
        scored = score_steps(model, schema, part, leads, reach=reach, values=values)
        each = np.stack([t.p(c) for t, c in zip(tails, scored.z.T, strict=True)], 1)
        known = ~np.isnan(each)
        lowest = np.where(known, each, 1.0).min(1)
        return scored, np.where(known.any(1), np.minimum(lowest * known.sum(1), 1.0), np.nan)

    scored, p = look(packed)
    flagged = asked & (p <= rate)
    if hide and flagged.any():
        scored, p = look(hidden(packed, flagged))
    p = np.where(asked, p, np.nan)
    naive = naive_tail.p(np.where(asked, scored.naive, np.nan))
    every = torch.arange(len(packed))
    names = np.array(packed.names, dtype=object)[packed.series_at(every).numpy()]
    frame = pd.DataFrame(
        {
            "series": names,
            "time": moments(packed.stamps_at(every).numpy(), schema),
            "value": values.numpy(),
            "expected": scored.band[:, 1],
            "low": scored.band[:, 0],
            "high": scored.band[:, 2],
            "score": _surprise(p),
            "anomaly": p <= rate,
            NAIVE: _surprise(naive),
        }
    )
    return frame[asked].reset_index(drop=True)


def packed_asked(packed: SeriesPacked, schema: SeriesSchema) -> Bool[np.ndarray, " N"]:
    """The steps that are judged: those asked for, else those after a season and a horizon."""
    asked = packed.asked()
    if asked.any():
        return asked.numpy()
    series = packed.series_at(torch.arange(len(packed)))
    since = packed.steps - packed.panel.begin[series]
    return (since >= max(schema.season, schema.horizon)).numpy()


def _surprise(p: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    return -np.log10(np.maximum(p, 1e-300))
