"""Series: quantiles of the next values, judged from rolling origins in real units."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan.apps.baselines import ets
from stepscan.apps.baselines import series as simple
from stepscan.apps.domain import Domain, Metric, Recipe, Scores
from stepscan.apps.series.breakdown import breakdown
from stepscan.apps.series.calibration import calibrate
from stepscan.apps.series.linear import linear_config, linear_recipe, names_linear
from stepscan.data.batches import places
from stepscan.data.panel import SeriesPacked
from stepscan.data.series import SeriesSchema
from stepscan.models import Config, Forecast, LinearSeriesConfig, SequenceModel
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
    def head(self) -> Forecast:
        """Quantiles over the horizon."""
        return Forecast(horizon=self.schema.horizon, quantiles=LEVELS, calibrated=True)

    def config(self, layers: str | None = None, width: int | None = None, **options: Any) -> Config:
        """Also of a linear model, named where a mixer would be: see `linear`."""
        longest = int(self.packed("train").lengths.max())
        linear = linear_config(
            layers or self.recipe.layers, head=self.head, schema=self.schema, longest=longest
        )
        return linear or super().config(layers, width, **options)

    def recipe_for(self, config: Config) -> Recipe:
        """Linear models want long stretches."""
        linear = isinstance(config, LinearSeriesConfig)
        return linear_recipe(config, self.recipe) if linear else self.recipe

    def pattern(self, layers: str) -> str:
        """A linear model is not repeated."""
        return layers if names_linear(layers) else super().pattern(layers)

    def calibrate(self, model: SequenceModel) -> None:
        """Bands as wide as the errors on the validation part ask for, see `calibration`."""
        valid = self.packed("valid")
        at = valid.origins(max(1, self.schema.horizon // 4))
        calibrate(
            model, valid.actual_at(at), valid.scale_at(at), lambda: self.forecast(model, valid, at)
        )

    def packed(self, part: str) -> SeriesPacked:
        """A part, with what series know besides."""
        packed = self.dataset.parts[part]
        assert isinstance(packed, SeriesPacked)
        return packed

    def score(self, model: SequenceModel, part: str = "test", most: int | None = None) -> Scores:
        """From all origins of a part; a part is a tail already, so a quick look reads it all."""
        packed = self.packed(part)
        origins = packed.origins()
        return self.judge(packed, origins, self.forecast(model, packed, origins))

    def forecast(
        self, model: SequenceModel, packed: SeriesPacked, at: Int[Tensor, " M"]
    ) -> Float[Tensor, "M H Q"]:
        """Quantiles in real units from these positions."""
        return forecast(model, self.schema, packed, at, reach=self.reach)

    def baselines(self, most: int | None = None) -> Iterator[tuple[str, Scores]]:
        """Point forecasts with the quantiles of their own errors on the validation part; ETS."""
        valid, test = self.packed("valid"), self.packed("test")
        origins = test.origins()
        for name, method in simple.simple_methods(self.packed("train"), valid, LEVELS):
            yield name, self.judge(test, origins, method(test, origins))
        if ets.installed():
            some = ets.spread_evenly(test, origins, ets.FITS)
            of, whole = (len(test.series_at(x).unique()) for x in (some, origins))
            name = "ETS" if of == whole else f"ETS ({of} of {whole} series)"
            yield name, self.judge(test, some, ets.ets_quantiles(test, some, LEVELS))

    def about(self) -> dict[str, Any]:
        """Up to which time the weights were chosen, so that a backtest can tell what is new."""
        schema, test = self.schema, self.packed("test")
        if not schema.calendar or not (schema.step or schema.months):
            return {}  # every series has its own end
        cut = torch.from_numpy(test.asked_from)
        return {"seen_until": int(test.panel.stamps[cut[cut > test.panel.begin] - 1].max())}

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

    def breakdown(self, models: Mapping[str, SequenceModel]) -> list[dict[str, Any]]:
        """By how far ahead, and by series."""
        return breakdown(self, models)

    def judge(
        self, packed: SeriesPacked, at: Int[Tensor, " M"], quantiles: Float[Tensor, "M H Q"]
    ) -> Scores:
        """The metrics of forecasts from these positions, in real units."""
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
    measured = getattr(model.config.head, "measured", "base")
    return schema.decode(outputs.double(), *packed.origin_at(at, measured))
