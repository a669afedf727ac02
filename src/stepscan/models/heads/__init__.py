"""Heads: what a model says after every step. A head is a frozen config that builds its module.

One file a head, and one line in HEADS.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from stepscan.models.heads.base import HeadConfig, Logits
from stepscan.models.heads.classify import Classify
from stepscan.models.heads.cloze import Cloze
from stepscan.models.heads.ctc import Ctc
from stepscan.models.heads.enhanced_item import EnhancedItem
from stepscan.models.heads.forecast import Forecast
from stepscan.models.heads.next_event import EventOutput, NextEvent
from stepscan.models.heads.next_item import ItemLogits, ItemScores, NextItem
from stepscan.models.heads.next_sentence import NextSentence
from stepscan.models.heads.next_token import NextToken
from stepscan.models.heads.regress import Regress
from stepscan.names import lookup

__all__ = [
    "HEADS",
    "Classify",
    "Cloze",
    "Ctc",
    "EnhancedItem",
    "EventOutput",
    "Forecast",
    "HeadConfig",
    "ItemLogits",
    "ItemScores",
    "Logits",
    "NextEvent",
    "NextItem",
    "NextSentence",
    "NextToken",
    "Regress",
    "from_dict",
    "to_dict",
]

HEADS: Mapping[str, type[HeadConfig]] = MappingProxyType(
    {
        head.name: head
        for head in (
            Classify,
            Cloze,
            Ctc,
            EnhancedItem,
            Forecast,
            NextEvent,
            NextItem,
            NextSentence,
            NextToken,
            Regress,
        )
    }
)


def to_dict(head: HeadConfig) -> dict[str, Any]:
    """Plain data; the inverse of `from_dict`."""
    return {"name": head.name, **dataclasses.asdict(head)}


def from_dict(data: Mapping[str, Any]) -> HeadConfig:
    """A head from plain data; unknown names and keys are errors."""
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    cls = lookup(HEADS, str(options.pop("name", "")), kind="head")
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key in options:
        lookup(known, key, kind=f"field of the head {cls.name}")
    return cls(**options)
