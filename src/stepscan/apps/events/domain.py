"""Events: what happens next in a case, and when."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stepscan.apps.baselines.markov import Markov
from stepscan.apps.domain import Domain, Metric, Recipe, Scores
from stepscan.apps.ranking import best, without
from stepscan.data.base import Dataset, Packed
from stepscan.data.events import EventSchema
from stepscan.models import Inputs, NextEvent, SequenceModel
from stepscan.models.heads import HeadConfig
from stepscan.train.evaluate import walk_outputs

SHOWN = 6  # events in the examples


class Events(Domain):
    """Cases of timed events."""

    kind: ClassVar[str] = "events"
    metrics: tuple[Metric, ...] = (
        Metric(
            "accuracy",
            "higher",
            "Share of held-out events whose activity was the likeliest in the prediction made "
            "right after the event before, in cases never trained on; first events are not asked.",
        ),
        Metric("top 3", "higher", "The same, counted right among the three likeliest."),
        Metric(
            "nats",
            "lower",
            "Minus the log probability given to the activity that came, mean (natural logarithm).",
        ),
        Metric(
            "gap error",
            "lower",
            "Mean absolute difference of the predicted median and the real time to the next event.",
            "hours",
        ),
    )
    recipe: Recipe = Recipe(
        layers="gated_delta_net*2", width=64, rows=8, length=128, learning_rate=2e-3, dropout=0.3
    )

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        if not self.schema.calendar:  # plain numbers are no hours
            metrics = (m._replace(unit="") if m.unit == "hours" else m for m in self.metrics)
            self.metrics = tuple(metrics)

    @property
    def schema(self) -> EventSchema:
        """Activities, attributes, the unit of time."""
        assert isinstance(self.dataset.schema, EventSchema)
        return self.dataset.schema

    @property
    def head(self) -> HeadConfig:
        """The next activity and the time to it."""
        return NextEvent(vocab=self.schema.tokens[0])

    def score(self, model: SequenceModel, part: str = "test", most: int | None = None) -> Scores:
        """Of every held-out event but the first of its case."""
        right, near, nats, error, count = 0, 0, 0.0, 0.0, 0
        reading = {"rows": 32, "length": self.reach, "slots": self.reach}
        for batch, said in walk_outputs(model, self.part(part, most), **reading):
            asked = batch.targets["token"] >= 0
            wanted = batch.targets["token"][asked]
            logits = said.logits[asked]
            likely = without(logits).topk(min(3, logits.shape[1] - 1)).indices
            right += int((likely[:, 0] == wanted).sum())
            near += int((likely == wanted[:, None]).sum())
            nats += float(-logits.log_softmax(-1).gather(1, wanted[:, None]).double().sum())
            gap = median_gap(said.gap[asked])
            error += float((gap - batch.targets["gap"][asked]).abs().double().sum())
            count += len(wanted)
        hours = self._hours
        return dict(
            zip(
                (m.name for m in self.metrics),
                (right / count, near / count, nats / count, hours * error / count),
                strict=True,
            )
        )

    def baselines(self, most: int | None = None) -> Iterator[tuple[str, Scores]]:
        """The most frequent activity, and that after this one; with their median gaps."""
        before, after, gaps = _transitions(self.dataset.parts["train"])
        last, wanted, real = _transitions(self.part("test", most))
        vocab = self.schema.tokens[0]
        for name, order in (("most frequent", 0), ("Markov chain", 1)):
            chain = Markov(before, after, vocab, order)
            scores = (
                chain.table(np.arange(vocab)) if order else np.tile(chain.scores(0), (vocab, 1))
            )
            probability = (scores + 0.5 / vocab) / (scores + 0.5 / vocab).sum(1, keepdims=True)
            scores[:, 0] = -np.inf
            likely = np.argsort(-scores, axis=1, kind="stable")[:, :3]
            typical = np.full(vocab, np.median(gaps))
            if order:
                for symbol in np.unique(before):
                    typical[symbol] = np.median(gaps[before == symbol])
            hit = likely[last] == wanted[:, None]
            values = (
                hit[:, 0].mean(),
                hit.any(1).mean(),
                -np.log(probability[last, wanted]).mean(),
                self._hours * np.abs(typical[last] - real).mean(),
            )
            yield name, {m.name: float(v) for m, v in zip(self.metrics, values, strict=True)}

    def examples(self, models: Mapping[str, SequenceModel]) -> list[dict[str, Any]]:
        """What each model expected at some held-out events, and what came."""
        packed = self.part("test")
        names = ("(new)", *self.schema.activities)
        assert packed.tokens is not None
        rows: list[list[Any]] = []
        cases = torch.linspace(0, len(packed.begins) - 1, SHOWN + 2).long()[1:-1]
        for case in cases.tolist():
            start, size = int(packed.begins[case]), int(packed.lengths[case])
            if size < 3:
                continue
            at = torch.arange(start, start + size - 1)[-256:]
            tokens, reals = packed.inputs_at(at)
            target = packed.targets_at(at[-1:])
            assert tokens is not None
            assert reals is not None
            row = [
                " ".join(names[i] for i in tokens[-3:, 0].tolist()),
                names[int(target["token"])],
                f"{self._hours * float(target['gap']):.1f}{self._suffix}",
            ]
            for model in models.values():
                with torch.no_grad():
                    said, _ = model(Inputs(tokens[None], reals[None]))
                chance = said.logits[0, -1].softmax(-1)
                likely = best(without(said.logits[0, -1]), 2)
                hours = self._hours * float(median_gap(said.gap[0, -1:]))
                row.append(
                    ", ".join(f"{names[i]} {chance[i]:.0%}" for i in likely)
                    + f"; {hours:.1f}{self._suffix}"
                )
            rows.append(row)
        columns = ["last three events", "came next", "after", *models]
        title = "Next events of held-out cases, with probabilities and median times"
        return [{"type": "table", "title": title, "columns": columns, "rows": rows}]

    @property
    def _suffix(self) -> str:
        return " h" if self.schema.calendar else ""

    @property
    def _hours(self) -> float:
        """Hours in a unit of time; plain numbers stay as they are."""
        return self.schema.unit / 3600 if self.schema.calendar else self.schema.unit


def median_gap(mixture: Float[Tensor, "N 3 M"]) -> Float[Tensor, " N"]:
    """The median time to the next event, in units, of `EventOutput.gap`; by halving."""
    weights, means, scales = mixture.double().unbind(-2)
    spread = scales.exp()
    low = (means - 8 * spread).amin(-1)
    high = (means + 8 * spread).amax(-1)
    for _ in range(40):
        middle = (low + high) / 2
        below = torch.special.ndtr((middle[:, None] - means) / spread)
        inside = (weights.exp() * below).sum(-1)
        low = torch.where(inside < 0.5, middle, low)
        high = torch.where(inside < 0.5, high, middle)
    return ((low + high) / 2).exp().float()


def _transitions(packed: Packed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every asked-for activity: the one before it, itself, and the time between."""
    assert packed.tokens is not None
    at = torch.arange(len(packed))
    target = packed.targets_at(at)
    asked = target["token"] >= 0
    tokens, _ = packed.inputs_at(at[asked])
    assert tokens is not None
    return tokens[:, 0].numpy(), target["token"][asked].numpy(), target["gap"][asked].numpy()
