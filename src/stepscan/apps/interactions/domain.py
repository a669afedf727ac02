"""Interactions: what a user takes next, ranked among all items."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from stepscan.apps.baselines.markov import Markov
from stepscan.apps.domain import Domain, Metric, Recipe, Scores
from stepscan.apps.ranking import METRICS, best, ranks, summary, without
from stepscan.data.base import Packed
from stepscan.data.interactions import InteractionSchema
from stepscan.data.views import spread
from stepscan.models import NextToken, SequenceModel
from stepscan.models.heads import HeadConfig
from stepscan.train.evaluate import walk_outputs

SHOWN = 6  # users in the examples


class Interactions(Domain):
    """Histories of users."""

    kind: ClassVar[str] = "interactions"
    metrics: tuple[Metric, ...] = METRICS
    recipe: Recipe = Recipe(
        layers="gated_delta_net",
        width=64,
        rows=64,
        length=64,
        learning_rate=6e-3,
        dropout=0.5,
        tie=False,
        depth=1,
    )

    @property
    def schema(self) -> InteractionSchema:
        """The items."""
        assert isinstance(self.dataset.schema, InteractionSchema)
        return self.dataset.schema

    @property
    def head(self) -> HeadConfig:
        """The next item."""
        return NextToken(vocab=self.schema.tokens[0])

    def score(self, model: SequenceModel, part: str = "test", most: int | None = None) -> Scores:
        """Full ranking of every user's held-out item; a quick look reads whole users, fewer."""
        found = []
        reading = {"rows": 64, "length": self.reach, "slots": self.reach}
        for batch, logits in walk_outputs(model, self._users(part, most), **reading):
            asked = batch.targets["token"] >= 0
            found.append(ranks(logits[asked], batch.targets["token"][asked]))
        return summary(torch.cat(found))

    def baselines(self, most: int | None = None) -> Iterator[tuple[str, Scores]]:
        """Popularity and the first-order Markov chain."""
        before, after = _pairs(self.dataset.parts["train"])
        last, wanted = _pairs(self._users("test", most))
        for name, order in (("popularity", 0), ("Markov chain", 1)):
            model = Markov(before, after, self.schema.tokens[0], order)
            rank = [
                ranks(torch.from_numpy(model.table(piece)), torch.from_numpy(want))
                for piece, want in zip(_pieces(last), _pieces(wanted), strict=True)
            ]
            yield name, summary(torch.cat(rank))

    def examples(self, models: Mapping[str, SequenceModel]) -> list[dict[str, Any]]:
        """Histories, what came, and the first three that each model would have offered."""
        packed = self._users("test", None)
        items = ("(new)", *self.schema.items)
        assert packed.tokens is not None
        rows: list[list[Any]] = []
        for user in range(min(SHOWN, len(packed.begins))):
            start = int(packed.begins[user])
            history = packed.tokens[start : start + int(packed.lengths[user])].long()
            end = torch.tensor([start + len(history) - 1])
            came = int(packed.targets_at(end)["token"])
            row = [", ".join(items[i] for i in history[-3:, 0].tolist()), items[came]]
            for model in models.values():
                with torch.no_grad():
                    logits, _ = model(history[None, -256:])
                row.append(", ".join(items[i] for i in best(without(logits[0, -1]), 3)))
            rows.append(row)
        columns = ["last three items", "came next", *models]
        return [
            {"type": "table", "title": "What would be offered", "columns": columns, "rows": rows}
        ]

    def _users(self, part: str, most: int | None) -> Packed:
        """Users are read whole: their only question comes last. A look takes evenly spread ones."""
        packed = self.dataset.parts[part]
        return packed if most is None else spread(packed, most)


def _pairs(packed: Packed) -> tuple[np.ndarray, np.ndarray]:
    """Every asked-for symbol and the one before it."""
    assert packed.tokens is not None
    target = packed.targets_at(torch.arange(len(packed)))["token"]
    asked = target >= 0
    return packed.tokens[asked, 0].long().numpy(), target[asked].numpy()


def _pieces(x: np.ndarray) -> list[np.ndarray]:
    return [x[i : i + 1024] for i in range(0, len(x), 1024)]
