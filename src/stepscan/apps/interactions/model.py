"""A model of interactions: what a user takes next."""

from typing import ClassVar

from stepscan.apps.next_step import NextStepModel
from stepscan.data.base import Schema
from stepscan.data.interactions import InteractionSchema
from stepscan.models import NextToken
from stepscan.models.heads import HeadConfig


class InteractionModel(NextStepModel):
    """What `fit` returns for histories of users."""

    asks: ClassVar[tuple[str, ...]] = ("predict", "predict_table", "stream")
    schema: InteractionSchema

    @classmethod
    def answers(cls, head: HeadConfig, schema: Schema) -> bool:
        """Logits of its items."""
        return isinstance(head, NextToken) and head.vocab == schema.tokens[0]


MODEL = InteractionModel
