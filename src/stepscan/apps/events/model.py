"""A model of events: what happens next in a case, when, and how the case goes on to its end."""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from stepscan.apps.events.mixture import median
from stepscan.apps.events.suffix import (
    SAMPLES,
    Found,
    Rows,
    continue_cases,
    draw_cases,
    last_step,
    read_histories,
)
from stepscan.apps.events.suffix import suffixes as continued
from stepscan.apps.next_step import NextStepModel
from stepscan.apps.reading import read_piece
from stepscan.data.base import Packed, Schema
from stepscan.data.events import EventSchema
from stepscan.models import Inputs, NextEvent
from stepscan.models.heads import HeadConfig
from stepscan.names import lookup

if TYPE_CHECKING:
    import pandas as pd

ROWS = 64  # cases of a table read side by side


class NewInTableWarning(UserWarning):
    """A table holds activities or attributes that training never showed; they are read as new."""


class Suffix(NamedTuple):
    """How a case may go on."""

    what: tuple[str, ...]
    """The activities to come, in order."""
    times: tuple[float, ...]
    """When each of them comes, in seconds (or plain units of time) after the last event."""
    probability: float
    """Of just these activities, with the end after them if it is reached; times do not count."""
    ended: bool
    """Whether the case ends after them; else it was cut after so many events."""


class EventModel(NextStepModel):
    """What `fit` returns for event logs."""

    asks: ClassVar[tuple[str, ...]] = (
        "predict",
        "next_time",
        "remaining_time",
        "suffix",
        "predict_table",
        "predict_frame",
        "predict_file",
        "stream",
    )
    schema: EventSchema

    @classmethod
    def answers(cls, head: HeadConfig, schema: Schema) -> bool:
        """Logits of its activities (and of the end of a case), and times."""
        return (
            isinstance(head, NextEvent)
            and isinstance(schema, EventSchema)
            and (head.vocab, head.remaining) == (schema.tokens[0], schema.ends)
        )

    def next_time(
        self, history: "Sequence[Any] | pd.DataFrame", times: Iterable[Any] | None = None
    ) -> float:
        """The median time to the next event of a case, in seconds (or plain units of time)."""
        said = self._read(history, times, "next_time").said
        return self._seconds(said.gap)[0]

    def remaining_time(
        self, history: "Sequence[Any] | pd.DataFrame", times: Iterable[Any] | None = None
    ) -> float:
        """The median time to the last event of a case, in seconds (or plain units of time).

        It is an answer of its own, learned from the cases that are complete: not the sum of the
        gaps of a predicted suffix.
        """
        self._wants_ends("remaining_time")
        return self._seconds(self._read(history, times, "remaining_time").said.remaining)[0]

    def suffix(
        self,
        history: "Sequence[Any] | pd.DataFrame",
        times: Iterable[Any] | None = None,
        *,
        beams: int | None = None,
        samples: int = SAMPLES,
        seed: int = 0,
        most: int | None = None,
    ) -> list[Suffix]:
        """How a case may go on to its end, the best guess first.

        Without `beams`, ways to go on are drawn as often as the model expects them, and the one
        most like the others comes first: it is right to the largest part, in the mean. The
        likeliest way of all is another thing, often a short one.

        Args:
            history: The activities so far, as in `predict`.
            times: Of them, if they are known.
            beams: Instead, follow so many of the likeliest ways side by side, and order them by
                probability; 1 takes the likeliest activity each time.
            samples: How many ways are drawn; different ones are returned once.
            seed: Decides what is drawn.
            most: Events after which a way is cut; None is the longest case of training (at most
                128), or 10 where cases do not end.
        """
        _check_at_least_one(beams=beams, samples=samples, most=most)
        rows = self._read(history, times, "suffix")
        most = self.schema.suffix if most is None else most
        if beams is None:
            rng = torch.Generator().manual_seed(seed)
            found = draw_cases(self.network, self.schema, rows, most=most, samples=samples, rng=rng)
        else:
            found = continue_cases(self.network, self.schema, rows, most=most, beams=beams)
        return [self._suffix(one) for one in found[0]]

    def predict_table(
        self,
        data: "str | os.PathLike[str] | pd.DataFrame",
        *,
        what: str = "next",
        top: int = 3,
        exclude_seen: bool = False,
        beams: int | None = None,
    ) -> dict[str, Any]:
        """One answer for every case of a table, by its name.

        Activities and attributes that training never showed are read as new, with a warning.

        Args:
            data: A file or a frame with the columns of the training data.
            what: "next", the likeliest next activities; "time" to the next event or "remaining"
                time to the last one, in seconds (or plain units of time); "suffix", the best guess
                of how the case goes on.
            top: How many next activities.
            exclude_seen: Do not offer activities of the case.
            beams: As in `suffix`.
        """
        ask = lookup(TABLE_QUESTIONS, what, kind="question to a table of events")
        _check_at_least_one(beams=beams)
        if what == "remaining":
            self._wants_ends("predict_table")
        table = self.table(data)
        packed, names = self.schema.encode(table)
        for words in self.schema.never_seen(table):
            warnings.warn(words, NewInTableWarning, stacklevel=2)
        if what == "next":
            if top < 1:
                raise ValueError(f"predict: want top >= 1, got {top}")
            return self.next_of_each(packed, names, top=top, exclude_seen=exclude_seen)
        return dict(zip(map(str, names), ask(self, packed, beams), strict=True))

    def _time_table(self, packed: Packed, beams: int | None) -> list[float]:
        return self._times(packed, "gap")

    def _remaining_table(self, packed: Packed, beams: int | None) -> list[float]:
        return self._times(packed, "remaining")

    def _times(self, packed: Packed, which: str) -> list[float]:
        begins, ends = packed.begins, packed.begins + packed.lengths - 1
        found = torch.empty(len(begins), dtype=torch.float64)
        for rows in packed.lengths.argsort(stable=True).split(ROWS):
            read = read_histories(self.network, packed, begins[rows], ends[rows], reach=self.reach)
            found[rows] = torch.tensor(self._seconds(getattr(read.said, which))).double()
        return found.tolist()

    def _suffix_table(self, packed: Packed, beams: int | None) -> list[Suffix]:
        begins, ends = packed.begins, packed.begins + packed.lengths - 1
        reach = self.reach
        found = continued(self.network, self.schema, packed, begins, ends, beams=beams, reach=reach)
        return [self._suffix(one[0]) for one in found]

    def _read(self, history: Any, times: Any, verb: str) -> Rows:
        """A history to its last event."""
        if not len(history):
            raise ValueError(f"{verb}: want at least one event of history, got none")
        inputs = read_piece(self.schema, history, stamps=times).inputs
        said, state = self.last_and_state(inputs)
        last = Inputs(*(None if x is None else x[:, -1:] for x in inputs))
        return Rows(state, last_step(said), last)

    def _seconds(self, mixture: Float[Tensor, "B 1 3 M"] | None) -> list[float]:
        assert mixture is not None
        return (self.schema.unit * median(mixture[:, -1]).double()).tolist()

    def _suffix(self, found: Found) -> Suffix:
        names, unit = self.schema.names, self.schema.unit
        chance = float(torch.tensor(found.log_chance).exp())
        what = tuple(names[i] for i in found.symbols)
        return Suffix(what, tuple(unit * t for t in found.times), chance, found.ended)

    def _wants_ends(self, verb: str) -> None:
        if not self.schema.ends:
            raise ValueError(
                f"{verb}: this model was fitted to a log whose cases do not end, so it knows of no "
                "remaining time; if they are complete, fit again with --ends yes"
            )


TABLE_QUESTIONS: Mapping[str, Any] = MappingProxyType(
    {
        "next": None,
        "time": EventModel._time_table,
        "remaining": EventModel._remaining_table,
        "suffix": EventModel._suffix_table,
    }
)
MODEL = EventModel


def _check_at_least_one(**asked: int | None) -> None:
    for name, value in asked.items():
        if value is not None and value < 1:
            raise ValueError(f"suffix: want {name} >= 1, got {value}")
