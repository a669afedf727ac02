"""Sequences with one label each: which class, which number, or which text."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from stepscan.apps.domain import Domain, Metric, Recipe, Scores, with_options
from stepscan.apps.labelled import examples, metrics
from stepscan.apps.labelled.baselines import linear_classes, linear_numbers, statistics
from stepscan.apps.labelled.calibration import cool, temperature
from stepscan.apps.labelled.outputs import all_outputs, last_outputs
from stepscan.apps.labelled.texts import spelled, written
from stepscan.data.base import Batch, DataError, Dataset, Packed
from stepscan.data.labelled import LabelledSchema
from stepscan.data.patches import first_samples, unfold
from stepscan.data.views import spread
from stepscan.models import Classify, Ctc, Regress, SequenceModel
from stepscan.models.heads import HeadConfig
from stepscan.train.augment import Augment, parse
from stepscan.train.loop import Objective, say_next
from stepscan.train.objectives import Loss

LONGEST = 4096  # steps of a training window
STEPS = 8192  # of a training batch, where sequences are that long
MIDDLE = 60  # training texts among which the middle one is looked for
FEWEST = {"valid": 64, "test": 200}  # sequences of a quick look, however long they are


class Labelled(Domain):
    """Labelled sequences."""

    kind: ClassVar[str] = "labelled"
    metrics: tuple[Metric, ...] = metrics.CLASS_METRICS
    recipe: Recipe = Recipe(
        layers="gated_delta_net*2", width=64, learning_rate=3e-3, dropout=0.1, tie=False
    )

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self.metrics = {
            "class": metrics.CLASS_METRICS,
            "number": metrics.NUMBER_METRICS,
            "text": metrics.TEXT_METRICS,
        }[self.schema.answer]
        self._augment = parse(self.schema.augment)
        if self._augment is not None and not self.schema.channels:
            raise DataError("augment: disturbs channels of numbers, and there are none")
        length = min(self.schema.longest, LONGEST)
        rows = max(4, min(32, STEPS // length))
        self.recipe = with_options(self.recipe, rows=rows, length=length)

    @property
    def schema(self) -> LabelledSchema:
        """Channels and labels."""
        assert isinstance(self.dataset.schema, LabelledSchema)
        return self.dataset.schema

    @property
    def head(self) -> HeadConfig:
        """Logits of the classes or of symbols, or the number."""
        schema = self.schema
        if schema.answer == "text":
            return Ctc(symbols=len(schema.classes))
        if schema.answer == "number":
            return Regress(outputs=1)
        weights: tuple[float, ...] = ()
        if schema.weights == "balanced":  # n / (K n_k): the mean over sequences is 1
            mean = sum(schema.counts) / len(schema.counts)
            weights = tuple(mean / n for n in schema.counts)
        classes = len(schema.classes)
        return Classify(classes=classes, weights=weights, smoothing=schema.smoothing)

    @property
    def objective(self) -> Objective:
        """What the head asks, of channels that are disturbed if the data options say so."""
        augment, channels, patch = self._augment, len(self.schema.channels), self.schema.patch
        if augment is None:
            return say_next

        def disturbed(model: SequenceModel, batch: Batch, state: Any) -> tuple[Loss, Any]:
            return say_next(model, _with_channels(batch, augment, channels, patch), state)

        return disturbed

    def better(self, a: Scores, b: Scores) -> bool:
        """By accuracy, and where few validation sequences leave that equal, by log loss."""
        if self.schema.answer != "class" or a["accuracy"] != b["accuracy"]:
            return super().better(a, b)
        return a["log loss"] < b["log loss"]

    def score(self, model: SequenceModel, part: str = "test", most: int | None = None) -> Scores:
        """Every metric; sequences are read whole, a quick look reads fewer of them."""
        packed = self.part(part, most)
        if self.schema.answer == "text":
            said = [spelled(self.schema, x) for x in all_outputs(model, packed)]
            return metrics.text_scores(said, written(self.schema, packed))
        outputs = last_outputs(model, packed)
        if self.schema.answer == "number":
            return metrics.number_scores(
                self._real(outputs[:, 0]), self._real(_asked(packed)[:, 0])
            )
        return metrics.class_scores(chances(outputs), _asked(packed).numpy())

    def part(self, name: str, most: int | None = None) -> Packed:
        """A part of the data, or whole sequences evenly spread over it."""
        packed = self.dataset.parts[name]
        if most is None:
            return packed
        mean = len(packed) // len(packed.begins)
        return spread(packed, max(most, FEWEST.get(name, 0) * mean))

    def calibrate(self, model: SequenceModel) -> None:
        """Temperature scaling of the probabilities of classes by the validation part."""
        if self.schema.answer == "class":
            packed = self.dataset.parts["valid"]
            cool(model, temperature(last_outputs(model, packed), _asked(packed)))

    def baselines(self, most: int | None = None) -> Iterator[tuple[str, Scores]]:
        """The commonest class or the mean number, and a linear model of simple statistics; of
        texts, the empty one and the one that is nearest to all others in training.
        """
        if self.schema.answer == "text":
            real = written(self.schema, self.part("test", most))
            for name, text in (("nothing", ""), ("middle text", self._middle_text())):
                yield name, metrics.text_scores([text] * len(real), real)
            return
        parts = {"train": self.part("train"), "valid": self.part("valid")}
        parts["test"] = self.part("test", most)
        wanted = {part: _asked(packed) for part, packed in parts.items()}
        longest = self.schema.longest
        same = all(bool((p.lengths == longest).all()) for p in parts.values())
        vocabularies, patch = self.schema.tokens, self.schema.patch
        x = {k: statistics(p, longest * same, vocabularies, patch) for k, p in parts.items()}
        if self.schema.answer == "number":
            y = {part: values[:, 0].double() for part, values in wanted.items()}
            real, mean = self._real(y["test"]), float(y["train"].mean())
            yield "mean", metrics.number_scores(self._real(torch.full_like(y["test"], mean)), real)
            yield "linear", metrics.number_scores(self._real_np(linear_numbers(x, y)), real)
            return
        label = wanted["test"].numpy()
        counts = np.array(self.schema.counts)
        frequent = np.tile(counts / counts.sum(), (len(label), 1))
        yield "most frequent", metrics.class_scores(frequent, label)
        said = linear_classes(x, wanted, len(counts))
        yield "linear", metrics.class_scores(said, label)

    def examples(self, models: Mapping[str, SequenceModel]) -> list[dict[str, Any]]:
        """Who was taken for whom, class by class, and how far probabilities can be trusted."""
        packed = self.dataset.parts["test"]
        if self.schema.answer == "text":
            some = spread(packed, examples.SHOWN * len(packed) // len(packed.begins))
            texts = {
                name: [spelled(self.schema, x) for x in all_outputs(model, some)]
                for name, model in models.items()
            }
            return examples.of_texts(texts, written(self.schema, some))
        said = {name: last_outputs(model, packed) for name, model in models.items()}
        if self.schema.answer == "number":
            real = self._real(_asked(packed)[:, 0])
            numbers = {name: self._real(outputs[:, 0]) for name, outputs in said.items()}
            return examples.of_numbers(numbers, real)
        found = {name: chances(outputs) for name, outputs in said.items()}
        return examples.of_classes(found, _asked(packed).numpy(), self.schema.classes)

    def _middle_text(self) -> str:
        """Of the first training texts, the one with the fewest changes to the others."""
        texts = written(self.schema, self.dataset.parts["train"])[:MIDDLE]
        return min(texts, key=lambda a: sum(metrics.edit_distance(a, b) for b in texts))

    def _real(self, scaled: Tensor) -> np.ndarray:
        return self._real_np(scaled.double().numpy())

    def _real_np(self, scaled: np.ndarray) -> np.ndarray:
        return scaled * self.schema.spread + self.schema.middle


def chances(logits: Tensor) -> np.ndarray:
    """Probabilities in float64."""
    return logits.double().softmax(-1).numpy()


def _with_channels(batch: Batch, augment: Augment, channels: int, patch: int) -> Batch:
    """Channels disturbed sample by sample, flags as they are."""
    assert batch.reals is not None
    samples = unfold(batch.reals, patch)
    values = augment(samples[..., :channels], first_samples(batch.resets, patch))
    disturbed = torch.cat([values, samples[..., channels:]], -1)
    return batch._replace(reals=disturbed.reshape(batch.reals.shape))


def _asked(packed: Packed) -> Tensor:
    """The label of each sequence: what is asked at its last step."""
    targets = packed.targets_at(packed.begins + packed.lengths - 1)
    return targets["label"] if "label" in targets else targets["value"]
