"""Answers to questions: how likely a user gets the next one right."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int

from stepscan.apps.domain import Domain, Metric, Recipe, Scores
from stepscan.apps.responses import baselines
from stepscan.data.base import Packed
from stepscan.data.responses import ResponseSchema
from stepscan.data.views import spread
from stepscan.models import Classify, Inputs, ModelConfig, SequenceModel
from stepscan.models.heads import HeadConfig
from stepscan.train.evaluate import walk_outputs

EARLY = 5
SHOWN = 6  # answers in the examples


class Responses(Domain):
    """Histories of users who answer questions."""

    kind: ClassVar[str] = "responses"
    metrics: tuple[Metric, ...] = (
        Metric(
            "AUC",
            "higher",
            "The chance that a right answer was given a higher probability than a wrong one, over "
            "all pairs of answers of users never trained on; ties count half.",
        ),
        Metric(
            f"AUC of first {EARLY}",
            "higher",
            f"The same over the first {EARLY} answers of each user alone.",
        ),
        Metric("accuracy", "higher", "Share of answers where the likelier outcome came."),
        Metric(
            "nats",
            "lower",
            "Minus the log probability given to the outcome that came, mean (natural logarithm).",
        ),
    )
    recipe: Recipe = Recipe(
        layers="gru*2",
        width=48,
        rows=32,
        length=64,
        learning_rate=4e-3,
        weight_decay=1.0,
        dropout=0.5,
        tie=False,
        depth=2,
    )

    @property
    def schema(self) -> ResponseSchema:
        """Questions and skills."""
        assert isinstance(self.dataset.schema, ResponseSchema)
        return self.dataset.schema

    @property
    def head(self) -> HeadConfig:
        """Wrong, right."""
        return Classify(classes=2)

    def config(
        self, layers: str | None = None, width: int | None = None, **options: Any
    ) -> ModelConfig:
        """The config of a model for this data, which must not read ahead: the next step tells
        whether this one was answered right."""
        config = super().config(layers, width, **options)
        assert isinstance(config, ModelConfig)
        with torch.device("meta"):
            if not SequenceModel(config).causal:
                raise ValueError(
                    "responses: a layer of this model reads both ways and sees the response it is "
                    "to judge; take causal mixers (`stepscan mixers`)"
                )
        return config

    def score(self, model: SequenceModel, part: str = "test", most: int | None = None) -> Scores:
        """Of every answer of held-out users; a quick look reads whole users, fewer."""
        packed = self._users(part, most)
        said: list[np.ndarray] = []
        came: list[np.ndarray] = []
        place: list[np.ndarray] = []
        before = torch.zeros(0, dtype=torch.long)
        reading = {"rows": 64, "length": self.reach, "slots": self.reach}
        for batch, logits in walk_outputs(model, packed, **reading):
            before, count = _places(batch.resets, before)
            asked = batch.targets["label"] >= 0
            said.append((logits[..., 1] - logits[..., 0])[asked].double().numpy())
            came.append(batch.targets["label"][asked].numpy())
            place.append(count[asked].numpy())
        return figures(*map(np.concatenate, (said, came, place)))

    def baselines(self, most: int | None = None) -> Iterator[tuple[str, Scores]]:
        """How often a question is answered right; one ability per user; counts per skill."""
        train = baselines.history_of(self.dataset.parts["train"])
        test = baselines.history_of(self._users("test", most))
        steps = np.arange(len(test.right))
        place = steps - np.maximum.accumulate(np.where(test.starts, steps, 0))
        questions, skills = self.schema.tokens[0], self.schema.tokens[1]
        for name, said in (
            ("share right", baselines.share(train, test, questions)),
            ("Rasch (IRT)", baselines.rasch(train, test, questions)),
            ("PFA", baselines.pfa(train, test, questions, skills)),
        ):
            p = said.clip(1e-9, 1 - 1e-9)
            yield name, figures(np.log(p) - np.log1p(-p), test.right, place)

    def examples(self, models: Mapping[str, SequenceModel]) -> list[dict[str, Any]]:
        """The first answers of a held-out user, and what each model gave for a right one."""
        packed = self.dataset.parts["test"]
        at = torch.arange(int(packed.lengths[0]))[: 4 * SHOWN]
        tokens, reals = packed.inputs_at(at)
        right = packed.targets_at(at)["label"]
        assert tokens is not None
        assert reals is not None
        chance = {}
        for name, model in models.items():
            with torch.no_grad():
                logits, _ = model(Inputs(tokens[None], reals[None]))
            chance[name] = logits[0].softmax(-1)[:, 1]
        names, skills = ("(new)", *self.schema.questions), ("", *self.schema.skills)
        rows = [
            [
                names[int(tokens[i, 0])],
                skills[int(tokens[i, 1])],
                "right" if right[i] else "wrong",
                *(f"{p[i]:.0%}" for p in chance.values()),
            ]
            for i in range(len(at))
        ]
        columns = ["question", "skill", "came", *models]
        title = "A held-out user: the probability of a right answer, before each"
        return [{"type": "table", "title": title, "columns": columns, "rows": rows}]

    def _users(self, part: str, most: int | None) -> Packed:
        packed = self.dataset.parts[part]
        return packed if most is None else spread(packed, most)


def figures(
    logit: Float[np.ndarray, " N"], right: Int[np.ndarray, " N"], place: Int[np.ndarray, " N"]
) -> Scores:
    """The metrics of log odds, outcomes and the number of answers before each."""
    early = place < EARLY
    nats = np.logaddexp(0, np.where(right == 1, -logit, logit))
    return {
        "AUC": auc(logit, right),
        f"AUC of first {EARLY}": auc(logit[early], right[early]),
        "accuracy": float(((logit > 0) == right).mean()),
        "nats": float(nats.mean()),
    }


def auc(score: Float[np.ndarray, " N"], right: Int[np.ndarray, " N"]) -> float:
    """Area under the receiver operating curve, from ranks; half where one outcome is missing."""
    _, which, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[which]  # equal scores share their mean rank
    won = int(right.sum())
    lost = len(right) - won
    if not won or not lost:
        return 0.5
    return float((rank[right == 1].sum() - won * (won + 1) / 2) / (won * lost))


def _places(resets: torch.Tensor, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps since the last reset after this batch, and before each step of it."""
    rows, length = resets.shape
    if not len(before):
        before = torch.zeros(rows, dtype=torch.long)
    steps = torch.arange(length).expand(rows, length)
    begun = torch.where(resets, steps, -1).cummax(1).values
    count = torch.where(begun >= 0, steps - begun, steps + before[:, None])
    return count[:, -1] + 1, count
