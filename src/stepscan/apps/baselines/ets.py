"""Exponential smoothing per series, by statsmodels: what a forecaster tries first.

Additive errors, a season if there is one, and a damped trend where AIC wants it (Hyndman et al.
2008, ch. 2); initial states by their heuristic. Estimated anew at every origin from at most
`LONGEST` steps before it; gaps are filled by straight lines, since exponential smoothing knows no
missing values. Quantiles are those of its own normal predictive distribution.
"""

import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan.data.panel import SeriesPacked

FITS = 120
"""How often it is estimated beside a result, at most: a tenth of a second each."""
LONGEST = 1_000
SEASONS = 3  # of history, or it goes without a season


def installed() -> bool:
    """Whether statsmodels is there: the extra `timeseries`."""
    return find_spec("statsmodels") is not None


def ets_quantiles(
    packed: SeriesPacked, at: Int[Tensor, " M"], levels: tuple[float, ...]
) -> Float[Tensor, "M H Q"]:
    """Quantiles in real units from these positions."""
    panel = packed.panel
    horizon, season = panel.horizon, _season(panel.season, panel.lags)
    scores = torch.special.ndtri(torch.tensor(levels, dtype=torch.float64)).numpy()
    said = []
    places, begins = packed.steps[at].tolist(), panel.begin[packed.series_at(at)].tolist()
    for place, begin in zip(places, begins, strict=True):
        y = panel.y[max(begin, place + 1 - LONGEST) : place + 1].numpy()
        mean, deviation = _forecast(_filled(y), season, horizon)
        said.append(mean[:, None] + deviation[:, None] * scores)
    return torch.from_numpy(np.array(said).reshape(len(at), horizon, len(levels)))


def spread_evenly(packed: SeriesPacked, at: Int[Tensor, " M"], most: int) -> Int[Tensor, " K"]:
    """The origins of so many series, evenly chosen, that about `most` remain."""
    series = packed.series_at(at)
    different = series.unique()
    count = max(1, min(len(different), most * len(different) // max(1, len(at))))
    chosen = different[torch.linspace(0, len(different) - 1, count).round().long()]
    return at[torch.isin(series, chosen)]


def _season(season: int, lags: tuple[int, ...]) -> int:
    """The longest season that `LONGEST` steps hold often enough; 0 for none."""
    fits = [s for s in (season, *lags) if 2 <= s <= LONGEST // SEASONS]
    return season if season in fits else max(fits, default=0)


def _forecast(
    y: Float[np.ndarray, " N"], season: int, horizon: int
) -> tuple[Float[np.ndarray, " H"], Float[np.ndarray, " H"]]:
    """Mean and standard deviation of the steps ahead."""
    import pandas as pd  # noqa: PLC0415
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel  # noqa: PLC0415

    if len(y) < 10 or y.min() == y.max():  # nothing to estimate
        deviation = y.std() * np.ones(horizon)
        return np.full(horizon, y[-1]), deviation
    seasonal = season if season and len(y) >= SEASONS * season else 0
    found: list[Any] = []
    for trend in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the optimizer stopped early: AIC tells
            model = ETSModel(
                pd.Series(y),
                error="add",
                trend="add" if trend else None,
                damped_trend=trend,
                seasonal="add" if seasonal else None,
                seasonal_periods=seasonal or None,
                initialization_method="heuristic",
            )
            found.append(model.fit(disp=False, maxiter=100))
    best = min(found, key=lambda result: result.aic)
    said = best.get_prediction(start=len(y), end=len(y) + horizon - 1)
    return np.asarray(said.predicted_mean), np.sqrt(np.asarray(said.forecast_variance))


def _filled(y: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    known = np.flatnonzero(~np.isnan(y))
    return np.interp(np.arange(len(y)), known, y[known])
