"""A model of labelled sequences: it says their class, their number or their text."""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float

from stepscan.apps.labelled.outputs import all_outputs, last_outputs
from stepscan.apps.labelled.texts import letters, spelled
from stepscan.apps.model import Model
from stepscan.apps.next_step import Prediction
from stepscan.data.base import DataError, Packed, Schema
from stepscan.data.labelled import LabelledSchema
from stepscan.data.tables import labels
from stepscan.generate import ctc
from stepscan.models import Classify, Ctc, Regress
from stepscan.models.heads import HeadConfig

if TYPE_CHECKING:
    import pandas as pd

Answer = list[Prediction] | float | str
"""The likeliest classes, best first; or a number in its own unit; or a text."""


class LabelledModel(Model):
    """What `fit` returns for labelled sequences."""

    asks: ClassVar[tuple[str, ...]] = (
        "predict",
        "predict_many",
        "predict_table",
        "predict_stream",
        "probabilities",
        "stream",
    )
    schema: LabelledSchema

    @classmethod
    def answers(cls, head: HeadConfig, schema: Schema) -> bool:
        """Logits of its classes or symbols, or one number."""
        assert isinstance(schema, LabelledSchema)
        if schema.answer == "text":
            return isinstance(head, Ctc) and head.symbols == len(schema.classes)
        if schema.answer == "number":
            return isinstance(head, Regress) and head.outputs == 1
        return isinstance(head, Classify) and head.classes == len(schema.classes)

    def predict(self, sequence: Any, *, top: int = 3, beams: int = 1) -> Answer:
        """The label of one sequence.

        Args:
            sequence: [steps] or [steps, channels], or a frame with the channels of the training
                data, in order of time.
            top: How many classes.
            beams: Of a text: 1 takes the likeliest symbol at every step, more search (CTC prefix
                beam search).
        """
        return self.predict_many([sequence], top=top, beams=beams)[0]

    def predict_many(
        self, sequences: "Sequence[Any]", *, top: int = 3, beams: int = 1
    ) -> list[Answer]:
        """The labels of several sequences, of any lengths; see `predict`."""
        return self._answers(self.schema.encode(sequences)[0], top, beams)

    def predict_table(
        self, data: "str | os.PathLike[str] | pd.DataFrame", *, top: int = 3, beams: int = 1
    ) -> dict[str, Answer]:
        """The label of every sequence in a table, by its name; see `predict`."""
        table = self.table(data)
        packed, names = self.schema.encode(table)
        for channel in self.schema.channels:
            if labels(table, channel, "channel").isna().all():
                warnings.warn(
                    f'{table.name}: column "{channel}" holds no values; it is read as missing',
                    stacklevel=2,
                )
        return dict(zip(names, self._answers(packed, top, beams), strict=True))

    @torch.no_grad()
    def probabilities(self, sequences: "Sequence[Any]") -> Float[np.ndarray, "S K"]:
        """The probability of every class, in the order of `schema.classes`."""
        if self.schema.answer != "class":
            raise DataError(f"probabilities: this model says a {self.schema.answer}; ask predict")
        logits = last_outputs(self.network, self.schema.encode(sequences)[0])
        return logits.double().softmax(-1).numpy()

    def predict_stream(
        self, pieces: Iterable[Any], *, top: int = 3, beams: int = 1
    ) -> Iterator[Answer]:
        """The answer so far after each piece of a sequence, of one step or of many.

        It does not depend on how the sequence is cut: `stream` gives what it is made of after every
        single step: probabilities of the classes, the number, or log probabilities of the symbols.
        Where a step has several samples (`--patch`), one that is not full yet is answered for as if
        the sequence ended there.
        """
        _check(top, beams)
        state = None
        text: ctc.Greedy | ctc.Beam = ctc.Greedy() if beams == 1 else ctc.Beam(beams)
        for piece in pieces:
            said, state = self.stream(piece, state)
            rest = said[:0]
            if state.memory is not None and len(state.memory):
                rest, _ = self.stream(None, state)
            if self.schema.answer == "text":
                text = text.read(said)
                yield letters(self.schema, (text.read(rest) if len(rest) else text).text)
                continue
            last = torch.cat([said, rest])[-1]
            yield float(last) if self.schema.answer == "number" else self._named(last, top)

    def _answers(self, packed: Packed, top: int, beams: int) -> list[Answer]:
        _check(top, beams)
        if self.schema.answer == "text":
            return [spelled(self.schema, x, beams) for x in all_outputs(self.network, packed)]
        outputs = last_outputs(self.network, packed)
        if self.schema.answer == "number":
            return (outputs[:, 0].double() * self.schema.spread + self.schema.middle).tolist()
        return [self._named(row, top) for row in outputs.double().softmax(-1)]

    def _named(self, chance: torch.Tensor, top: int) -> list[Prediction]:
        best = chance.topk(min(top, len(chance))).indices.tolist()
        return [Prediction(self.schema.classes[i], float(chance[i])) for i in best]


def _check(top: int, beams: int) -> None:
    if min(top, beams) < 1:
        raise ValueError(f"predict: want top >= 1 and beams >= 1, got top={top}, beams={beams}")


MODEL = LabelledModel
