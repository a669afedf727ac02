"""Medians and quantiles of more numbers than fit in memory, exactly."""

from collections.abc import Callable, Iterator

import numpy as np

BINS = 1 << 16

Chunks = Callable[[], Iterator[np.ndarray]]


def order_statistic(chunks: Chunks, rank: int) -> int:
    """The number at this place (from 0) of all, sorted: counted in bins that grow finer.

    Args:
        chunks: Called for every reading: whole numbers, in pieces; at most 4 readings of int64.
        rank: From 0.
    """
    low, high = _range(chunks)
    while low < high:
        width = -(-(high - low + 1) // BINS)
        counts = np.zeros(BINS, np.int64)
        for piece in chunks():
            inside = piece[(piece >= low) & (piece <= high)]
            counts += np.bincount((inside - low) // width, minlength=BINS)
        below = np.cumsum(counts)
        bin_ = int(np.searchsorted(below, rank, side="right"))
        rank -= int(below[bin_] - counts[bin_])
        low += bin_ * width
        high = min(high, low + width - 1)
    return low


def quantile(chunks: Chunks, count: int, level: float) -> float:
    """As `numpy.quantile`: interpolated between the two nearest of `count` numbers."""
    place = level * (count - 1)
    below = int(place)
    near = [order_statistic(chunks, rank) for rank in (below, min(below + 1, count - 1))]
    return float(np.quantile(near, place - below))


def _range(chunks: Chunks) -> tuple[int, int]:
    pieces = [(int(piece.min()), int(piece.max())) for piece in chunks() if len(piece)]
    return min(low for low, _ in pieces), max(high for _, high in pieces)
