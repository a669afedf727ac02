"""Items as text: what a user takes next, ranked among all items of a catalogue."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from stepscan.apps.baselines.markov import Markov
from stepscan.apps.domain import Domain, Metric, Recipe, Scores
from stepscan.apps.item_texts.contrast import Contrast, read_items
from stepscan.apps.ranking import METRICS, TOP, best, ranks, summary, without
from stepscan.data.base import Dataset
from stepscan.data.item_texts import PLACES, ItemTextSchema, Spelled
from stepscan.models import SequenceModel
from stepscan.models.heads import HeadConfig
from stepscan.models.heads.next_sentence import NextSentence
from stepscan.train.evaluate import walk_outputs

SHOWN = 6  # users in the examples
ORDERS = 4  # other ways to tell each item, while training
COLD = f"HR@{TOP} new"


class ItemTexts(Domain):
    """Histories of users, of items that are described."""

    kind: ClassVar[str] = "item_texts"
    metrics: tuple[Metric, ...] = METRICS
    recipe: Recipe = Recipe(
        layers="gated_delta_net*2",
        width=64,
        rows=16,
        length=256,
        learning_rate=4e-3,
        dropout=0.1,
        tie=True,
        depth=2,
    )

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        self.sentences = self.schema.sentences()
        wanted = self._part("test").pairs()[1]
        unseen = len(self.schema.items) - self.schema.trained
        if unseen > TOP and (wanted > self.schema.trained).any():
            definition = (
                f"Share of users whose held-out item is among the {TOP} best of the "
                f"{unseen:,} items that training never showed, of those users who took such an "
                "item; these are ranked among each other."
            )
            self.metrics = (*METRICS, Metric(COLD, "higher", definition))

    @property
    def schema(self) -> ItemTextSchema:
        """The catalogue."""
        assert isinstance(self.dataset.schema, ItemTextSchema)
        return self.dataset.schema

    @property
    def head(self) -> HeadConfig:
        """A direction to look in."""
        return NextSentence(words=self.schema.tokens[0])

    @property
    def objective(self) -> Contrast:
        """What training descends."""
        return Contrast(self.sentences, [self.schema.sentences(seed) for seed in range(ORDERS)])

    def score(self, model: SequenceModel, part: str = "test", most: int | None = None) -> Scores:
        """Full ranking of every user's held-out item, after the last items before it."""
        asked: list[Tensor] = []
        wanted: list[Tensor] = []
        packed = self._part(part).latest(None if most is None else max(32, most // (2 * PLACES)))
        for batch, said in walk_outputs(model, packed, rows=32, length=self.recipe.length):
            here = batch.targets["token"] >= 0
            asked.append(said.item[here])
            wanted.append(batch.targets["token"][here])
        items = catalogue(model, self.sentences)
        found = torch.cat(asked)
        pieces = zip(found.split(1024), torch.cat(wanted).split(1024), strict=True)
        scored = [(model.head.scores(users, items), want) for users, want in pieces]  # type: ignore[operator]
        return self._summary(scored)

    def _summary(self, scored: list[tuple[Tensor, Tensor]]) -> Scores:
        found = summary(torch.cat([ranks(*piece) for piece in scored]))
        if any(metric.name == COLD for metric in self.metrics):
            trained = self.schema.trained
            among = [
                ranks(scores[want > trained][:, trained:], want[want > trained] - trained)
                for scores, want in scored
            ]
            place = torch.cat(among)
            # A look may hold no such user: 0 is finite, and nothing is chosen by this figure.
            found[COLD] = float((place <= TOP).double().mean()) if len(place) else 0.0
        return found

    def baselines(self, most: int | None = None) -> Iterator[tuple[str, Scores]]:
        """Popularity and the first-order Markov chain, which know items by their ids alone."""
        before, after = (x.numpy() for x in self._part("train").pairs())
        last, wanted = self._part("test").pairs()
        for name, order in (("popularity", 0), ("Markov chain", 1)):
            model = Markov(before, after, len(self.schema.items) + 1, order)
            scored = [
                (torch.from_numpy(model.table(piece.numpy())), want)
                for piece, want in zip(last.split(1024), wanted.split(1024), strict=True)
            ]
            yield name, self._summary(scored)

    def examples(self, models: Mapping[str, SequenceModel]) -> list[dict[str, Any]]:
        """Histories, what came, and the first three that each model would have offered."""
        titles = ("(nothing)", *map(self._title, range(len(self.schema.items))))
        packed = self._part("test").latest(SHOWN)
        rows: list[list[Any]] = []
        offers = {name: self._offers(model, packed) for name, model in models.items()}
        last, came = packed.pairs()
        for user in range(len(came)):
            offered = [", ".join(titles[i] for i in offer[user]) for offer in offers.values()]
            rows.append([titles[int(last[user])], titles[int(came[user])], *offered])
        columns = ["last item", "came next", *models]
        title = "What would be offered"
        return [{"type": "table", "title": title, "columns": columns, "rows": rows}]

    def _offers(self, model: SequenceModel, packed: Spelled) -> list[list[int]]:
        """The best three for each user, in the order of the data."""
        items = catalogue(model, self.sentences)
        found = []
        ends = packed.begins + packed.lengths
        for begin, end in zip(packed.begins.tolist(), ends.tolist(), strict=True):
            tokens, _ = packed.inputs_at(torch.arange(begin, end))
            with torch.no_grad():
                said, _ = model(tokens[None])
                scores = model.head.scores(said.item[0, -1:], items)  # type: ignore[operator]
            found.append(best(without(scores[0]), 3))
        return found

    def _title(self, item: int) -> str:
        """The first thing that is said of an item, or its id."""
        return next(filter(None, self.schema.texts[item]), self.schema.items[item])

    def _part(self, name: str) -> Spelled:
        packed = self.dataset.parts[name]
        assert isinstance(packed, Spelled)
        return packed


@torch.no_grad()
def catalogue(model: SequenceModel, sentences: Tensor) -> Tensor:
    """Where every item of a catalogue stands, [V D]; row 0 is none."""
    training = model.training
    model.eval()
    try:
        return read_items(model, sentences.to(next(model.parameters()).device))
    finally:
        model.train(training)
