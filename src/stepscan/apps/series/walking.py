"""What a model says at every step of a part, a few of the steps ahead at a time."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from stepscan.data.batches import places
from stepscan.data.panel import SeriesPacked
from stepscan.data.series import SeriesSchema
from stepscan.models import Forecast, SequenceModel
from stepscan.train.evaluate import walk_outputs

ROWS = 32  # series read side by side


def quantiles_ahead(
    model: SequenceModel,
    schema: SeriesSchema,
    packed: SeriesPacked,
    leads: Sequence[int],
    *,
    reach: int,
) -> Float[Tensor, "N L Q"]:
    """Quantiles in real units, `leads` steps ahead of every step: only those are kept in memory."""
    head = model.config.head
    assert isinstance(head, Forecast)
    chosen = torch.tensor(leads) - 1
    found = torch.empty(len(packed), len(leads), len(head.quantiles), dtype=torch.float64)
    walked = walk_outputs(model, packed, rows=ROWS, length=reach, slots=reach)
    for place, (_, said) in zip(places(packed, rows=ROWS, length=reach), walked, strict=True):
        real = place >= 0
        at = place[real]
        origin, unit = packed.origin_at(at, head.measured)
        found[at] = schema.decode(said[real][:, chosen].double(), origin[:, chosen], unit)
    return found
