"""Forecast two series of a table, with bands, after training on everything before."""

import numpy as np
import pandas as pd

import stepscan as ss


def made_up_sales(days: int = 400) -> pd.DataFrame:
    """Two shops with a weekly rhythm; one of them was closed for some days."""
    rng = np.random.default_rng(0)
    when = pd.date_range("2025-01-01", periods=days, freq="D")
    week = np.array([10, 11, 12, 13, 18, 25, 4])[when.day_of_week]
    shops = []
    for shop, level in (("North", 1.0), ("South", 2.5)):
        sold = level * week * rng.lognormal(0, 0.1, days)
        shops.append(pd.DataFrame({"shop": shop, "day": when, "sold": sold.round(1)}))
    shops[1] = shops[1].drop(index=range(200, 206))
    return pd.concat(shops)


if __name__ == "__main__":
    made_up_sales().to_csv("sales.csv", index=False)
    how = ss.DataOptions(id="shop", time="day", target="sold", horizon=7)
    model = ss.fit("sales.csv", options=how, steps=100, width=32)

    ahead = model.forecast()  # after the last value of every series
    print(ahead[["series", "time", "0.1", "0.5", "0.9"]].round(1).to_string(index=False))

    later = made_up_sales(407)  # a week has passed: the same model, new rows, no training
    print(model.forecast(later).groupby("series")["0.5"].sum().round(0).to_string())
