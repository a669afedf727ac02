"""Would it have worked? Forecasts from several past days beside simple methods; then read along."""

import numpy as np
import pandas as pd

import stepscan as ss


def made_up_sales(days: int = 400) -> pd.DataFrame:
    """Three shops of two kinds with a weekly rhythm; what tells them apart is a static column."""
    rng = np.random.default_rng(0)
    when = pd.date_range("2025-01-01", periods=days, freq="D")
    week = np.array([10, 11, 12, 13, 18, 25, 4])[when.day_of_week]
    shops = []
    for shop, kind, level in (("North", "kiosk", 1.0), ("South", "hall", 4.0), ("East", "hall", 5)):
        sold = level * week * rng.lognormal(0, 0.1, days)
        facts = {"unique_id": shop, "ds": when, "y": sold.round(1), "kind": kind}
        shops.append(pd.DataFrame(facts))
    return pd.concat(shops, ignore_index=True)


if __name__ == "__main__":
    sales = made_up_sales()
    today = sales["ds"].max() - pd.Timedelta(days=14)
    past, later = sales[sales["ds"] <= today], sales[sales["ds"] > today]

    how = ss.DataOptions(horizon=7, static=("kind",))
    model = ss.fit(past, options=how, steps=60, width=32, quiet=True)

    tested = model.backtest(windows=3, step=7)  # weights stay; refit=True would train each time
    print(tested.scores[["model", "MASE", "CRPS", "coverage 80"]].round(3).to_string(index=False))
    print(tested.frame.iloc[:3, :7].to_string(index=False, float_format="%.1f"))

    # Two weeks have passed: read the new rows, without training, and forecast from there.
    model.update(later)
    bands = model.forecast(levels=(80,))
    print(bands[bands["unique_id"] == "East"].to_string(index=False, float_format="%.1f"))

    # Whole futures, whose steps hang together: what a week brings in all.
    paths = model.forecast(samples=200)
    weeks = paths.groupby(["series", "sample"])["value"].sum().groupby("series")
    print(weeks.quantile([0.1, 0.5, 0.9]).unstack().round(0).to_string())
