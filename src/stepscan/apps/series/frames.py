"""Forecasts as frames: quantiles, bands in the shape of utilsforecast, or paths."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan.apps.series.calibration import at_levels, sample_paths
from stepscan.data.series import SeriesSchema

if TYPE_CHECKING:
    import pandas as pd


class Said(NamedTuple):
    """What a model says of the future of several series."""

    names: tuple[str, ...]
    stamps: Int[Tensor, " M"]
    """The time of the last step read."""
    quantiles: Float[Tensor, "M H Q"]
    """In real units."""
    levels: tuple[float, ...]
    persistence: float
    """See `calibration`."""
    ahead: Int[Tensor, "M H"] | None = None
    """The times of the steps asked for, where they lie on no grid."""


def forecast_frame(
    said: Said,
    schema: SeriesSchema,
    *,
    name: str,
    horizon: int | None,
    quantiles: Sequence[float] | None,
    levels: Sequence[float] | None,
    samples: int | None,
    seed: int,
) -> "pd.DataFrame":
    """See `SeriesModel.forecast`."""
    import pandas as pd  # noqa: PLC0415

    asked = {"quantiles": quantiles, "levels": levels, "samples": samples}
    given = [word for word, value in asked.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"forecast: want one of quantiles, levels and samples, got {given}")
    steps = schema.horizon if horizon is None else horizon
    if not 1 <= steps <= schema.horizon:
        raise ValueError(
            f"forecast: want a horizon from 1 to {schema.horizon}, what the model learned, "
            f"got {steps}; for a longer one fit a model with --horizon {max(1, steps)}"
        )
    table = said.quantiles[:, :steps]
    times = [t for stamp in said.stamps.tolist() for t in schema.times_ahead(stamp)[:steps]]
    if said.ahead is not None:
        times = list(moments(said.ahead[:, :steps].flatten().numpy(), schema))
    rows: dict[str, Any] = {"series": np.repeat(np.array(said.names, object), steps), "time": times}
    if samples is not None:
        return _paths(said, table, rows, samples, seed)
    if levels is not None:
        asked_for = _moments(said.stamps, schema, steps) if said.ahead is None else times
        rows = {"unique_id": rows["series"], "ds": asked_for}
        rows[name] = at_levels(table, [0.5], said.levels).flatten().numpy()
        for label, edge in band_edges(table, levels, said.levels).items():
            rows[f"{name}-{label}"] = edge.flatten().numpy()
        return pd.DataFrame(rows)
    wanted = said.levels if quantiles is None else tuple(quantiles)
    found = at_levels(table, wanted, said.levels).flatten(0, 1)
    return pd.DataFrame(rows | {str(q): found[:, i].numpy() for i, q in enumerate(wanted)})


def band_edges(
    said: Float[Tensor, "... Q"], levels: Sequence[float], learned: Sequence[float]
) -> dict[str, Float[Tensor, "..."]]:
    """ "lo-80", "hi-80" ... of the central bands that hold so many percent."""
    for level in levels:
        if not 0 < level < 100:
            raise ValueError(f"forecast: want levels between 0 and 100 percent, got {level:g}")
    wanted = [(50 + sign * level / 2) / 100 for level in levels for sign in (-1, 1)]
    labels = [f"{side}-{level:g}" for level in levels for side in ("lo", "hi")]
    if not wanted:
        return {}
    return dict(zip(labels, at_levels(said, wanted, learned).unbind(-1), strict=True))


def moments(stamps: Int[np.ndarray, "..."], schema: SeriesSchema) -> np.ndarray:
    """Times as pandas has them: dates, or the numbers of the file."""
    if schema.calendar:
        return stamps.astype("datetime64[ns]")
    return stamps if schema.time is None else stamps / 1e6


def _moments(stamps: Int[Tensor, " M"], schema: SeriesSchema, steps: int) -> np.ndarray:
    """The times of the steps ahead; where steps are counted and not timed, 1, 2 ..."""
    if not (schema.step or schema.months):
        return np.tile(np.arange(1, steps + 1), len(stamps))
    at = schema.frequency.index(stamps.numpy())[:, None] + np.arange(1, steps + 1)
    return moments(schema.frequency.stamp(at.flatten()), schema)


def _paths(
    said: Said, table: Float[Tensor, "M H Q"], rows: dict[str, Any], count: int, seed: int
) -> "pd.DataFrame":
    import pandas as pd  # noqa: PLC0415

    if count < 1:
        raise ValueError(f"forecast: want 1 sample or more, got {count}")
    rng = torch.Generator().manual_seed(seed)
    paths = sample_paths(table, said.levels, said.persistence, count, rng)
    frame = pd.DataFrame(rows)
    frame = frame.loc[frame.index.repeat(count)].reset_index(drop=True)
    frame["sample"] = np.tile(np.arange(count), table.shape[0] * table.shape[1])
    frame["value"] = paths.flatten().numpy()
    return frame
