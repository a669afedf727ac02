"""What a clock and a calendar say about a time, as points on circles."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

HOUR = 3_600 * 1_000_000_000  # nanoseconds
DAY = 24 * HOUR
WEEK = 7 * DAY
YEAR = 365.2425 * DAY
SPANS = ((172_800, "days", 86_400.0), (3_600, "hours", 3_600.0), (60, "minutes", 60.0))
MONDAY = 3 * DAY  # 1970 began on a Thursday: the week is 3 days old


def on_circles(
    stamps: Int[np.ndarray, " N"], periods: Sequence[float]
) -> Float[np.ndarray, "N P2"]:
    """(sin, cos) of the phase of each time, in nanoseconds since 1970, within each period."""
    turns = [((stamps + MONDAY * (period == WEEK)) % period) / period for period in periods]
    angles = 2 * np.pi * np.array(turns, np.float64).reshape(len(periods), len(stamps)).T
    return np.stack([np.sin(angles), np.cos(angles)], 2).reshape(len(stamps), 2 * len(periods))


def components(stamps: Int[np.ndarray, " N"]) -> Float[np.ndarray, "N 7"]:
    """Year, month, day, day of the week (Monday is 1), day of the year, week (of ISO
    8601) and hour of times in nanoseconds since 1970."""
    import pandas as pd  # noqa: PLC0415

    times = pd.DatetimeIndex(stamps.astype("datetime64[ns]"))
    parts = (
        times.year,
        times.month,
        times.day,
        times.dayofweek + 1,
        times.dayofyear,
        times.isocalendar().week,
        times.hour,
    )
    return np.stack([np.asarray(part, np.float32) for part in parts], 1)


def span(seconds: float) -> tuple[str, float]:
    """The word that people would use for a stretch of time of this size, and its seconds."""
    for least, word, size in SPANS:
        if seconds >= least:
            return word, size
    return "seconds", 1.0
