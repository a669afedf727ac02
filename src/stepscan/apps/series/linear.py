"""Linear models of series where a mixer may be named: `--layers dlinear`."""

from dataclasses import replace

from stepscan.apps.domain import Recipe
from stepscan.data.series import SeriesSchema
from stepscan.models import LinearSeriesConfig
from stepscan.models.heads import Forecast
from stepscan.models.linear_series import MAPS
from stepscan.models.pattern import parse_with

SMALLEST, LARGEST = 25, 1024  # of the window, unless told otherwise
RATE = 2e-3  # peak learning rate


def linear_config(
    layers: str, *, head: Forecast, schema: SeriesSchema, longest: int
) -> LinearSeriesConfig | None:
    """The config that a pattern such as "dlinear[window=336]" means; None if it names mixers.

    Args:
        layers: The pattern.
        head: What the model is to say.
        schema: Of the data.
        longest: Steps of the longest series to learn from.

    Raises:
        ValueError: a linear model among other layers, or an option it does not have.
    """
    if not names_linear(layers):
        return None
    words = parse_with(dict, layers)
    named = [word for word in words if word["name"] in MAPS]
    if len(words) > 1:
        raise ValueError(
            f"layers {layers!r}: {named[0]['name']} is a whole model, not a layer; name it alone"
        )
    season = max(schema.season, schema.horizon)
    window = max(SMALLEST, min(2 * season, LARGEST, longest // 3))
    return LinearSeriesConfig.from_dict(
        {
            "reals": schema.reals,
            "window": window,
            "head": {"name": Forecast.name} | vars(replace(head, measured="level")),
            **named[0],
        }
    )


def names_linear(layers: str) -> bool:
    """Whether a pattern names a linear model."""
    return any(word["name"] in MAPS for word in parse_with(dict, layers))


def linear_recipe(config: LinearSeriesConfig, recipe: Recipe) -> Recipe:
    """Stretches long enough to fill the window and then learn from as many steps again."""
    return replace(recipe, length=max(recipe.length, 2 * config.window), learning_rate=RATE)
