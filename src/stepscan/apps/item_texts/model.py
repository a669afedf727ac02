"""A model of items as text: what a user takes next, also of what nobody has taken yet."""

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from stepscan.apps.item_texts.domain import catalogue
from stepscan.apps.model import Model
from stepscan.apps.next_step import Prediction
from stepscan.apps.reading import item_names
from stepscan.apps.recommend import RecommendingModel, Taken, popularity
from stepscan.data.base import Packed, Schema
from stepscan.data.item_texts import PLACES, ItemTextSchema, Spelled
from stepscan.data.tables import Table
from stepscan.models import Inputs
from stepscan.models.heads import HeadConfig
from stepscan.models.heads.next_sentence import NextSentence, SentenceHead

if TYPE_CHECKING:
    import pandas as pd


class ItemTextModel(RecommendingModel):
    """What `fit` returns for histories of users with a table of items."""

    asks: ClassVar[tuple[str, ...]] = (
        "recommend",
        "recommend_table",
        "predict",
        "predict_table",
        "predict_frame",
        "similar",
        "with_items",
        "stream",
    )
    schema: ItemTextSchema

    @classmethod
    def answers(cls, head: HeadConfig, schema: Schema) -> bool:
        """Directions, of its words."""
        return isinstance(head, NextSentence) and head.words == schema.tokens[0]

    @cached_property
    def items(self) -> Tensor:
        """Where each item of the catalogue stands, [V D]; row 0 is none. Read when first needed."""
        return catalogue(self.network, self.schema.sentences())

    def with_items(self, items: "str | os.PathLike[str] | pd.DataFrame | Table") -> "ItemTextModel":
        """A model that also offers further items, by their text alone and without training.

        Args:
            items: A file or a frame with a row for each item and the columns of the catalogue;
                some may be missing.
        """
        schema = self.schema.with_items(self.table(items))
        found = Model(self.network, schema, self.about)
        assert isinstance(found, ItemTextModel)
        return found

    def predict(
        self,
        history: "Sequence[Any] | pd.DataFrame",
        *,
        top: int = 3,
        times: Iterable[Any] | None = None,
        exclude_seen: bool = False,
    ) -> list[Prediction]:
        """The likeliest next items of a user, known or not.

        Args:
            history: Items in order, as a list or a frame with the columns of the training data; the
                last 50 of them count.
            top: How many.
            times: Are not read.
            exclude_seen: Do not offer items of the history.
        """
        if not len(history):
            raise ValueError("predict: want at least one step of history, got none")
        packed = self.schema.prompt(item_names(self.schema, history))
        return self._offer(packed.items, top, exclude_seen)

    def predict_table(
        self,
        data: "str | os.PathLike[str] | pd.DataFrame",
        *,
        top: int = 3,
        exclude_seen: bool = False,
    ) -> dict[str, list[Prediction]]:
        """The likeliest next items of every user in a table, by its name."""
        table = self.table(data)
        packed, users = self.schema.encode(table)
        self.check_read(table, packed)
        return {
            user: self._offer(items, top, exclude_seen)
            for user, items in zip(users, packed.histories(), strict=True)
        }

    def similar(self, item: Any, *, top: int = 10) -> list[tuple[str, float]]:
        """The items that read most like this one, with the cosines of their directions."""
        (name,) = item_names(self.schema, [item])
        at = self.schema.items.index(name) + 1
        cosine = self.items @ self.items[at]
        cosine[torch.tensor([0, at])] = -torch.inf
        best = cosine.topk(min(top, len(cosine) - 2))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(self.schema.items[i - 1], value) for i, value in pairs]

    def taken(self, packed: Packed) -> Taken:
        """The items of every user."""
        assert isinstance(packed, Spelled)
        lengths = torch.tensor([len(items) for items in packed.histories()], dtype=torch.long)
        return Taken(packed.items, lengths)

    def said_last(self, packed: Packed) -> Iterator[tuple[Tensor, Tensor]]:
        """Users by number [1], and the scores of all items after their last one [1 V]."""
        assert isinstance(packed, Spelled)
        for user, items in enumerate(packed.histories()):
            yield torch.tensor([user]), self._scores(items)[None]

    def _offer(self, items: Tensor, top: int, exclude_seen: bool) -> list[Prediction]:
        if top < 1:
            raise ValueError(f"predict: want top >= 1, got {top}")
        return self._named(self._scores(items), top, items if exclude_seen else None)

    @torch.no_grad()
    def _scores(self, items: Tensor) -> Tensor:
        """Logits of all items after this history, of which the last PLACES are read; what is not
        in the catalogue (0) is left out, and after nothing else comes what is popular."""
        known = items[items > 0]
        if not len(known):
            return popularity(self.schema)
        packed = self.schema.history(known[-PLACES:])
        tokens, _ = packed.inputs_at(torch.arange(len(packed)))
        said = self.last(Inputs(tokens[None]))
        head = self.network.head
        assert isinstance(head, SentenceHead)
        return head.scores(said.item[0, -1:], self.items)[0]


MODEL = ItemTextModel
