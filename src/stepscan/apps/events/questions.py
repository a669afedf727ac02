"""Which held-out cases are asked for their suffix, and after how many events."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from stepscan.apps.events.metrics import similarity
from stepscan.data.base import Packed
from stepscan.data.events import EventSchema

ASKED = 200  # cases
CUTS = (1 / 4, 1 / 2, 3 / 4)


class Questions(NamedTuple):
    """Some cases, each cut once."""

    begins: Int[Tensor, " Q"]
    """The place of the first event of each case."""
    ends: Int[Tensor, " Q"]
    """The place of the last event that is shown."""
    histories: list[NDArray[np.int64]]
    """The symbols that are shown."""
    real: list[list[int]]
    """The symbols that came after it: to the end of the case, or the next `schema.suffix`."""

    def similarity(self, predicted: list[list[int]]) -> float:
        """The mean over all cases."""
        pairs = zip(predicted, self.real, strict=True)
        return sum(similarity(a, b) for a, b in pairs) / len(self.real)


def suffix_questions(packed: Packed, schema: EventSchema, most: int = ASKED) -> Questions:
    """At most so many cases, evenly spread; of those with two events or more.

    Where cases end, only those are asked whose end is known.
    """
    assert packed.tokens is not None
    begins, lengths = packed.begins, packed.lengths
    usable = lengths > 1
    if schema.ends:
        last = packed.targets_at(begins + lengths - 1)["token"]
        usable &= last == schema.end
    cases = usable.nonzero()[:, 0]
    if len(cases) > most:
        cases = cases[torch.linspace(0, len(cases) - 1, most).round().long()]
    shown: list[int] = []
    histories: list[NDArray[np.int64]] = []
    real: list[list[int]] = []
    for i, case in enumerate(cases.tolist()):
        begin, length = int(begins[case]), int(lengths[case])
        seen = max(1, min(length - 1, round(length * CUTS[i % len(CUTS)])))
        upto = length if schema.ends else min(length, seen + schema.suffix)
        shown.append(begin + seen - 1)
        histories.append(packed.tokens[begin : begin + seen, 0].long().numpy())
        real.append(packed.tokens[begin + seen : begin + upto, 0].tolist())
    return Questions(begins[cases], torch.tensor(shown, dtype=torch.long), histories, real)


def cut(found: list[list[int]], questions: Questions, schema: EventSchema) -> list[list[int]]:
    """Where cases do not end, as many events as really came: more than that nobody knows."""
    if schema.ends:
        return found
    return [said[: len(real)] for said, real in zip(found, questions.real, strict=True)]
