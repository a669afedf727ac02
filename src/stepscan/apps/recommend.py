"""Histories in, items and scores out: for one history, or for every user of a table."""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan.apps.next_step import NextStepModel
from stepscan.apps.ranking import TOP, without
from stepscan.apps.reading import item_names
from stepscan.data.base import DataError, Packed
from stepscan.data.interactions import InteractionSchema
from stepscan.data.item_texts import ItemTextSchema
from stepscan.data.tables import Table

if TYPE_CHECKING:
    import pandas as pd

ItemSchema = InteractionSchema | ItemTextSchema
SHOWN = 3  # users or items that an error names


class Recommendation(NamedTuple):
    """An item that is offered."""

    item: str
    score: float
    """The model's probability among all that may be offered; of a user of whom nothing is known,
    the item's share of the training part."""


class Offers(NamedTuple):
    """Symbols and scores of some sequences, best first; 0 where there are not so many."""

    which: Int[Tensor, " n"]
    items: Int[Tensor, "n k"]
    scores: Float[Tensor, "n k"]


class Taken(NamedTuple):
    """What users took: their items end to end, 0 for one that is not known."""

    items: Int[Tensor, " N"]
    lengths: Int[Tensor, " U"]


class RecommendingModel(NextStepModel):
    """Base of the models that offer items, of interactions and of items as text."""

    schema: Any  # ItemSchema

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
            ValueError: an item that the model does not know is named, with the nearest it does.
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
        packed = self.prompt(history)
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
        check_known(table, self.schema, self.taken(packed).items)
        found = list(self._offers(packed, top, exclude_seen))
        return as_frame(self.schema, names, found, table)

    def check_read(self, table: Table, packed: Packed) -> None:
        """See `check_known`."""
        check_known(table, self.schema, self.taken(packed).items)

    def prompt(self, history: "Sequence[Any] | pd.DataFrame") -> Packed:
        """A history as the network reads it."""
        return self.schema.prompt(item_names(self.schema, history))

    def taken(self, packed: Packed) -> Taken:
        """The items of every sequence."""
        assert packed.tokens is not None
        return Taken(packed.tokens[:, 0].long(), packed.lengths)

    def _offers(self, packed: Packed, top: int, exclude_seen: bool) -> Iterator[Offers]:
        said = self.said_last(packed)
        return offers(said, self.schema, self.taken(packed), top=top, exclude_seen=exclude_seen)

    def _users(self, frame: Any) -> int:
        return frame[self.schema.user].nunique() if self.schema.user in frame.columns else 1

    def _own_file(self) -> Path:
        source = Path(str(self.about.get("source", "")))
        if not source.is_file():
            raise DataError(
                f"recommend: the table that {self!r} was trained on is not at hand; name a file"
            )
        return source


def popularity(schema: ItemSchema) -> Float[Tensor, " V"]:
    """Logits of the items by their counts in the training part; those of none come last."""
    counts = torch.tensor([0, *schema.counts], dtype=torch.float64)
    return (counts + 1e-6).log()


def offers(
    said: Iterable[tuple[Int[Tensor, " n"], Float[Tensor, "n V"]]],
    schema: ItemSchema,
    taken: Taken,
    *,
    top: int,
    exclude_seen: bool,
) -> Iterator[Offers]:
    """The best items for every sequence; each sequence once.

    Args:
        said: Some sequences, by number, and the logits of their next items; each sequence once.
        schema: The items' names and counts.
        taken: Histories. One without any item that is known gets the most popular ones.
        top: How many.
        exclude_seen: Do not offer items of the history.
    """
    popular = popularity(schema)
    items, lengths = taken
    owner = torch.repeat_interleave(lengths)
    known = torch.zeros(len(lengths)).index_add(0, owner, (items > 0).float()) > 0
    for which, scores in said:
        logits = torch.where(known[which, None], scores.cpu().double(), popular)
        logits = without(logits)
        if exclude_seen:
            row = torch.full((len(known),), -1).index_copy(0, which, torch.arange(len(which)))
            mine = row[owner] >= 0
            logits[row[owner[mine]], items[mine]] = -torch.inf
        chance, symbols = logits.softmax(1).topk(min(top, logits.shape[1] - 1), 1)
        some = logits.gather(1, symbols).isfinite()  # none: everything was seen
        yield Offers(which, symbols.where(some, 0), chance.where(some, 0.0))


def cold(schema: ItemSchema, top: int) -> list[Recommendation]:
    """What a user of whom nothing is known is offered: the most popular items."""
    chance, symbols = without(popularity(schema)).softmax(0).topk(min(top, len(schema.items)))
    pairs = zip(symbols.tolist(), chance.tolist(), strict=True)
    return [Recommendation(schema.items[i - 1], score) for i, score in pairs]


def choose_users(table: Table, schema: ItemSchema, users: Sequence[object]) -> Table:
    """The rows of these users; one that is not there is an error."""
    from stepscan.data.interactions import ids  # noqa: PLC0415

    found, _ = ids(table, schema.user, "user")
    wanted = list(dict.fromkeys(word(user) for user in users))
    missing = [user for user in wanted if not (found == user).any()]
    if missing:
        several = ", ".join(missing[:SHOWN])
        raise DataError(
            f'{table.name}: no user {several} in column "{schema.user}" '
            f"({found.nunique():,} users); give their histories instead"
        )
    frame = table.frame[found.isin(wanted).to_numpy()].reset_index(drop=True)
    return Table(frame, table.name, table.missing)


def check_known(table: Table, schema: ItemSchema, items: Int[Tensor, " N"]) -> None:
    """Say how many rows hold items that the model does not know; all of them is an error."""
    strange = int((items == 0).sum())
    if not len(items):
        raise DataError(f"{table.name}: no row with a user and an item")
    texts = isinstance(schema, ItemTextSchema)
    if strange == len(items):
        example = table.column(schema.item, "item").iloc[0]
        where = "in the table of items" if texts else "seen in training"
        raise DataError(
            f'{table.name}: none of the items in column "{schema.item}" was {where} '
            f"({len(schema.items):,} were), such as {example!r}; is it the right column?"
        )
    if strange:
        what = (
            "the table of items does not have; they are left out"
            if texts
            else "training never showed; they are read as not known"
        )
        warnings.warn(
            f"{table.name}: {strange:,} of {len(items):,} rows hold items that {what}",
            stacklevel=4,
        )


def as_frame(
    schema: ItemSchema, names: Sequence[str], found: Sequence[Offers], like: Table
) -> "pd.DataFrame":
    """Columns: the user and the item as they are called in the training data, place, score.

    Ids come back as numbers where the table has them as numbers.
    """
    import pandas as pd  # noqa: PLC0415

    rows: dict[int, list[tuple[str, int, str, float]]] = {}
    for some in found:
        for user, symbols, scores in zip(*(x.tolist() for x in some), strict=True):
            offered = [(i, s) for i, s in zip(symbols, scores, strict=True) if i]
            rows[user] = [
                (names[user], place, schema.items[i - 1], score)
                for place, (i, score) in enumerate(offered, 1)
            ]
    columns = [schema.user, "place", schema.item, "score"]
    frame = pd.DataFrame([row for user in sorted(rows) for row in rows[user]], columns=columns)
    for column in (schema.user, schema.item):
        if pd.api.types.is_integer_dtype(like.column(column, "id").dtype):
            as_numbers = pd.to_numeric(frame[column], errors="coerce")
            if as_numbers.notna().all():  # further items may have other ids
                frame[column] = as_numbers.astype(like.frame[column].dtype)
    return frame


def word(value: object) -> str:
    """An id as text; a number that became 31.0 in a frame is still 31."""
    text = str(value).strip()
    whole = isinstance(value, float) and value.is_integer()
    return text.removesuffix(".0") if whole else text


def _check_top(top: int) -> None:
    if top < 1:
        raise ValueError(f"recommend: want top >= 1, got {top}")
