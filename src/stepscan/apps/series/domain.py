"""Series: quantiles of the next values, judged from rolling origins in real units."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan.apps.baselines import series as simple
from stepscan.apps.domain import Domain, Metric, Recipe, Scores
from stepscan.data.batches import places
from stepscan.data.panel import SeriesPacked
from stepscan.data.series import SeriesSchema
from stepscan.models import Forecast, SequenceModel
from stepscan.models.heads import HeadConfig
from stepscan.train.evaluate import walk_outputs

LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
ROWS = 32  # series read side by side


class Series(Domain):
    """One series or many, one model for all."""

    kind: ClassVar[str] = "series"
    metrics: tuple[Metric, ...] = (
        Metric(
            "MASE",
            "lower",
            "Mean absolute error of the median forecast, divided by the mean absolute error of "
            "the seasonal naive forecast within the training part; per series, then averaged. "
            "Origins are a horizon apart and cover the held-out part once.",
        ),
        Metric(
            "CRPS",
            "lower",
            f"Twice the pinball loss averaged over the quantiles {', '.join(map(str, LEVELS))}, "
            "divided by the same number as MASE: approximates the scaled continuous ranked "
            "probability score.",
        ),
        Metric(
            "coverage gap",
            "lower",
            "Distance from 0.8 of the share of values between the 0.1 and the 0.9 quantile.",
        ),
    )
    recipe: Recipe = Recipe(
        layers="gated_delta_net*2",
        width=64,
        rows=4,
        length=256,
        learning_rate=3e-3,
        dropout=0.2,
    )

    @property
    def schema(self) -> SeriesSchema:
        """Grid, season, scales."""
        assert isinstance(self.dataset.schema, SeriesSchema)
        return self.dataset.schema

    @property
    def head(self) -> HeadConfig:
        """Quantiles over the horizon."""
        return Forecast(horizon=self.schema.horizon, quantiles=LEVELS)

    def packed(self, part: str) -> SeriesPacked:
        """A part, with what series know besides."""
        packed = self.dataset.parts[part]
        assert isinstance(packed, SeriesPacked)
        return packed

    def score(self, model: SequenceModel, part: str = "test", most: int | None = None) -> Scores:
        """From all origins of a part; a part is a tail already, so a quick look reads it all."""
        packed = self.packed(part)
        origins = packed.origins()
        return self._judge(packed, origins, self.forecast(model, packed, origins))

    def forecast(
        self, model: SequenceModel, packed: SeriesPacked, at: Int[Tensor, " M"]
    ) -> Float[Tensor, "M H Q"]:
        """Quantiles in real units from these positions."""
        return forecast(model, self.schema, packed, at, reach=self.reach)

    def baselines(self, most: int | None = None) -> Iterator[tuple[str, Scores]]:
        """Each is a point forecast, with the quantiles of its own errors on the validation part."""
        valid, test = self.packed("valid"), self.packed("test")
        linear = simple.fit_dlinear(self.packed("train"), valid)
        methods = {
            "seasonal naive": simple.seasonal_naive,
            "last value": simple.last_value,
            "DLinear": linear.forecast,
        }
        if not self.schema.season:
            del methods["seasonal naive"]
        origins = test.origins()
        for name, method in methods.items():
            seen = valid.origins(max(1, self.schema.horizon // 4))
            scale = valid.scale_at(seen)[:, None]
            errors = (valid.actual_at(seen) - method(valid, seen)) / scale
            middle = method(test, origins)
            quantiles = simple.spread_quantiles(middle, test.scale_at(origins), errors, LEVELS)
            quantiles[..., LEVELS.index(0.5)] = middle
            yield name, self._judge(test, origins, quantiles.sort(-1).values)

    def examples(self, models: Mapping[str, SequenceModel]) -> list[dict[str, Any]]:
        """The last whole horizon of the held-out part."""
        packed = self.packed("test")
        origins = packed.origins()
        whole = origins[~packed.actual_at(origins).isnan().any(1)]
        if not len(whole):
            return []
        at = whole[-1:]
        place = int(packed.steps[at])
        begin = int(packed.panel.begin[packed.series_at(at)])
        history = packed.panel.y[max(begin, place + 1 - 3 * self.schema.horizon) : place + 1]
        stamps = packed.panel.stamps[max(begin, place + 1 - 3 * self.schema.horizon) : place + 1]
        name = packed.names[int(packed.series_at(at))]
        said = {who: self.forecast(model, packed, at)[0] for who, model in models.items()}
        shown = [
            {
                "from": who,
                "quantiles": {
                    str(level): table[:, LEVELS.index(level)].tolist() for level in (0.1, 0.5, 0.9)
                },
            }
            for who, table in said.items()
        ]
        return [
            {
                "type": "forecast",
                "title": f"The last held-out horizon{f' of {name}' if name else ''}",
                "unit": "",
                "times": [
                    *labels_of(stamps, self.schema),
                    *self.schema.times_ahead(int(stamps[-1])),
                ],
                "history": [None if math.isnan(v) else v for v in history.tolist()],
                "actual": packed.actual_at(at)[0].tolist(),
                "forecasts": shown,
            }
        ]

    def _judge(
        self, packed: SeriesPacked, at: Int[Tensor, " M"], quantiles: Float[Tensor, "M H Q"]
    ) -> Scores:
        actual = packed.actual_at(at)
        asked = ~actual.isnan()
        series = packed.series_at(at)[:, None].expand_as(actual)[asked]
        naive = torch.tensor(self.schema.naive, dtype=torch.float64)
        error = (actual[..., None] - quantiles.double())[asked]
        level = torch.tensor(LEVELS, dtype=torch.float64)
        pinball = torch.maximum(level * error, (level - 1) * error).mean(-1)
        inside = (error[:, LEVELS.index(0.1)] >= 0) & (error[:, LEVELS.index(0.9)] <= 0)
        count = torch.zeros(len(naive), dtype=torch.float64).index_add(
            0, series, torch.ones_like(pinball)
        )

        def per_series(values: Tensor) -> float:
            sums = torch.zeros_like(naive).index_add(0, series, values)
            return float((sums / count / naive)[count > 0].mean())

        return {
            "MASE": per_series(error[:, LEVELS.index(0.5)].abs()),
            "CRPS": per_series(2 * pinball),
            "coverage gap": abs(float(inside.double().mean()) - 0.8),
        }


def labels_of(stamps: Int[Tensor, " N"], schema: SeriesSchema) -> list[str]:
    """Times for people; where steps are only counted, their distance from the last one."""
    if not (schema.calendar and (schema.step or schema.months)):
        return [str(i - len(stamps) + 1) for i in range(len(stamps))]
    fine = "D" if schema.months or schema.frequency.per_day <= 1 else "s"
    moments = stamps.numpy().astype("datetime64[ns]").astype(f"datetime64[{fine}]")
    return [str(moment).replace("T", " ") for moment in moments]


def forecast(
    model: SequenceModel,
    schema: SeriesSchema,
    packed: SeriesPacked,
    at: Int[Tensor, " M"],
    *,
    reach: int,
) -> Float[Tensor, "M H Q"]:
    """Quantiles in real units from these positions, the model reading every step once; see
    `Domain.reach`.
    """
    wanted = torch.full((len(packed),), -1)
    wanted[at] = torch.arange(len(at))
    found: list[Tensor] = []
    order: list[Tensor] = []
    walked = walk_outputs(model, packed, rows=ROWS, length=reach, slots=reach)
    for place, (_, said) in zip(places(packed, rows=ROWS, length=reach), walked, strict=True):
        row = torch.where(place >= 0, wanted[place.clamp(min=0)], -1)
        found.append(said[row >= 0])
        order.append(row[row >= 0])
    outputs = torch.cat(found)[torch.cat(order).argsort()]
    return schema.decode(outputs.double(), packed.base_at(at), packed.scale_at(at))
