"""What comes next, of events and of items: named, with probabilities."""

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from stepscan.apps.model import Model
from stepscan.apps.ranking import best, without
from stepscan.apps.reading import read_piece
from stepscan.data.batches import places
from stepscan.data.events import EventSchema
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
        packed, names = schema.encode(self.table(data))
        ends = packed.begins + packed.lengths - 1
        found: dict[str, list[Prediction]] = {}
        reach = self.reach
        walked = walk_outputs(self.network, packed, rows=ROWS, length=reach, slots=reach)
        for at, (_, said) in zip(places(packed, rows=ROWS, length=reach), walked, strict=True):
            sequence = torch.searchsorted(packed.begins, at.clamp(min=0), right=True) - 1
            last = (at >= 0) & (at == ends[sequence])
            logits = said.logits if isinstance(schema, EventSchema) else said
            for which, scores in zip(sequence[last].tolist(), logits[last], strict=True):
                begin, end = int(packed.begins[which]), int(ends[which]) + 1
                assert packed.tokens is not None
                seen = packed.tokens[begin:end, 0].long() if exclude_seen else None
                found[str(names[which])] = self._named(scores, top, seen)
        return {str(name): found[str(name)] for name in names}

    def _named(self, logits: Tensor, count: int, seen: Tensor | None) -> list[Prediction]:
        """The likeliest of what may be offered, with the probabilities among that."""
        schema = self.schema
        names = schema.activities if isinstance(schema, EventSchema) else schema.items
        offered = without(logits, seen)
        chance = offered.softmax(-1)
        return [Prediction(names[i - 1], float(chance[i])) for i in best(offered, count)]
