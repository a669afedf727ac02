"""What stepscan knows about a kind of data: the shape of its model, its metrics, its baselines."""

import abc
import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from stepscan.data.base import Dataset, Packed
from stepscan.data.views import shortened
from stepscan.models import ModelConfig, SequenceModel
from stepscan.models.heads import HeadConfig

Scores = dict[str, float]


class Metric(NamedTuple):
    """A figure that candidates are compared by."""

    name: str
    better: str
    """lower or higher."""
    definition: str
    """Exactly what is computed, in one or two sentences."""
    unit: str = ""

    def wins(self, a: float, b: float) -> bool:
        """Whether `a` is better than `b`."""
        return a < b if self.better == "lower" else a > b


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Defaults of a kind of data: found by trying, see docs/log.md."""

    layers: str = "(gated_delta_net*3 attention)*1"
    """Layer pattern of `fit`."""
    width: int = 128
    """Model width D."""
    rows: int = 16
    """Sequences per batch."""
    length: int = 256
    """Steps per training window."""
    learning_rate: float = 2e-3
    """Peak of the schedule."""
    weight_decay: float = 0.1
    """Of matrices."""
    dropout: float = 0.0
    """Of block outputs."""
    tie: bool = True
    """Share the input embedding with the output map."""
    depth: int = 2
    """Layers of a candidate in `compare`: its mixer, so many times."""


class Domain(abc.ABC):
    """One kind of data, with a data set at hand. Subclasses are final."""

    kind: ClassVar[str]
    metrics: tuple[Metric, ...]
    """The leading one first."""
    recipe: Recipe

    def __init__(self, dataset: Dataset) -> None:
        assert dataset.kind == self.kind
        self.dataset = dataset

    @property
    @abc.abstractmethod
    def head(self) -> HeadConfig:
        """What a model of this data says after every step."""

    @abc.abstractmethod
    def score(self, model: SequenceModel, part: str = "test", most: int | None = None) -> Scores:
        """Every metric on a part of the data; `most` bounds the steps read, for a quick look."""

    @abc.abstractmethod
    def baselines(self, most: int | None = None) -> Iterator[tuple[str, Scores]]:
        """The field's own simple methods, scored on the same test part."""

    @abc.abstractmethod
    def examples(self, models: Mapping[str, SequenceModel]) -> list[dict[str, Any]]:
        """What the models say about some held-out data, as apps/report shows it."""

    @property
    def reach(self) -> int:
        """Steps read at once while judging, and steps that attention keeps from before them: half a
        training window each, so that it never looks farther back than it has learned to.
        """
        return max(1, self.recipe.length // 2)

    def config(
        self, layers: str | None = None, width: int | None = None, **options: Any
    ) -> ModelConfig:
        """The config of a model for this data."""
        tokens, reals = self.dataset.inputs
        chosen: dict[str, Any] = {"dropout": self.recipe.dropout, "tie": self.recipe.tie}
        return ModelConfig(
            head=self.head,
            layers=self.recipe.layers if layers is None else layers,
            width=self.recipe.width if width is None else width,
            tokens=tokens,
            reals=reals,
            **(chosen | options),
        )

    def candidate(self, mixer: str, width: int | None = None) -> ModelConfig:
        """The config that `compare` gives to a mixer, or to a layer pattern."""
        return self.config(self.pattern(mixer), width)

    def pattern(self, layers: str) -> str:
        """A mixer alone is repeated as often as the recipe says; a pattern is taken as it is."""
        alone = re.fullmatch(r"\w+(\[[^\]]*\])?", layers.strip())
        return f"({layers})*{self.recipe.depth}" if alone else layers

    def part(self, name: str, most: int | None = None) -> Packed:
        """A part of the data, or the beginnings of its sequences, `most` steps in all."""
        packed = self.dataset.parts[name]
        return packed if most is None else shortened(packed, most)


def with_options(recipe: Recipe, **options: Any) -> Recipe:
    """The recipe with what the user asked for; None asks for nothing."""
    asked = {name: value for name, value in options.items() if value is not None}
    return dataclasses.replace(recipe, **asked)
