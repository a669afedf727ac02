"""A model of interactions: what a user takes next."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from stepscan.apps.domain import Scores, with_options
from stepscan.apps.interactions.answers import last_logits, newest
from stepscan.apps.interactions.domain import Interactions
from stepscan.apps.interactions.recommend import (
    Recommendation,
    as_frame,
    check_known,
    choose_users,
    cold,
    offers,
)
from stepscan.apps.next_step import NextStepModel
from stepscan.apps.ranking import TOP, measures
from stepscan.apps.reading import item_names
from stepscan.apps.runs import tuples
from stepscan.data.base import DataError, DataOptions, Packed, Schema
from stepscan.data.interactions import InteractionSchema
from stepscan.data.open import open_dataset
from stepscan.models import Cloze, Inputs, NextItem, NextToken
from stepscan.models.heads import HeadConfig

if TYPE_CHECKING:
    import pandas as pd


class InteractionModel(NextStepModel):
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

    def recommend(
        self,
        history: "Sequence[Any] | pd.DataFrame" = (),
        *,
        top: int = TOP,
        exclude_seen: bool = False,
    ) -> list[Recommendation]:
        """The best items for one history, of a user known or not.

        Args:
            history: Items in order, the newest last, or a frame of one user with the columns of
                the training data. An empty one is offered the most popular items.
            top: How many; fewer where there are not so many.
            exclude_seen: Do not offer items of the history.

        Raises:
            ValueError: an item that training never showed is named, with the nearest that it did.
        """
        _check_top(top)
        if isinstance(history, str | os.PathLike):
            raise DataError(f"recommend: want items, got {history!r}; recommend_table reads files")
        if not len(history):
            return cold(self.schema, top)
        if hasattr(history, "columns") and self._users(history) > 1:
            raise DataError(
                f'recommend: column "{self.schema.user}" holds several users; ask about all of '
                "them with recommend_table"
            )
        packed = self.schema.prompt(item_names(self.schema, history))
        (found,) = self._offers(packed, top, exclude_seen)
        pairs = zip(found.items[0].tolist(), found.scores[0].tolist(), strict=True)
        return [Recommendation(self.schema.items[i - 1], score) for i, score in pairs if i]

    def recommend_table(
        self,
        data: "str | os.PathLike[str] | pd.DataFrame | None" = None,
        *,
        users: Sequence[Any] | None = None,
        top: int = TOP,
        exclude_seen: bool = False,
    ) -> "pd.DataFrame":
        """The best items for every user of a table, known or not, from the history in it.

        Args:
            data: A file or a frame with the columns of the training data; None is the file that
                the model was trained on, if it is still there.
            users: These users alone.
            top: How many for each.
            exclude_seen: Do not offer items of the history in the table.

        Returns:
            A row for each user and place, the best first: user and item as these columns are
            called in the training data, `place` from 1, `score`.
        """
        _check_top(top)
        table = self.table(self._own_file() if data is None else data)
        if users is not None:
            table = choose_users(table, self.schema, users)
        packed, names = self.schema.encode(table)
        check_known(table, self.schema, packed)
        found = list(self._offers(packed, top, exclude_seen))
        return as_frame(self.schema, names, found, table)

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

    @torch.no_grad()
    def last(self, inputs: Inputs) -> Any:
        """What the model says after the last item, of as many as it reads."""
        assert inputs.tokens is not None
        items = newest(self.network, inputs.tokens, self.reach)
        return super().last(inputs._replace(tokens=items))

    def said_last(self, packed: Packed) -> Iterator[tuple[Tensor, Tensor]]:
        """As `recommend` does."""
        return last_logits(self.network, packed, reach=self.reach)

    def _offers(self, packed: Packed, top: int, exclude_seen: bool) -> Any:
        return offers(
            self.network,
            self.schema,
            packed,
            reach=self.reach,
            top=top,
            exclude_seen=exclude_seen,
        )

    def _users(self, frame: Any) -> int:
        return frame[self.schema.user].nunique() if self.schema.user in frame.columns else 1

    def _own_file(self) -> Path:
        source = Path(str(self.about.get("source", "")))
        if not source.is_file():
            raise DataError(
                f"recommend: the table that {self!r} was trained on is not at hand; name a file"
            )
        return source


def _check_top(top: int) -> None:
    if top < 1:
        raise ValueError(f"recommend: want top >= 1, got {top}")


MODEL = InteractionModel
