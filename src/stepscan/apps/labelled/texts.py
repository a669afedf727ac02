"""Texts that sequences spell: what a CTC head says, and what is written."""

import torch
from jaxtyping import Float
from torch import Tensor

from stepscan.data.base import Packed
from stepscan.data.labelled import LabelledSchema
from stepscan.generate import ctc


def spelled(schema: LabelledSchema, outputs: Float[Tensor, "T V"], beams: int = 1) -> str:
    """The text in what the head said after every step; `beams` above 1 searches for it."""
    if beams < 1:
        raise ValueError(f"want beams >= 1, got {beams}")
    if beams == 1:
        return letters(schema, ctc.greedy(outputs))
    return letters(schema, ctc.beam(outputs.double().log_softmax(-1), beams))


def letters(schema: LabelledSchema, symbols: "list[int] | tuple[int, ...]") -> str:
    """Symbols as text."""
    return "".join(schema.classes[i - 1] for i in symbols)


def written(schema: LabelledSchema, packed: Packed) -> list[str]:
    """The text of each sequence."""
    symbol = packed.targets_at(torch.arange(len(packed)))["symbol"]
    rows = symbol.split(packed.lengths.tolist())
    return [letters(schema, row[row > 0].tolist()) for row in rows]
