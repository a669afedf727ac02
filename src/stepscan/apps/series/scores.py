"""What forecasters judge by: computed by utilsforecast and scoringrules, per series and window."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

DEFINITIONS = MappingProxyType(
    {
        "MASE": "mean absolute error of the median, divided by the mean absolute error of the "
        "seasonal naive forecast, a season ahead, over all that lies before the cutoff of the "
        "window (without a season: of the last value, a step ahead)",
        "RMSSE": "root of the mean squared error of the median, divided by the mean squared error "
        "of the same seasonal naive forecast before the cutoff",
        "sMAPE": "mean of |y - f| / (|y| + |f|): a fraction from 0 to 1 as in utilsforecast; M4 "
        "and others publish 200 times this number",
        "WAPE": "sum of |y - f| divided by the sum of |y|",
        "CRPS": "continuous ranked probability score as twice the mean pinball loss over the "
        "learned quantiles (scoringrules), divided by the same number as MASE",
        "scaled CRPS": "the same pinball losses, divided by the mean of |y| in the window "
        "(utilsforecast, after Rangapuram et al. 2021)",
        "coverage 80": "share of values between the 0.1 and the 0.9 quantile; 0.8 is right",
        "coverage 90": "share of values between the 0.05 and the 0.95 quantile; 0.9 is right",
    }
)
AVERAGE = "Each is computed per series and window, then averaged over windows, then over series."
COVERED = {80: (0.1, 0.9), 90: (0.05, 0.95)}


def load_libraries() -> None:
    """Fail early and helpfully."""
    try:
        import scoringrules  # noqa: F401, PLC0415
        import utilsforecast  # noqa: F401, PLC0415
    except ImportError:
        raise ImportError("backtests need pip install 'stepscan[timeseries]'") from None


def quantile_column(model: str, level: float) -> str:
    """Where the frame of a backtest keeps a quantile while it is scored."""
    return f"{model}-q-{level:g}"


def score_window(
    frame: "pd.DataFrame",
    train: "pd.DataFrame",
    models: Sequence[str],
    levels: Sequence[float],
    season: int,
) -> "pd.DataFrame":
    """Every metric of one window: one row per series and metric, one column per model.

    Args:
        frame: unique_id, ds, y; for each model a column of its name with the median, and one per
            quantile, see `quantile_column`. All NaN for a model and series: not forecast.
        train: unique_id, ds, y of all that lies before the cutoff, every step in order.
        models: Their names.
        levels: Of the quantiles.
        season: Steps; 0 for none.
    """
    import numpy as np  # noqa: PLC0415
    import pandas as pd  # noqa: PLC0415
    import scoringrules  # noqa: PLC0415
    from utilsforecast import losses  # noqa: PLC0415

    names, lag = list(models), season or 1
    quantiles = {m: [quantile_column(m, level) for level in levels] for m in names}
    found: dict[str, pd.DataFrame] = {
        "MASE": losses.mase(frame, names, lag, train),
        "RMSSE": losses.rmsse(frame, names, lag, train),
        "sMAPE": losses.smape(frame, names),
        "WAPE": losses.wape(frame, names),
    }
    obs, alpha = frame["y"].to_numpy(), np.array(levels)
    crps = pd.DataFrame({"unique_id": frame["unique_id"]})
    for m in names:
        said = frame[quantiles[m]].to_numpy()
        crps[m] = scoringrules.crps_quantile(obs, said, alpha, backend="numpy")
    change = train["y"].groupby(train["unique_id"], sort=False).diff(lag).abs()
    naive = change.groupby(train["unique_id"]).mean()
    means = crps.groupby("unique_id")[names].mean()
    found["CRPS"] = means.div(naive.reindex(means.index), axis=0).reset_index()
    found["scaled CRPS"] = losses.scaled_crps(frame, quantiles, alpha)
    bands: dict[str, Any] = {}
    for level, (low, high) in COVERED.items():
        if low in levels and high in levels:
            for m in names:
                bands[f"{m}-lo-{level}"] = frame[quantile_column(m, low)]
                bands[f"{m}-hi-{level}"] = frame[quantile_column(m, high)]
    banded = frame[["unique_id", "y"]].assign(**bands)
    for level in COVERED:
        if f"{names[0]}-lo-{level}" in banded:
            found[f"coverage {level}"] = losses.coverage(banded, names, level)
    table = pd.concat([t.assign(metric=metric) for metric, t in found.items()], ignore_index=True)
    silent = frame.groupby("unique_id")[names].count().reindex(table["unique_id"]) == 0
    scores = table[names].mask(silent.to_numpy()).replace([np.inf, -np.inf], np.nan)
    return pd.concat([table[["unique_id", "metric"]], scores], axis=1)


def leaderboard(details: "pd.DataFrame", models: Sequence[str]) -> "pd.DataFrame":
    """One row per horizon and model, one column per metric: see `AVERAGE`."""
    import pandas as pd  # noqa: PLC0415

    keys = ["horizon", "metric", "unique_id"]
    series = details.groupby(keys, sort=False)[list(models)].mean()
    means = series.groupby(["horizon", "metric"], sort=False).mean()
    long = means.reset_index().melt(["horizon", "metric"], var_name="model", value_name="value")
    table = long.pivot(index=["horizon", "model"], columns="metric", values="value")
    order = [metric for metric in DEFINITIONS if metric in table]
    index = pd.MultiIndex.from_product(
        [sorted(details["horizon"].unique()), list(models)], names=["horizon", "model"]
    )
    return table[order].reindex(index).rename_axis(columns=None).reset_index()
