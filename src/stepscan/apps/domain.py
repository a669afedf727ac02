"""What stepscan knows about a kind of data: the shape of its model, its metrics, its baselines."""

import abc
import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

from stepscan.data.base import Dataset, Packed
from stepscan.data.stored import Stored
from stepscan.data.views import shortened, spread
from stepscan.models import Config, ModelConfig, SequenceModel
from stepscan.models.heads import HeadConfig
from stepscan.train.config import TrainConfig
from stepscan.train.loop import Objective, say_next

Scores = dict[str, float]
JUDGED = 200_000  # steps of a part on disk that scores and simple methods read


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

    def training(self, **more: Any) -> TrainConfig:
        """How a model is trained by this recipe; `more` has the budget, the seed and the like."""
        return TrainConfig(
            rows=self.rows,
            length=self.length,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            **more,
        )


class Domain(abc.ABC):
    """One kind of data, with a data set at hand. Subclasses are final."""

    kind: ClassVar[str]
    metrics: tuple[Metric, ...]
    """The leading one first."""
    recipe: Recipe
    look: ClassVar[int] = 20_000
    """Steps of the validation part that a look reads while training."""

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

    def calibrate(self, model: SequenceModel) -> None:  # noqa: B027 (most kinds have nothing to do)
        """Correct what a trained model says by its errors on the validation part, in place."""

    @property
    def objective(self) -> Objective:
        """What training descends."""
        return say_next

    def better(self, a: Scores, b: Scores) -> bool:
        """Whether weights with the validation scores `a` are kept rather than those with `b`."""
        name = self.metrics[0].name
        return self.metrics[0].wins(a[name], b[name])

    def about(self) -> dict[str, Any]:
        """Plain facts to keep with a model that learned from this data."""
        return {}

    def breakdown(self, models: Mapping[str, SequenceModel]) -> list[dict[str, Any]]:
        """Where the models err, as apps/report shows it; nothing, unless a kind has more to say."""
        return []

    @property
    def reach(self) -> int:
        """Steps read at once while judging, and steps that attention keeps from before them: half a
        training window each, so that it never looks farther back than it has learned to.
        """
        return max(1, self.recipe.length // 2)

    def config(self, layers: str | None = None, width: int | None = None, **options: Any) -> Config:
        """The config of a model for this data."""
        tokens, reals = self.dataset.inputs
        chosen: dict[str, Any] = {
            "head": self.head,
            "dropout": self.recipe.dropout,
            "tie": self.recipe.tie,
        }
        return ModelConfig(
            layers=self.recipe.layers if layers is None else layers,
            width=self.recipe.width if width is None else width,
            tokens=tokens,
            reals=reals,
            **(chosen | options),
        )

    def recipe_for(self, config: Config) -> Recipe:
        """The recipe, as a model of this config wants it."""
        return self.recipe

    def candidate(self, mixer: str, width: int | None = None) -> Config:
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


D = TypeVar("D", bound=Domain)


def bounded(domain: D) -> D:
    """The domain itself; or, where parts lie on disk, one that judges and compares by whole
    sequences spread evenly over each part, JUDGED steps in all, and says so.
    """
    parts = domain.dataset.parts
    large = {k: p for k, p in parts.items() if isinstance(p, Stored) and len(p) > JUDGED}
    if not large:
        return domain
    fewer = {name: spread(packed, JUDGED) for name, packed in large.items()}
    counts = ", ".join(f"{len(fewer[k]):,} of {len(p):,} of {k}" for k, p in large.items())
    note = f"judged and compared with simple methods by evenly spread whole sequences: {counts}"
    judged = copy.copy(domain)
    judged.dataset = dataclasses.replace(
        domain.dataset, parts=parts | fewer, findings=(*domain.dataset.findings, note)
    )
    return judged


def with_options(recipe: Recipe, **options: Any) -> Recipe:
    """The recipe with what the user asked for; None asks for nothing."""
    asked = {name: value for name, value in options.items() if value is not None}
    return dataclasses.replace(recipe, **asked)
