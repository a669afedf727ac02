"""Items as text: which item a user takes next, where an item is what is written about it.

    a sentence     key words, value words, key words, value words ..., end     one item
    inputs         the sentences of a user's items in order of time, word by word:
                   (word, whether it is of a key, of a value or an end, place of the item)
    asked          after each end the next item ("token")

An item that nobody has taken yet is read like any other. Cleaned and split as `interactions`, of
which every item counts, however rare.
Source: Li et al. 2023, arXiv:2305.13731 (Recformer), section 3: items as flattened key-value
attributes, a sequence of items as a sequence of sentences. There the newest item comes first and
one token in front stands for the whole; here time runs forwards, for causal mixers and streams,
and the end of each sentence stands for all that was read up to there.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from stepscan.data.base import DataError, DataOptions, Dataset, Packed, Schema
from stepscan.data.infer import item_column
from stepscan.data.interactions import ids, interaction_dataset
from stepscan.data.tables import Table, codes, labels, times

if TYPE_CHECKING:
    import pandas as pd

NOTHING, END, MASK = range(3)
"""Words that are no text: padding, the end of an item, a word that is hidden while training."""
SPECIAL = 3
PADDING, CLOSE, KEY, VALUE = range(4)
"""What a word is part of."""
PLACES = 50
"""Items of a history that are read, as published, and their places, counted around; place 0 is an
item by itself."""
LONGEST = 32
"""Words of an attribute that are read, as published."""
VOCABULARY = 4096


@dataclass(frozen=True, kw_only=True)
class ItemTextSchema(Schema):
    """How the texts of items become words, and scores become items."""

    kind: ClassVar[str] = "item_texts"

    user: str
    """Column names, as in the file the model learned from."""
    item: str
    time: str
    fields: tuple[str, ...]
    """Attributes of an item, in the order they are read."""
    items: tuple[str, ...]
    """Item i + 1 of the catalogue."""
    texts: tuple[tuple[str, ...], ...]
    """Of each item the value of each field, empty where it is missing."""
    counts: tuple[int, ...]
    """How often each item is in the training part; those of none come last."""
    bpe: str
    """The tokenizer learned from the catalogue, as the JSON of the `tokenizers` library."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """Words, what they are part of, places."""
        return (_load(self.bpe).get_vocab_size() + SPECIAL, VALUE + 1, PLACES + 1)

    @property
    def reals(self) -> int:
        """None."""
        return 0

    @property
    def trained(self) -> int:
        """So many of the items, the first ones, were taken in training."""
        return sum(count > 0 for count in self.counts)

    def words(self, text: str) -> list[int]:
        """The words of a text; any text has some, byte by byte if it must be."""
        return [SPECIAL + i for i in _load(self.bpe).encode(_plain(text)).ids]

    def sentence(self, pairs: Iterable[tuple[str, str]]) -> list[tuple[int, int]]:
        """(word, part) of these keys and values, the end last; what has no value is left out."""
        said: list[tuple[int, int]] = []
        for key, value in pairs:
            if value:
                said += [(word, KEY) for word in self.words(key)]
                said += [(word, VALUE) for word in self.words(value)[:LONGEST]]
        return [*said, (END, CLOSE)]

    def sentences(self, seed: int | None = None, missing: float = 0.1) -> Int[Tensor, "V L 2"]:
        """Word and part of every item of the catalogue, row i + 1 for item i, padded behind.

        With a seed each item's attributes come in an order of their own, and this share of them is
        missing: what a model should not mind.
        """
        rng = None if seed is None else np.random.default_rng(seed)
        said = [[(END, CLOSE)]]
        for values in self.texts:
            pairs = list(zip(self.fields, values, strict=True))
            if rng is not None:
                pairs = [pairs[i] for i in rng.permutation(len(pairs))]
                pairs = pairs[:1] + [pair for pair in pairs[1:] if rng.random() >= missing]
            said.append(self.sentence(pairs))
        padded = torch.zeros(len(said), max(map(len, said)), 2, dtype=torch.long)
        for row, words in zip(padded, said, strict=True):
            row[: len(words)] = torch.tensor(words)
        return padded

    def encode(self, table: Table) -> tuple["Spelled", list[str]]:
        """Every user's history, nothing asked, 0 where the catalogue does not have the item; and
        the users in this order."""
        (users, _), (items, _) = ids(table, self.user, "user"), ids(table, self.item, "item")
        kept = np.flatnonzero((users.notna() & items.notna()).to_numpy())
        user, names = users.iloc[kept].factorize(sort=True)
        order = np.lexsort((times(table, self.time).values[kept], user))
        taken = torch.from_numpy(codes(items.iloc[kept[order]], self.items))
        starts = torch.from_numpy(np.diff(user[order], prepend=-1) != 0)
        nothing = torch.full_like(taken, -1)
        return Spelled(self.sentences(), starts, taken, nothing), list(map(str, names))

    def prompt(self, items: Sequence[str], before: int = 0) -> "Spelled":
        """The history of one user, after so many items before, nothing asked."""
        known = {item: i for i, item in enumerate(self.items, 1)}
        return self.history(torch.tensor([known[i] for i in items], dtype=torch.long), before)

    def history(self, items: Int[Tensor, " N"], before: int = 0) -> "Spelled":
        """The same of their numbers."""
        starts = torch.arange(len(items)) == 0
        return Spelled(self.sentences(), starts, items, torch.full_like(items, -1), before)

    def with_items(self, catalogue: "Table | pd.DataFrame") -> "ItemTextSchema":
        """The same with further items, at the end of the catalogue; known ones are kept as they
        are. Attributes that this schema does not know are left out, missing ones stay empty."""
        if not isinstance(catalogue, Table):
            catalogue = Table(catalogue.reset_index(drop=True), "items")
        items, texts, _ = _described(catalogue, self.item, self)
        known = set(self.items)
        new = [i for i, item in enumerate(items) if item not in known]
        return replace(
            self,
            items=(*self.items, *(items[i] for i in new)),
            texts=(*self.texts, *(texts[i] for i in new)),
            counts=(*self.counts, *(0 for _ in new)),
        )


def item_text_dataset(
    table: Table,
    catalogue: Table,
    options: DataOptions,
    roles: Mapping[str, str],
    *,
    name: str,
    bpe: str | None = None,
) -> Dataset:
    """Interactions whose items are described by a catalogue.

    Args:
        table: Who took what, and when.
        catalogue: A row for each item: its id, and columns that describe it.
        options: How to read them.
        roles: The columns of `table`.
        name: Of the data set.
        bpe: The tokenizer of another catalogue, for a model that comes from there.
    """
    if options.clock == "yes":
        raise DataError("clock: items as text come without their times; leave out clock or items")
    found, texts, fields = _described(catalogue, roles["item"], None)
    described = dict(zip(found, texts, strict=True))
    bare = interaction_dataset(table, replace(options, minimum=1), roles, name=name)
    seen: tuple[str, ...] = bare.schema.items  # type: ignore[attr-defined]
    nameless = sum(not any(described.get(item, ())) for item in seen)
    if nameless == len(seen):
        raise DataError(
            f'{catalogue.name}: describes none of the items of {name}, such as "{seen[0]}"; its '
            f'own are such as "{found[0]}". Name the column with the ids with --item'
        )
    learned: tuple[int, ...] = bare.schema.counts  # type: ignore[attr-defined]
    order = sorted(range(len(seen)), key=lambda i: not learned[i])  # stable
    taken_once = set(seen)
    catalogue_only = [item for item in found if item not in taken_once]
    items = (*(seen[i] for i in order), *catalogue_only)
    values = tuple(described.get(item, ("",) * len(fields)) for item in items)
    schema = ItemTextSchema(
        **{role: roles[role] for role in ("user", "item", "time")},
        fields=fields,
        items=items,
        texts=values,
        counts=(*(learned[i] for i in order), *(0 for _ in catalogue_only)),
        bpe=_learn(fields, values) if bpe is None else bpe,
    )
    renamed = torch.zeros(len(seen) + 1, dtype=torch.long)
    renamed[torch.tensor(order) + 1] = torch.arange(1, len(seen) + 1)
    parts, sentences = {}, schema.sentences()
    for part, packed in bare.parts.items():
        assert packed.tokens is not None
        target = packed.targets_at(torch.arange(len(packed)))["token"]
        wanted = torch.where(target >= 0, renamed[target.clamp(min=0)], -1)
        taken = renamed[packed.tokens[:, 0].long()]
        parts[part] = Spelled(sentences, packed.starts, taken, wanted)
    said = list(bare.said)
    said.insert(1, f"items       are read as text: {', '.join(fields)}   ({catalogue.name})")
    findings = list(bare.findings)
    if nameless:
        findings.append(f"{nameless:,} items are not described: they look all the same")
    cold = len(items) - schema.trained
    if cold:
        findings.append(f"{cold:,} items of the catalogue were never taken in training")
    return Dataset(
        name=name, schema=schema, parts=parts, said=tuple(said), findings=tuple(findings)
    )


class Spelled(Packed):
    """Histories of items, read word by word; words are looked up when they are asked for, so that a
    million interactions cost what their ids cost.

    Targets, by step: "token" is the next item where an item ends and it is asked, "item" the item
    that ends here; -1 elsewhere.
    """

    def __init__(
        self,
        sentences: Int[Tensor, "V L 2"],
        starts: Bool[Tensor, " N"],
        items: Int[Tensor, " N"],
        wanted: Int[Tensor, " N"],
        before: int = 0,
    ) -> None:
        lengths = (sentences[:, :, 1] != PADDING).sum(1)[items]
        self._sentences, self.items, self._wanted = sentences.int(), items, wanted
        self._first = lengths.cumsum(0) - lengths
        self._lengths = lengths
        begins = starts.nonzero()[:, 0]
        user = torch.searchsorted(begins, torch.arange(len(items)), right=True) - 1
        self._place = (torch.arange(len(items)) - begins[user] + before) % PLACES + 1
        self._starts = starts
        spelled = torch.zeros(int(lengths.sum()), dtype=torch.bool)
        spelled[self._first[begins]] = True
        super().__init__(spelled)

    def pairs(self) -> tuple[Int[Tensor, " M"], Int[Tensor, " M"]]:
        """Every item that is asked for, after the one before it."""
        asked = self._wanted >= 0
        return self.items[asked], self._wanted[asked]

    def histories(self) -> tuple[Int[Tensor, " N"], ...]:
        """The items of each user."""
        begins = self._starts.nonzero()[:, 0]
        return self.items.split(begins.diff(append=torch.tensor([len(self.items)])).tolist())

    def latest(self, users: int | None = None) -> "Spelled":
        """The last PLACES items of each user, or of some users evenly spread."""
        begins = self._starts.nonzero()[:, 0]
        ends = torch.cat([begins[1:], torch.tensor([len(self.items)])])
        if users is not None and users < len(begins):
            chosen = torch.linspace(0, len(begins) - 1, users).round().long()
            begins, ends = begins[chosen], ends[chosen]
        first = torch.maximum(begins, ends - PLACES)
        sizes = ends - first
        at = torch.arange(int(sizes.sum())) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        at = at + first.repeat_interleave(sizes)
        starts = torch.zeros(len(at), dtype=torch.bool)
        starts[sizes.cumsum(0) - sizes] = True
        return Spelled(self._sentences, starts, self.items[at], self._wanted[at])

    def inputs_at(self, at: Int[Tensor, "..."]) -> tuple[Int[Tensor, "... F"], None]:
        """Word, part and place at these positions."""
        which = torch.searchsorted(self._first, at, right=True) - 1
        within = at - self._first[which]
        words = self._sentences[self.items[which], within].long()
        return torch.cat([words, self._place[which][..., None]], -1), None

    def targets_at(self, at: Int[Tensor, "..."]) -> dict[str, Tensor]:
        """See the class."""
        which = torch.searchsorted(self._first, at, right=True) - 1
        end = at - self._first[which] == self._lengths[which] - 1
        return {
            "token": torch.where(end, self._wanted[which], -1).long(),
            "item": torch.where(end, self.items[which], -1).long(),
        }


def _described(
    catalogue: Table, item: str, schema: ItemTextSchema | None
) -> tuple[list[str], list[tuple[str, ...]], tuple[str, ...]]:
    """Ids, the values of the fields, and the fields."""
    id_ = item_column(catalogue, item)
    named, _ = ids(catalogue, id_, "item")
    kept = np.flatnonzero((named.notna() & ~named.duplicated()).to_numpy())
    own = {_key(column): column for column in catalogue.columns if column != id_}
    fields = tuple(own) if schema is None else schema.fields
    if not own:
        raise DataError(f"{catalogue.name}: has no column that describes an item beside {id_!r}")
    columns = [
        labels(catalogue, own[field], "attribute").iloc[kept].fillna("").tolist()
        if field in own
        else [""] * len(kept)
        for field in fields
    ]
    return named.iloc[kept].tolist(), list(zip(*columns, strict=True)), fields


def _key(column: str) -> str:
    """A column name as words; atomic files write "movie_title:token_seq"."""
    return re.sub(r"[_\s]+", " ", re.sub(r":(token|float)(_seq)?$", "", column)).strip().lower()


def _plain(text: str) -> str:
    return " " + " ".join(text.lower().split())


def _learn(fields: Iterable[str], values: Iterable[Iterable[str]]) -> str:
    """A byte-level BPE of what is written in the catalogue."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [*fields, *(text for row in values for text in row if text)]
    tokenizer.train_from_iterator(map(_plain, texts), trainer)
    return tokenizer.to_str()


@lru_cache(maxsize=8)
def _load(saved: str) -> Any:
    from tokenizers import Tokenizer  # noqa: PLC0415

    try:
        return Tokenizer.from_str(saved)
    except Exception as error:  # what the library raises has no narrower type
        raise DataError(f"schema: not a tokenizer ({error})") from None
