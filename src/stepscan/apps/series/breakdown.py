"""Where forecasts err: by how far ahead, and by series."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan.models import SequenceModel

if TYPE_CHECKING:
    from stepscan.apps.series.domain import Series

SHOWN = 5  # series at either end
MOST = 24  # steps ahead that have a place of their own in the picture


def breakdown(domain: "Series", models: Mapping[str, SequenceModel]) -> list[dict[str, Any]]:
    """Scaled absolute errors of the median, over the test part, beside the base forecast.

    Errors are divided as in MASE: by the error of the seasonal naive forecast in training.
    """
    packed = domain.packed("test")
    at = packed.origins()
    actual = packed.actual_at(at)
    scale = torch.tensor(domain.schema.naive, dtype=torch.float64)[packed.series_at(at)][:, None]
    middle = domain.head.quantiles.index(0.5)
    said = {who: domain.forecast(model, packed, at)[..., middle] for who, model in models.items()}
    base = "seasonal naive" if domain.schema.season else "last value"
    errors = {
        who: (values - actual).abs() / scale
        for who, values in (said | {base: packed.base_at(at)}).items()
    }
    return [*_by_horizon(errors), *_by_series(errors, packed.series_at(at), packed.names)]


def _by_horizon(errors: Mapping[str, Float[Tensor, "M H"]]) -> list[dict[str, Any]]:
    horizon = next(iter(errors.values())).shape[1]
    if horizon < 2:
        return []
    width = -(-horizon // MOST)
    pieces = [range(a, min(a + width, horizon)) for a in range(0, horizon, width)]
    places = [str(p.stop) if width == 1 else f"{p.start + 1}-{p.stop}" for p in pieces]
    lines = [
        {"from": who, "values": [_mean(error[:, p.start : p.stop]) for p in pieces]}
        for who, error in errors.items()
    ]
    return [
        {
            "type": "lines",
            "title": "Error by steps ahead",
            "x": "steps ahead",
            "y": "scaled absolute error",
            "places": places,
            "lines": lines,
            "note": "Absolute error of the median forecast, divided as in MASE, averaged over all "
            "origins of the test part.",
        }
    ]


def _by_series(
    errors: Mapping[str, Float[Tensor, "M H"]],
    series: Int[Tensor, " M"],
    names: tuple[str, ...],
) -> list[dict[str, Any]]:
    present = series.unique().tolist()
    if len(present) < 2:
        return []
    known = []
    for i in present:
        means = [_mean(error[series == i]) for error in errors.values()]
        if means[0] is not None:
            known.append((means[0], [names[i], *means]))
    known = sorted(known, key=lambda one: -one[0])
    shown = known if len(known) <= 2 * SHOWN else [*known[:SHOWN], *known[-SHOWN:]]
    which = "" if shown is known else f": the {SHOWN} worst and the {SHOWN} best of {len(known):,}"
    return [
        {
            "type": "table",
            "title": f"Scaled absolute error by series{which}",
            "columns": ["series", *errors],
            "rows": [row for _, row in shown],
        }
    ]


def _mean(values: Float[Tensor, "..."]) -> float | None:
    known = values[~values.isnan()]
    return float(known.mean()) if len(known) else None
