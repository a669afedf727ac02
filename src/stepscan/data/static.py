"""Static columns of series: one value a series, numbers or words; an input at every step."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from stepscan.data.base import DataError

MOST = 500  # categories of a column: each is an input


def learn_static(
    values: Mapping[str, Sequence[str]], name: str
) -> tuple[tuple[tuple[str, ...], ...], tuple[float, ...], tuple[float, ...]]:
    """Of each column: its categories (none for numbers), and the centre and scale of numbers.

    Args:
        values: By column, the value of each series as text; "" where missing.
        name: Of the data, for errors.
    """
    levels: list[tuple[str, ...]] = []
    centers, scales = [], []
    for column, told in values.items():
        known = [v for v in told if v]
        if not known:
            raise DataError(f'{name}: the static column "{column}" is empty; leave it out')
        parsed = [_number(v) for v in known]
        if None not in parsed:
            found = np.array(parsed, np.float64)
            levels.append(())
            centers.append(float(found.mean()))
            scales.append(float(found.std()) or 1.0)
            continue
        different = sorted(set(known))
        if len(different) > MOST:
            raise DataError(
                f'{name}: the static column "{column}" has {len(different):,} different words; '
                f"want {MOST} or fewer. Group them, or leave it out"
            )
        levels.append(tuple(different))
        centers.append(0.0)
        scales.append(1.0)
    return tuple(levels), tuple(centers), tuple(scales)


def encode_static(
    values: Mapping[str, Sequence[str]],
    levels: Sequence[Sequence[str]],
    center: Sequence[float],
    scale: Sequence[float],
    series: int,
) -> Float[np.ndarray, "S K"] | None:
    """What `Panel.static` holds; a missing value and a category never seen are zeros."""
    if not levels:
        return None
    parts = []
    for told, known, middle, unit in zip(values.values(), levels, center, scale, strict=True):
        if known:
            parts.append(np.array([[v == level for level in known] for v in told], np.float32))
            continue
        found = np.array([x if (x := _number(v)) is not None else np.nan for v in told])
        parts.append(np.nan_to_num((found - middle) / unit).astype(np.float32)[:, None])
    return np.concatenate(parts, 1).reshape(series, -1)


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if np.isfinite(found) else None
