"""What comes next, of events and of items: named, with probabilities."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from stepscan.apps.answers import answer_frame, predict_file
from stepscan.apps.model import Model
from stepscan.apps.ranking import best, without
from stepscan.apps.reading import read_piece
from stepscan.data.base import Packed
from stepscan.data.batches import places
from stepscan.data.events import EventSchema
from stepscan.data.tables import Table
from stepscan.train.evaluate import walk_outputs

if TYPE_CHECKING:
    import pandas as pd

ROWS = 64  # sequences of a table read side by side


class Prediction(NamedTuple):
    """A likely next event, item or class."""

    what: str
    probability: float


class NextStepModel(Model):
    """Base of the models of events and of interactions."""

    schema: Any  # EventSchema | InteractionSchema

    def predict(
        self,
        history: "Sequence[Any] | pd.DataFrame",
        *,
        top: int = 3,
        times: Iterable[Any] | None = None,
        exclude_seen: bool = False,
    ) -> list[Prediction]:
        """The likeliest next events of a case, or next items of a user.

        Args:
            history: Activities or items in order, of a case or user never seen before or not, as a
                list, an array or a frame with the columns of the training data.
            top: How many.
            times: Of the events, if they are known.
            exclude_seen: Do not offer items of the history.
        """
        if top < 1:
            raise ValueError(f"predict: want top >= 1, got {top}")
        if not len(history):
            raise ValueError("predict: want at least one step of history, got none")
        schema = self.schema
        inputs = read_piece(schema, history, stamps=times).inputs
        outputs = self.last(inputs)
        logits = outputs.logits if isinstance(schema, EventSchema) else outputs
        assert inputs.tokens is not None
        seen = inputs.tokens[0, :, 0] if exclude_seen else None
        return self._named(logits[0, -1], top, seen)

    def predict_table(
        self,
        data: "str | os.PathLike[str] | pd.DataFrame",
        *,
        top: int = 3,
        exclude_seen: bool = False,
    ) -> dict[str, list[Prediction]]:
        """The likeliest next events or items of every case or user in a table, by its name."""
        schema = self.schema
        if top < 1:
            raise ValueError(f"predict: want top >= 1, got {top}")
        table = self.table(data)
        packed, names = schema.encode(table)
        self.check_read(table, packed)
        return self.next_of_each(packed, names, top=top, exclude_seen=exclude_seen)

    def check_read(self, table: Table, packed: Packed) -> None:
        """Warn of rows that training never showed; an error where there are no others."""

    def next_of_each(
        self, packed: Packed, names: Sequence[Any], *, top: int, exclude_seen: bool
    ) -> dict[str, list[Prediction]]:
        """The likeliest next events or items of every sequence, by its name."""
        ends = packed.begins + packed.lengths
        found: dict[str, list[Prediction]] = {}
        for sequences, logits in self.said_last(packed):
            if not exclude_seen:
                said = self._named_rows(logits, top)
                found |= {
                    str(names[i]): row for i, row in zip(sequences.tolist(), said, strict=True)
                }
                continue
            for which, scores in zip(sequences.tolist(), logits, strict=True):
                assert packed.tokens is not None
                own = packed.tokens[int(packed.begins[which]) : int(ends[which]), 0]
                seen = own.long() if exclude_seen else None
                found[str(names[which])] = self._named(scores, top, seen)
        return {str(name): found[str(name)] for name in names}

    def said_last(self, packed: Packed) -> Iterator[tuple[Tensor, Tensor]]:
        """Some sequences by number [n], and the logits after their last step [n V]; each once."""
        ends = packed.begins + packed.lengths - 1
        reach = self.reach
        walked = walk_outputs(self.network, packed, rows=ROWS, length=reach, slots=reach)
        for at, (_, said) in zip(places(packed, rows=ROWS, length=reach), walked, strict=True):
            sequence = torch.searchsorted(packed.begins, at.clamp(min=0), right=True) - 1
            last = (at >= 0) & (at == ends[sequence])
            logits = said.logits if isinstance(self.schema, EventSchema) else said
            yield sequence[last], logits[last]

    def predict_frame(
        self, data: "str | os.PathLike[str] | pd.DataFrame", **asked: Any
    ) -> "pd.DataFrame":
        """`predict_table` as a frame: a row for each case or user and place, the likeliest first.

        Columns: the case or user and the activity or item as they are called in the training data,
        `place` from 1, `probability`; of other questions `seconds`, or the fields of the answer.
        """
        return answer_frame(self.schema, self.predict_table(data, **asked))

    def predict_file(
        self, data: "str | os.PathLike[str]", out: "str | os.PathLike[str]", **asked: Any
    ) -> int:
        """`predict_frame` of a file of any size, written to another as it goes.

        See `answers.predict_file` for what can be asked. Returns the number of rows written.
        """
        return predict_file(self, data, out, **asked)

    def _named_rows(self, logits: Tensor, count: int) -> list[list[Prediction]]:
        """`_named` of every row [n V], nothing left out."""
        schema = self.schema
        names = schema.names if isinstance(schema, EventSchema) else ("", *schema.items)
        offered = without(logits)
        likely = offered.topk(min(count, len(names) - 1)).indices
        chances = offered.softmax(-1).gather(-1, likely).tolist()
        return [
            [Prediction(names[i], p) for i, p in zip(places, row, strict=True)]
            for places, row in zip(likely.tolist(), chances, strict=True)
        ]

    def _named(self, logits: Tensor, count: int, seen: Tensor | None) -> list[Prediction]:
        """The likeliest of what may be offered, with the probabilities among that."""
        schema = self.schema
        names = schema.names[1:] if isinstance(schema, EventSchema) else schema.items
        offered = without(logits, seen)
        chance = offered.softmax(-1)
        return [Prediction(names[i - 1], float(chance[i])) for i in best(offered, count)]
