"""A model of events: what happens next in a case, and when."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from stepscan.apps.events.domain import median_gap
from stepscan.apps.next_step import NextStepModel
from stepscan.apps.reading import read_piece
from stepscan.data.base import Schema
from stepscan.data.events import EventSchema
from stepscan.models import NextEvent
from stepscan.models.heads import HeadConfig


class EventModel(NextStepModel):
    """What `fit` returns for event logs."""

    asks: ClassVar[tuple[str, ...]] = ("predict", "predict_table", "next_time", "stream")
    schema: EventSchema

    @classmethod
    def answers(cls, head: HeadConfig, schema: Schema) -> bool:
        """Logits of its activities, and a time."""
        return isinstance(head, NextEvent) and head.vocab == schema.tokens[0]

    def next_time(self, history: Sequence[Any], times: Iterable[Any]) -> float:
        """The median time to the next event of a case, in seconds (or plain units of time)."""
        schema = self.schema
        if not len(history):
            raise ValueError("next_time: want at least one event of history, got none")
        outputs = self.last(read_piece(schema, history, stamps=times).inputs)
        return schema.unit * float(median_gap(outputs.gap[0, -1:]))


MODEL = EventModel
