"""Histories in, items and scores out: for one history, or for every user of a table."""

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan.apps.interactions.answers import last_logits
from stepscan.apps.ranking import without
from stepscan.data.base import DataError, Packed
from stepscan.data.interactions import InteractionSchema
from stepscan.data.tables import Table
from stepscan.models import SequenceModel

if TYPE_CHECKING:
    import pandas as pd

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


def popularity(schema: InteractionSchema) -> Float[Tensor, " V"]:
    """Logits of the items by their counts in the training part; those of none come last."""
    counts = torch.tensor([0, *schema.counts], dtype=torch.float64)
    return (counts + 1e-6).log()


def offers(
    network: SequenceModel,
    schema: InteractionSchema,
    packed: Packed,
    *,
    reach: int,
    top: int,
    exclude_seen: bool,
) -> Iterator[Offers]:
    """The best items for every sequence; each sequence once.

    Args:
        network: Of these items.
        schema: Their names and counts.
        packed: Histories. One without any item that is known gets the most popular ones.
        reach: See `Domain.reach`.
        top: How many.
        exclude_seen: Do not offer items of the history.
    """
    popular = popularity(schema)
    items, _ = packed.inputs_at(torch.arange(len(packed)))
    assert items is not None
    owner = torch.repeat_interleave(packed.lengths)
    known = torch.zeros(len(packed.begins)).index_add(0, owner, (items[:, 0] > 0).float()) > 0
    for which, said in last_logits(network, packed, reach=reach):
        logits = torch.where(known[which, None], said.cpu().double(), popular)
        logits = without(logits)
        if exclude_seen:
            row = torch.full((len(known),), -1).index_copy(0, which, torch.arange(len(which)))
            mine = row[owner] >= 0
            logits[row[owner[mine]], items[mine, 0]] = -torch.inf
        chance, symbols = logits.softmax(1).topk(min(top, logits.shape[1] - 1), 1)
        some = logits.gather(1, symbols).isfinite()  # none: everything was seen
        yield Offers(which, symbols.where(some, 0), chance.where(some, 0.0))


def cold(schema: InteractionSchema, top: int) -> list[Recommendation]:
    """What a user of whom nothing is known is offered: the most popular items."""
    chance, symbols = without(popularity(schema)).softmax(0).topk(min(top, len(schema.items)))
    pairs = zip(symbols.tolist(), chance.tolist(), strict=True)
    return [Recommendation(schema.items[i - 1], score) for i, score in pairs]


def choose_users(table: Table, schema: InteractionSchema, users: Sequence[object]) -> Table:
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


def check_known(table: Table, schema: InteractionSchema, packed: Packed) -> None:
    """Say how many rows hold items that training never showed; all of them is an error."""
    assert packed.tokens is not None
    strange = int((packed.tokens[:, 0] == 0).sum())
    if not len(packed):
        raise DataError(f"{table.name}: no row with a user and an item")
    if strange == len(packed):
        example = table.column(schema.item, "item").iloc[0]
        raise DataError(
            f'{table.name}: none of the items in column "{schema.item}" was seen in training '
            f"({len(schema.items):,} were), such as {example!r}; is it the right column?"
        )
    if strange:
        warnings.warn(
            f"{table.name}: {strange:,} of {len(packed):,} rows hold items that training never "
            "showed; they are read as not known",
            stacklevel=4,
        )


def as_frame(
    schema: InteractionSchema, names: Sequence[str], found: Sequence[Offers], like: Table
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
            frame[column] = frame[column].astype(like.frame[column].dtype)
    return frame


def word(value: object) -> str:
    """An id as text; a number that became 31.0 in a frame is still 31."""
    text = str(value).strip()
    whole = isinstance(value, float) and value.is_integer()
    return text.removesuffix(".0") if whole else text
