"""Models that are not a stack of mixers: each has a config of its own, read and built here.

A config names its `family` in files; without one it is a `ModelConfig`. It offers head, tokens,
reals, width, mixers (what a list of layers shows), `to_dict`, `from_dict` and `build`, which makes
a `SequenceModel` with parts of its own.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from stepscan.models.config import ModelConfig
from stepscan.models.linear_series import LinearSeriesConfig
from stepscan.models.model import SequenceModel
from stepscan.names import lookup

Config = ModelConfig | LinearSeriesConfig

FAMILIES: Mapping[str, type[LinearSeriesConfig]] = MappingProxyType(
    {config.family: config for config in (LinearSeriesConfig,)}
)


def read_config(data: Mapping[str, Any]) -> Config:
    """The config that `to_dict` wrote; unknown families, names and keys are errors."""
    if "family" not in data:
        return ModelConfig.from_dict(data)
    return lookup(FAMILIES, str(data["family"]), kind="family of models").from_dict(data)


def build(config: Config) -> SequenceModel:
    """A new model of this config."""
    if isinstance(config, ModelConfig):
        return SequenceModel(config)
    return config.build()
