"""Interactions: what a user takes next, ranked among all items."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stepscan.apps.baselines.lately import lately
from stepscan.apps.baselines.markov import Markov
from stepscan.apps.domain import Domain, Metric, Recipe, Scores, with_options
from stepscan.apps.interactions import groups
from stepscan.apps.interactions.answers import last_logits, window
from stepscan.apps.interactions.neighbours import tables
from stepscan.apps.interactions.presets import is_preset, read_preset
from stepscan.apps.ranking import METRICS, best, ranks, summary, without
from stepscan.data.base import Batch, Dataset, Packed
from stepscan.data.interactions import InteractionSchema
from stepscan.data.views import sequences, spread
from stepscan.models import Cloze, Config, ModelConfig, NextItem, SequenceModel, build
from stepscan.models.heads import HeadConfig
from stepscan.models.heads.enhanced_item import EnhancedItem
from stepscan.train.cloze import cloze
from stepscan.train.enhance import Enhance
from stepscan.train.loop import Objective, say_next
from stepscan.train.objectives import Loss

SHOWN = 6  # users in the examples
UNTIMED = 0.1
"""Part of the rows of a batch whose times are not read."""
PUBLISHED = {"rows": 41, "learning_rate": 1e-3, "weight_decay": 0.0}
"""Of the recipe of a model with learned positions: about 2,048 items asked for in a batch of
windows of 50, as RecBole asks for."""


class Interactions(Domain):
    """Histories of users."""

    kind: ClassVar[str] = "interactions"
    metrics: tuple[Metric, ...] = METRICS
    look: ClassVar[int] = 50_000  # a user asks once, however much is read: few would be noise
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

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self._enhanced: dict[EnhancedItem, Enhance] = {}

    @property
    def schema(self) -> InteractionSchema:
        """The items."""
        assert isinstance(self.dataset.schema, InteractionSchema)
        return self.dataset.schema

    @property
    def head(self) -> HeadConfig:
        """The next item."""
        return NextItem(vocab=self.schema.tokens[0])

    @property
    def objective(self) -> Objective:
        """The next item, or the hidden ones; of some histories without their times."""
        return self._descend

    def _descend(self, model: SequenceModel, batch: Batch, state: Any) -> tuple[Loss, Any]:
        head, batch = model.config.head, some_untimed(batch)
        if isinstance(head, EnhancedItem):
            return self._enhance(head)(model, batch, state)
        return fill_in_or_say_next(model, batch, state)

    def _enhance(self, head: EnhancedItem) -> Enhance:
        """The branches of UniRec, prepared once."""
        if head not in self._enhanced:
            counts = torch.tensor([0, *self.schema.counts])
            train, calendar = self.dataset.parts["train"], self.schema.calendar
            found = tables(train, counts, calendar=calendar)
            self._enhanced[head] = Enhance(found, head)
        return self._enhanced[head]

    def pattern(self, layers: str) -> str:
        """A preset is a pattern."""
        return layers if is_preset(layers) else super().pattern(layers)

    def config(self, layers: str | None = None, width: int | None = None, **options: Any) -> Config:
        """A preset by its name, else layers; those that read both ways fill in hidden items."""
        layers = self.recipe.layers if layers is None else layers
        vocab = self.schema.tokens[0]
        options |= {"clock": True} if self.schema.reals else {}
        if is_preset(layers):
            fields = read_preset(layers, vocab)
            return super().config(fields.pop("layers"), width, **(fields | options))
        config = super().config(layers, width, **options)
        with torch.device("meta"):
            causal = build(config).causal
        if causal:
            return config
        return super().config(layers, width, **(options | {"head": Cloze(vocab=vocab, last=0.5)}))

    def recipe_for(self, config: Config) -> Recipe:
        """What was asked for, else what goes with learned positions."""
        if not isinstance(config, ModelConfig) or not config.positions:
            return self.recipe
        usual = type(self).recipe
        fields = PUBLISHED | {"length": config.positions}
        left = {k: v for k, v in fields.items() if getattr(self.recipe, k) == getattr(usual, k)}
        return with_options(self.recipe, **left)

    def score(self, model: SequenceModel, part: str = "test", most: int | None = None) -> Scores:
        """Full ranking of every user's held-out item; a quick look reads whole users, fewer."""
        return summary(self.ranks(model, part, most))

    def ranks(
        self, model: SequenceModel, part: str = "test", most: int | None = None
    ) -> Float[Tensor, " U"]:
        """The place of every user's held-out item among all items, by user."""
        packed = self._users(part, most, window(model, self.reach))
        wanted = packed.targets_at(packed.begins + packed.lengths - 1)["token"]
        found = torch.full((len(wanted),), torch.nan, dtype=torch.float64)
        for which, logits in last_logits(model, packed, reach=self.reach):
            found[which] = ranks(logits.cpu(), wanted[which])
        return found

    def baselines(self, most: int | None = None) -> Iterator[tuple[str, Scores]]:
        """Popularity, by all items of the training part, what the user took lately, and the
        first-order Markov chain.
        """
        train = self.dataset.parts["train"]
        assert train.tokens is not None
        every = train.tokens[:, 0].long().numpy()
        vocab = self.schema.tokens[0]
        packed = self._users("test", most)
        last, wanted = map(torch.from_numpy, _pairs(packed))
        popularity = Markov(every, every, vocab, 0)
        chain = Markov(*_pairs(train), vocab, 1)
        popular = torch.from_numpy(popularity.scores(0))
        users = torch.arange(len(packed.begins))
        methods: dict[str, Callable[[Tensor], Tensor]] = {
            "popularity": lambda some: torch.from_numpy(popularity.table(last[some].numpy())),
            "taken lately": lambda some: lately(packed, some, popular),
            "Markov chain": lambda some: torch.from_numpy(chain.table(last[some].numpy())),
        }
        for name, table in methods.items():
            rank = [ranks(table(some), wanted[some]) for some in users.split(1024)]
            yield name, summary(torch.cat(rank))

    def examples(self, models: Mapping[str, SequenceModel]) -> list[dict[str, Any]]:
        """Histories, what came, and the first three that each model would have offered."""
        packed = self._users("test", None)
        items = ("(new)", *self.schema.items)
        assert packed.tokens is not None
        rows: list[list[Any]] = []
        few = sequences(packed, torch.arange(min(SHOWN, len(packed.begins))))
        offered = {name: self._offered(model, few) for name, model in models.items()}
        for user, (start, size) in enumerate(zip(few.begins, few.lengths, strict=True)):
            history, _ = few.inputs_at(torch.arange(int(start), int(start + size)))
            came = int(few.targets_at(start + size - 1)["token"])
            assert history is not None
            row = [", ".join(items[i] for i in history[-3:, 0].tolist()), items[came]]
            row += [", ".join(items[i] for i in chosen[user]) for chosen in offered.values()]
            rows.append(row)
        columns = ["last three items", "came next", *models]
        return [
            {"type": "table", "title": "What would be offered", "columns": columns, "rows": rows},
            self.served(models),
        ]

    def served(self, models: Mapping[str, SequenceModel]) -> dict[str, Any]:
        """How well each model serves groups of users and of items, see `groups`."""
        packed = self.dataset.parts["test"]
        asked = packed.targets_at(packed.begins + packed.lengths - 1)
        counts = torch.tensor(self.schema.counts)
        found = groups.groups(asked["uneven"], asked["token"], counts)
        return groups.table(found, {name: self.ranks(model) for name, model in models.items()})

    def _offered(self, model: SequenceModel, packed: Packed) -> dict[int, list[int]]:
        """The first three of each user."""
        return {
            user: best(without(scores), 3)
            for which, logits in last_logits(model, packed, reach=self.reach)
            for user, scores in zip(which.tolist(), logits, strict=True)
        }

    def _users(self, part: str, most: int | None, longest: int | None = None) -> Packed:
        """Users are read to their end: their only question comes last. A look takes evenly spread
        ones, `most` steps of them in all, no more than the `longest` of each.
        """
        packed = self.dataset.parts[part]
        if most is None:
            return packed
        read = packed.lengths if longest is None else packed.lengths.clamp(max=longest)
        return spread(packed, most * len(packed) // max(1, int(read.sum())))


def fill_in_or_say_next(model: SequenceModel, batch: Batch, state: Any) -> tuple[Loss, Any]:
    """The objective of the head: a cloze head is asked for what is hidden from it."""
    head = model.config.head
    return say_next(model, cloze(batch, head) if isinstance(head, Cloze) else batch, state)


def some_untimed(batch: Batch) -> Batch:
    """With a clock, some rows without their times: a history may be asked about by its items."""
    if batch.reals is None:
        return batch
    hidden = torch.rand(len(batch.reals), 1, 1, device=batch.reals.device) < UNTIMED
    return batch._replace(reals=batch.reals.masked_fill(hidden, 0))


def _pairs(packed: Packed) -> tuple[np.ndarray, np.ndarray]:
    """Every asked-for symbol and the one before it."""
    assert packed.tokens is not None
    target = packed.targets_at(torch.arange(len(packed)))["token"]
    asked = target >= 0
    return packed.tokens[asked, 0].long().numpy(), target[asked].numpy()
