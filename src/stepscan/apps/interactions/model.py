"""A model of interactions: what a user takes next."""

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from stepscan.apps.domain import Scores, with_options
from stepscan.apps.interactions.answers import last_logits, newest
from stepscan.apps.interactions.domain import Interactions
from stepscan.apps.ranking import measures
from stepscan.apps.reading import item_names, times_of
from stepscan.apps.recommend import RecommendingModel
from stepscan.apps.runs import tuples
from stepscan.data.base import DataError, DataOptions, Packed, Schema
from stepscan.data.interactions import InteractionSchema
from stepscan.data.open import open_dataset
from stepscan.models import Cloze, Inputs, NextItem, NextToken
from stepscan.models.heads import HeadConfig

if TYPE_CHECKING:
    import pandas as pd


class InteractionModel(RecommendingModel):
    """What `fit` returns for histories of users."""

    asks: ClassVar[tuple[str, ...]] = (
        "recommend",
        "recommend_table",
        "evaluate",
        "predict",
        "predict_table",
        "predict_frame",
        "predict_file",
        "stream",
    )
    schema: InteractionSchema

    @classmethod
    def answers(cls, head: HeadConfig, schema: Schema) -> bool:
        """Logits of its items."""
        return isinstance(head, Cloze | NextItem | NextToken) and head.vocab == schema.tokens[0]

    def evaluate(
        self,
        data: "str | os.PathLike[str] | None" = None,
        *,
        at: Sequence[int] = (5, 10, 20),
        part: str = "test",
    ) -> Scores:
        """HR, NDCG, MRR, recall and precision at several lengths, full ranking, leave-last-out.

        Args:
            data: A file or the name of a data set; None is what the model was trained on.
            at: Lengths of the list.
            part: test or valid.
        """
        told = self.about.get("options")
        options = DataOptions(**tuples(told)) if told else None
        dataset = self.own_data() if data is None else open_dataset(os.fspath(data), options)
        if dataset.schema != self.schema:
            raise DataError(
                f"evaluate: {dataset.name} has other columns or items than the model was trained "
                "on; recommend_table reads new data"
            )
        domain = Interactions(dataset)
        domain.recipe = with_options(domain.recipe, length=2 * self.reach)
        return measures(domain.ranks(self.network, part), at)

    def prompt(self, history: "Sequence[Any] | pd.DataFrame") -> Packed:
        """A history as the network reads it, with its times if it is a frame that has them."""
        names = item_names(self.schema, history)
        return self.schema.prompt(names, times_of(self.schema, history))

    @torch.no_grad()
    def last(self, inputs: Inputs) -> Any:
        """What the model says after the last item, of as many as it reads."""
        return super().last(newest(self.network, inputs, self.reach))

    def said_last(self, packed: Packed) -> Iterator[tuple[Tensor, Tensor]]:
        """As `recommend` does."""
        return last_logits(self.network, packed, reach=self.reach)


MODEL = InteractionModel
