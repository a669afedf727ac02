"""Small data of every kind, with something in it to learn."""

import numpy as np
import pandas as pd

TINY = {"steps": 4, "width": 16, "rows": 4, "length": 24, "quiet": True}
LEGS = ["JFK>LAX", "LAX>JFK", "JFK>BOS", "BOS>JFK", "JFK>MIA", "MIA>JFK"]


def events_frame(cases=40):
    rng = np.random.default_rng(0)
    rows = []
    for case in range(cases):
        time = pd.Timestamp("2024-01-01") + pd.Timedelta(hours=int(rng.integers(400)))
        leg = int(rng.integers(3)) * 2
        for _ in range(int(rng.integers(4, 12))):
            rows.append((f"N{case:03}", LEGS[leg], time))
            time += pd.Timedelta(minutes=int(rng.integers(60, 600)))
            leg = leg + 1 if leg % 2 == 0 else int(rng.integers(3)) * 2
    return pd.DataFrame(rows, columns=["case", "activity", "timestamp"])


def series_frame(names=("a", "b"), steps=260):
    rng = np.random.default_rng(0)
    hours = pd.date_range("2024-01-01", periods=steps, freq="h")
    pieces = []
    for i, name in enumerate(names):
        y = 10 * (i + 1) + 3 * np.sin(np.arange(steps) * 2 * np.pi / 24) + rng.normal(size=steps)
        y[[40, 41, 130]] = np.nan
        pieces.append(pd.DataFrame({"unique_id": name, "ds": hours, "y": y}))
    return pd.concat(pieces, ignore_index=True)


def interactions_frame(users=30):
    rng = np.random.default_rng(0)
    rows = []
    for user in range(users):
        item = int(rng.integers(12))
        for when in range(int(rng.integers(5, 14))):
            rows.append((f"u{user:02}", f"film {item}", 1_700_000_000 + 100 * when + user))
            item = (item + int(rng.choice([1, 1, 1, 5]))) % 12
    return pd.DataFrame(rows, columns=["user", "item", "timestamp"])


def prose():
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "caf\u00e9", "and", "ran"]
    return " ".join(rng.choice(words, 3000)) + ".\n"


def demand(days, seed=0):
    """Like demand for electricity: a day, a week, and noise that lasts for some hours."""
    rng = np.random.default_rng(seed)
    hours = np.arange(24 * days)
    noise = np.zeros(len(hours))
    for t in range(1, len(hours)):
        noise[t] = 0.6 * noise[t - 1] + rng.normal()
    weekend = (hours // 24) % 7 >= 5
    y = 50 + 10 * np.sin(hours * 2 * np.pi / 24) - 5 * weekend + noise
    return pd.DataFrame({"time": pd.date_range("2024-01-01", periods=len(y), freq="h"), "load": y})
