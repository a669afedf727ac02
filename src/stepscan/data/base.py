"""What every kind of data becomes: sequences packed end to end, and batches drawn from them."""

import abc
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

PARTS = ("train", "valid", "test")


class DataError(ValueError):
    """Bad input, in one line: file, row and column, what was wanted, what came, what to do."""


class Batch(NamedTuple):
    """`targets[name][b, t]` is asked for after reading the inputs of row b up to and with step t.

    "token" and "label" are int64, -1 where not asked. "gap" and "future" are float32, NaN where not
    asked.
    """

    tokens: Int[Tensor, "B T F"] | None
    reals: Float[Tensor, "B T C"] | None
    resets: Bool[Tensor, "B T"]
    targets: dict[str, Tensor]


class Packed:
    """All sequences of one part, laid end to end; N steps in all."""

    def __init__(
        self,
        starts: Bool[Tensor, " N"],
        *,
        tokens: Int[Tensor, "N F"] | None = None,
        reals: Float[Tensor, "N C"] | None = None,
        targets: Mapping[str, Shaped[Tensor, "N ..."]] | None = None,
    ) -> None:
        assert not len(starts) or bool(starts[0]), "the first step starts a sequence"
        self.starts = starts
        """True at the first step of each sequence."""
        self.tokens = tokens
        """In any integer type that holds the vocabulary: text stays small in memory."""
        self._reals = reals
        self._targets = dict(targets or {})

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def reals(self) -> Float[Tensor, "N C"] | None:
        """The real inputs of every step."""
        return self._reals

    @property
    def targets_as_stored(self) -> Mapping[str, Shaped[Tensor, "N ..."]]:
        """All targets by name, in the types they are kept in."""
        return self._targets

    @cached_property
    def begins(self) -> Int[Tensor, " S"]:
        """The first position of each of the S sequences."""
        return self.starts.nonzero()[:, 0]

    @cached_property
    def lengths(self) -> Int[Tensor, " S"]:
        """The number of steps of each sequence."""
        return self.begins.diff(append=torch.tensor([len(self)]))

    def inputs_at(
        self, at: Int[Tensor, "..."]
    ) -> tuple[Int[Tensor, "... F"] | None, Float[Tensor, "... C"] | None]:
        """Tokens and reals at these positions, in the types of a `Batch`."""
        tokens = None if self.tokens is None else self.tokens[at].long()
        return tokens, None if self._reals is None else self._reals[at].float()

    def targets_at(self, at: Int[Tensor, "..."]) -> dict[str, Tensor]:
        """Targets by name at these positions, in the types of a `Batch`."""
        found = {name: target[at] for name, target in self._targets.items()}
        return {
            name: target.float() if target.is_floating_point() else target.long()
            for name, target in found.items()
        }


S = TypeVar("S", bound="Schema")  # not Self: the shape hook decorates methods one by one


@dataclass(frozen=True, kw_only=True)
class Schema(abc.ABC):
    """What is needed to encode new data and to read a model's outputs: plain values only."""

    kind: ClassVar[str]

    @property
    @abc.abstractmethod
    def tokens(self) -> tuple[int, ...]:
        """The vocabulary size of each token column."""

    @property
    @abc.abstractmethod
    def reals(self) -> int:
        """The number of real input channels."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; `from_dict` of the result is equal to this schema."""
        return {"kind": self.kind} | {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_dict(cls: type[S], saved: Mapping[str, Any]) -> S:
        """Read what `to_dict` wrote; unknown, missing or foreign keys are errors. Fields with a
        default may be missing: they came later."""
        later = {f.name: f.default for f in fields(cls) if f.default is not MISSING}
        saved = later | dict(saved)
        wanted = {"kind"} | {f.name for f in fields(cls)}
        if saved.get("kind") != cls.kind:
            raise DataError(f"schema: want kind {cls.kind!r}, got {saved.get('kind')!r}")
        if wanted != set(saved):
            raise DataError(
                f"schema of kind {cls.kind!r}: missing keys {sorted(wanted - set(saved))}, "
                f"unknown keys {sorted(set(saved) - wanted)}; it was written by another version"
            )
        values = {f.name: _frozen(saved[f.name]) for f in fields(cls)}
        hints = get_type_hints(cls)
        for name, value in values.items():
            if not _fits(value, hints[name]):
                raise DataError(f"schema of kind {cls.kind!r}: want {name} of type {hints[name]}")
        return cls(**values)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is of this type: plain ones, unions and tuples of one type."""
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(v, get_args(hint)[0]) for v in value)
    if get_args(hint):
        return any(_fits(value, one) for one in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _frozen(value: Any) -> Any:
    """JSON has lists where a frozen dataclass has tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Real data of one kind, split without leaks."""

    name: str
    schema: Schema
    parts: dict[str, Packed]
    """"train", "valid" and "test"; the last two with the context they need, not asked for."""
    said: tuple[str, ...]
    """What was inferred, one short line a fact."""
    findings: tuple[str, ...] = ()
    """Problems noticed in the data: duplicates, gaps, ties, constant columns."""

    @property
    def kind(self) -> str:
        """The key in KINDS."""
        return self.schema.kind

    @property
    def inputs(self) -> tuple[tuple[int, ...], int]:
        """Vocabulary sizes of the token columns, and the number of real channels."""
        return self.schema.tokens, self.schema.reals

    def lines(self) -> list[str]:
        """What was inferred, then what was noticed."""
        return [*self.said, *(f"note        {finding}" for finding in self.findings)]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How to read a data set; everything left out is inferred, and said."""

    kind: str | None = None
    """text, series, events, interactions, responses or labelled."""
    id: str | None = None
    """Series, labelled: the column that tells them apart."""
    time: str | None = None
    """The column with the time."""
    target: str | None = None
    """Series: the column to forecast; several, separated by commas, become several series."""
    case: str | None = None
    """Events: the column that tells cases apart."""
    activity: str | None = None
    """Events: the column with what happened."""
    attributes: tuple[str, ...] = ()
    """Events: further categorical columns, known when the event happens."""
    user: str | None = None
    """Interactions, responses: the column with the user."""
    item: str | None = None
    """Interactions: the column with the item."""
    clock: str = "auto"
    """Interactions: whether a model reads their times too: yes, no, or as it asks for (auto), which
    only unirec does."""
    question: str | None = None
    """Responses: the column with the question."""
    correct: str | None = None
    """Responses: the column that says whether it was answered right."""
    skill: str | None = None
    """Responses: the column with what the question is about."""
    items: str | None = None
    """Interactions: a table that describes the items, which are then read as text."""
    text: str | None = None
    """Text as jsonl: the field with the text."""
    covariates: tuple[str, ...] | None = None
    """Series: further numeric columns to read; labelled: the channels; left out, all of them."""
    future: tuple[str, ...] = ()
    """Series: covariates that are known ahead over the horizon, such as holidays."""
    static: tuple[str, ...] | None = None
    """Series: columns with one value a series, numbers or words; left out, those that are so."""
    horizon: int | None = None
    """Series: the number of steps to forecast."""
    season: int | None = None
    """Series: the number of steps of the season; 0 for none."""
    missing: tuple[str, ...] = ()
    """Further strings that mean a missing value."""
    tokenizer: str = "byte"
    """Text: byte or bpe (learned from the training part)."""
    vocabulary: int = 2048
    """Text with bpe: the number of tokens to learn."""
    label: str | None = None
    """Labelled: the column with the label of a sequence, the same in all its rows."""
    answer: str | None = None
    """Labelled: what the label is: class, number, or text that the sequence spells."""
    asked: str = "last"
    """Labelled: train the answer after the last step (last), or after every one (every)."""
    class_weights: str = "none"
    """Labelled: none, or balanced, so that rare classes count as much as frequent ones."""
    smoothing: float = 0.0
    """Labelled: the share of a class that training spreads evenly over all of them."""
    augment: str = ""
    """Labelled: how training disturbs the channels: jitter, scale, magnitude, warp and drop, as in
    jitter=0.1,warp=0.2."""
    patch: int = 1
    """Labelled: samples that make one step; of long, finely sampled sequences, such as 10 or 20."""
    group: str | None = None
    """Labelled: sequences that share this are held out together, such as those of one person."""
    split: str = "time"
    """Events: hold out the cases that begin last (time), the last by name, or any (random)."""
    ends: str = "auto"
    """Events: whether cases are complete, so that their end is learned: yes, no or auto."""
    minimum: int = 5
    """Interactions: items seen less often are left out."""
    large: float = 256.0
    """Events: files of more megabytes than this are read in pieces and packed on disk."""
    scratch: str | None = None
    """Events: the folder for what is packed on disk; left out, that for temporary files."""
    valid: float | None = None
    """The part held out for choosing: a fraction below 1, or for series a number of steps."""
    test: float | None = None
    """The part held out for the final figure, in the same way."""
