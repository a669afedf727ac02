"""The config of a whole model: frozen, plain values, the same in Python and in config.json."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stepscan import mixers
from stepscan.mixers import MixerConfig
from stepscan.models import heads
from stepscan.models.heads import HeadConfig
from stepscan.models.pattern import MOST, parse
from stepscan.names import lookup

LARGEST = 1 << 24  # of any size in a config: a file from elsewhere must not ask for the moon


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model from inputs to head. `layers` is a pattern or a tuple of mixer configs."""

    head: HeadConfig
    """What the model says after every step."""
    layers: str | tuple[MixerConfig, ...] = "(gated_delta_net*3 attention)*1"
    """Lowest layer first; a pattern is read once, here, and kept as configs."""
    width: int = 128
    """Model width D."""
    tokens: tuple[int, ...] = ()
    """Vocabulary size of each categorical input column."""
    reals: int = 0
    """Number of real input columns."""
    mlp_ratio: float = 2.0
    """Hidden width of the SwiGLU channel mixers, as a multiple of D; 0 leaves them out."""
    dropout: float = 0.0
    """Probability of dropping a channel of a block's output while training."""
    tie: bool = True
    """Share the input embedding with the output map where their vocabularies are the same."""

    def __post_init__(self) -> None:
        """Read the pattern, tell each mixer its depth, and reject what cannot be built."""
        layers = parse(self.layers) if isinstance(self.layers, str) else tuple(self.layers)
        if not 1 <= len(layers) <= MOST:
            raise ValueError(f"model: want 1 to {MOST} layers, got {len(layers)}")
        placed = (_placed(config, i, len(layers)) for i, config in enumerate(layers))
        object.__setattr__(self, "layers", tuple(placed))
        if not self.tokens and not self.reals:
            raise ValueError("model: want at least one input column (tokens or reals), got none")
        sizes = {"width": self.width, **{f"tokens[{i}]": n for i, n in enumerate(self.tokens)}}
        for name, size in sizes.items():
            if not isinstance(size, int) or not 1 <= size <= LARGEST:
                raise ValueError(f"model: want {name} from 1 to {LARGEST:,}, got {size!r}")
        if not isinstance(self.reals, int) or not 0 <= self.reals <= LARGEST:
            raise ValueError(f"model: want reals from 0 to {LARGEST:,}, got {self.reals!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model: want 0 <= dropout < 1, got {self.dropout}")
        if not 0 <= self.mlp_ratio <= 64:
            raise ValueError(f"model: want 0 <= mlp_ratio <= 64, got {self.mlp_ratio}")

    @property
    def mixers(self) -> tuple[MixerConfig, ...]:
        """`layers`, after the pattern was read."""
        assert not isinstance(self.layers, str)
        return self.layers

    def to_dict(self) -> dict[str, Any]:
        """Plain data with every option spelled out, so that later defaults cannot change a file."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        layers = [mixers.to_dict(c) for c in self.mixers]
        return data | {
            "head": heads.to_dict(self.head),
            "layers": layers,
            "tokens": list(self.tokens),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ModelConfig":
        """The inverse of `to_dict`; unknown keys, names and impossible sizes are errors."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        for key in data:
            lookup(known, key, kind="field of ModelConfig")
        _bounded(data, "config")
        layers = data.get("layers", ())
        if not isinstance(layers, str):
            layers = tuple(mixers.from_dict(layer) for layer in layers)
        return cls(
            **dict(data)
            | {"head": heads.from_dict(data.get("head", {})), "layers": layers}
            | {"tokens": tuple(data.get("tokens", ()))}
        )


def _placed(config: MixerConfig, layer: int, layers: int) -> MixerConfig:
    """A mixer whose initial values depend on depth has these two fields: fill them in."""
    options = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    changed: dict[str, Any] = {
        name: _placed(value, layer, layers)
        for name, value in options.items()
        if isinstance(value, MixerConfig)
    }
    if {"layer", "layers"} <= options.keys():
        changed |= {"layer": layer, "layers": layers}
    return dataclasses.replace(config, **changed) if changed else config


def _bounded(data: object, where: str) -> None:
    if isinstance(data, Mapping):
        for key, value in data.items():
            _bounded(value, f"{where}.{key}")
    elif isinstance(data, list | tuple):
        if len(data) > LARGEST:
            raise ValueError(f"{where}: {len(data):,} entries are too many")
        for i, value in enumerate(data):
            _bounded(value, f"{where}[{i}]")
    elif isinstance(data, int | float) and not -LARGEST <= data <= LARGEST:
        raise ValueError(f"{where}: want a number up to {LARGEST:,}, got {data!r}")
