"""What a format is: a reading of the config, and a source for every tensor."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepscan.models.config import LARGEST, ModelConfig

CONFIG = "config.json"
LARGEST_CONFIG = 1 << 20  # bytes


class CheckpointError(ValueError):
    """A checkpoint that cannot be imported; one line names the file and the reason."""


class Settings:
    """The config.json of a checkpoint, asked for one value at a time."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    @classmethod
    def read(cls, folder: Path) -> "Settings":
        """The config of a folder."""
        path = folder / CONFIG
        if not path.is_file():
            raise CheckpointError(f"{folder}: want a checkpoint folder with {CONFIG}, found none")
        if path.stat().st_size > LARGEST_CONFIG:
            raise CheckpointError(f"{path}: larger than {LARGEST_CONFIG >> 20} MB")
        try:
            values = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: not JSON ({error}); was it cut off?") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: want a JSON object, got {values!r:.40}")
        return cls(values, str(path))

    def error(self, said: str) -> CheckpointError:
        """An error that names the file."""
        return CheckpointError(f"{self.where}: {said}")

    def given(self, key: str) -> bool:
        """Whether there is such a value, other than null."""
        return self.values.get(key) is not None

    def whole(self, key: str, default: int | None = None) -> int:
        """A size: a whole number from 1."""
        value = self.values[key] if self.given(key) else default
        if type(value) is not int or not 1 <= value <= LARGEST:
            raise self.error(f"want {key} a whole number from 1 to {LARGEST:,}, got {value!r:.40}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number of a size that a model folder may hold."""
        value = self.values[key] if self.given(key) else default
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not abs(value) <= LARGEST:  # not: NaN is neither
            raise self.error(f"want {key} a number up to {LARGEST:,}, got {value!r:.40}")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self.values[key] if self.given(key) else default
        if type(value) is not bool:
            raise self.error(f"want {key} true or false, got {value!r:.40}")
        return value

    def only(self, key: str, *wanted: object) -> None:
        """Refuse values that would change what the model computes; the first is the default."""
        value = self.values.get(key, wanted[0])
        if value not in wanted:
            known = " or ".join(map(repr, wanted))
            raise self.error(f"{key} {value!r:.60} is not imported, only {known}")

    def part(self, key: str) -> "Settings":
        """A group of values inside of this one; empty if it is not there."""
        value = self.values.get(key) or {}
        if not isinstance(value, dict):
            raise self.error(f"want {key} a JSON object, got {value!r:.40}")
        return Settings(value, f"{self.where}: {key}")

    def inside(self, key: str) -> "Settings":
        """A group that holds the model's config, and what it leaves to the config around it."""
        inner = {k: v for k, v in self.part(key).values.items() if v is not None}
        return Settings({**self.values, **inner}, f"{self.where}: {key}")


@dataclass(frozen=True)
class Source:
    """One of our tensors, made from tensors of the checkpoint. `make` also works on sizes alone."""

    names: tuple[str, ...]
    make: Callable[..., Tensor]

    def at(self, layer: int) -> "Source":
        """With the number of a layer for each "{i}" in its names."""
        return replace(self, names=tuple(name.replace("{i}", str(layer)) for name in self.names))


def same(name: str) -> Source:
    """The tensor as it is."""
    return Source((name,), lambda x: x)


def stacked(*names: str) -> Source:
    """Maps of the same input side by side: their rows, in this order."""
    return Source(names, lambda *parts: torch.cat(parts))


def window(name: str) -> Source:
    """The weight [D 1 W] of a depthwise `nn.Conv1d`, as [D W]."""
    return Source((name,), lambda x: x.squeeze(1))


def from_one(name: str) -> Source:
    """The weight of a norm that is kept as its distance from 1."""
    return Source((name,), lambda x: 1 + x)


Sources = Mapping[str, str | Source]
"""Where tensors of ours come from; a name alone is `same(name)`."""


def each(layers: Iterable[int], sources: Sources) -> dict[str, Source]:
    """`sources` for each of these layers, its number in place of "{i}" in all names."""
    return {
        ours.replace("{i}", str(layer)): _source(theirs).at(layer)
        for layer in layers
        for ours, theirs in sources.items()
    }


def _source(theirs: str | Source) -> Source:
    return same(theirs) if isinstance(theirs, str) else theirs


@dataclass(frozen=True, kw_only=True)
class Format:
    """A family of checkpoints.

    `embedding` and `output` name the two maps between tokens and the stream: ours are tied where
    the config has `tie` true, and then a second copy of the weight is welcome if it is equal.
    """

    config: Callable[[Settings], ModelConfig]
    """Our config; raises what `Settings` raises where values are missing or mean other models."""
    sources: Callable[[Settings], Sources]
    """For every tensor of the model. More than the model has is fine: so a table may list biases
    that only some checkpoints have."""
    embedding: str
    output: str = "lm_head.weight"
    unused: str | None = None
    """A regular expression of tensors in old checkpoints that can be worked out from the config."""
    inside: str | None = None
    """The group of the config that is about language, in models that also see."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Parts of names that some checkpoints have, and what others, and the sources, say there."""

    def all_sources(self, settings: Settings) -> dict[str, Source]:
        """By our names."""
        sources = {"embed.tables.0.weight": self.embedding, "head.map.weight": self.output}
        return {k: _source(v) for k, v in (sources | dict(self.sources(settings))).items()}
