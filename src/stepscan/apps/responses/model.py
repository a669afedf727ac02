"""A model of answers: how likely a user gets each question right, and what to review."""

import os
import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch

from stepscan import state as states
from stepscan.apps.model import Model, StreamState
from stepscan.apps.next_step import Prediction
from stepscan.data.base import DataError, Schema
from stepscan.data.responses import NO_PAST, ResponseSchema, read_answers, word_of
from stepscan.data.tables import Table, times
from stepscan.models import Classify, Inputs
from stepscan.models.heads import HeadConfig
from stepscan.names import did_you_mean

if TYPE_CHECKING:
    import pandas as pd

ROWS = 1024  # questions asked side by side
HANDED = "the data given"
HINT = 'want pairs of a question and whether it was right, such as ("q7", 1) or "q7=1"'


class Answer(NamedTuple):
    """A question (its number), whether it was answered right, and when."""

    question: int
    right: int
    stamp: int | None


class ResponseModel(Model):
    """What `fit` returns for answers to questions."""

    asks: ClassVar[tuple[str, ...]] = ("predict", "predict_table", "review", "stream", "ask")
    schema: ResponseSchema

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.schema.questions, 1)}

    @classmethod
    def answers(cls, head: HeadConfig, schema: Schema) -> bool:
        """Wrong or right."""
        return isinstance(head, Classify) and head.classes == 2

    def predict(
        self,
        history: "Sequence[Any] | pd.DataFrame",
        *,
        questions: Sequence[Any] | None = None,
        top: int | None = None,
        times: Iterable[Any] | None = None,
        now: Any = None,
    ) -> list[Prediction]:
        """The probability of a right answer to each of these questions, asked next.

        Args:
            history: Pairs of a question and whether it was right, in order, of a user never seen
                before or not; "question=1" and "question=0" will do, or a frame with the columns of
                the training data. Empty for a user of whom nothing is known.
            questions: Which; all of them if left out, the least likely to be right first.
            top: Only so many.
            times: Of the answers, if they are known and not in a frame.
            now: When the questions are asked; left out, right after the last answer.
        """
        if top is not None and top < 1:
            raise ValueError(f"predict: want top >= 1, got {top}")
        _, state = self.stream(history, times=times)
        found = self.ask(state, questions, now=now)
        if questions is None:
            found.sort(key=lambda p: p.probability)
        return found[:top]

    def review(
        self,
        history: "Sequence[Any] | pd.DataFrame",
        *,
        top: int = 10,
        times: Iterable[Any] | None = None,
        now: Any = None,
    ) -> list[Prediction]:
        """Of the questions answered before, those least likely to be right now, with the chance."""
        answers = self._read(history, times)
        met = list(dict.fromkeys(a.question for a in answers if a.question))
        if not met:
            return []
        names = [self.schema.questions[i - 1] for i in met]
        found = self.predict(history, questions=names, times=times, now=now)
        return sorted(found, key=lambda p: p.probability)[:top]

    def predict_table(
        self, data: "str | os.PathLike[str] | pd.DataFrame", *, top: int = 3, **_: Any
    ) -> dict[str, list[Prediction]]:
        """For every user of a table the questions least likely to be answered right next."""
        table = self.table(data)
        schema = self.schema
        rows = read_answers(table, schema.user, schema.question, schema.correct, schema.time)
        self._check_known(table, rows.questions)
        place = rows.starts.nonzero()[0].tolist()
        found = {}
        for user, begin, end in zip(rows.users, place, [*place[1:], len(rows.right)], strict=True):
            frame = table.frame.iloc[rows.kept[begin:end]]
            found[user] = self.predict(frame, top=top)
        return found

    def _check_known(self, table: Table, questions: "pd.Series") -> None:
        """Warn of answers to questions that training never showed; all of them is an error."""
        strange = ~questions.isin(self.schema.questions)
        if strange.any():
            words = ", ".join(map(repr, sorted(questions[strange].unique())[:3]))
            column = f'{table.name}: column "{self.schema.question}"'
            if strange.all():
                raise DataError(
                    f"{column}: none of the questions was seen in training "
                    f"({len(self.schema.questions):,} were), such as {words}; is it the right one?"
                )
            warnings.warn(
                f"{column}: {int(strange.sum()):,} of {len(strange):,} answers are to questions "
                f"that training never showed ({words}); they are read as not known",
                stacklevel=3,
            )

    @torch.no_grad()
    def stream(
        self, data: Any, state: StreamState | None = None, *, times: Iterable[Any] | None = None
    ) -> tuple[Any, StreamState]:
        """Read some answers of one user; an answer costs one step, however long the history.

        Args:
            data: See `predict`; or `Inputs` as the network takes them, for its logits.
            state: What the call before returned; None begins with a new user.
            times: Of the answers, if they are known and not in a frame.

        Returns:
            The probability of a right answer before each of them, [T], and the state to go on from.
        """
        if isinstance(data, Inputs):
            return super().stream(data, state)
        layers, steps, past = (None, 0, NO_PAST) if state is None else state
        past = past or NO_PAST
        answers = self._read(data, times)
        tokens, reals = [], []
        for question, right, stamp in answers:
            token, real = self.schema.step(question, stamp, past)
            tokens.append(token)
            reals.append(real)
            past = self.schema.after(question, right, stamp, past)
        if not answers:
            return torch.zeros(0), StreamState(layers, steps, past)
        said, layers = self.network(Inputs(torch.tensor([tokens]), torch.tensor([reals])), layers)
        chance = said[0].softmax(-1)[:, 1]
        return chance, StreamState(layers, steps + len(answers), past)

    @torch.no_grad()
    def ask(
        self, state: StreamState, questions: Sequence[Any] | None = None, *, now: Any = None
    ) -> list[Prediction]:
        """The probability of a right answer to each of these questions, from where a stream stands;
        the state stays as it is.
        """
        schema, past = self.schema, state.memory or NO_PAST
        names = schema.questions if questions is None else list(map(str, questions))
        ids = [self._question(name) for name in names]
        stamp = None if now is None else self._stamps([now])[0]
        found: list[float] = []
        for start in range(0, len(ids), ROWS):
            steps = [schema.step(i, stamp, past) for i in ids[start : start + ROWS]]
            tokens = torch.tensor([[token] for token, _ in steps])
            reals = torch.tensor([[real] for _, real in steps])
            rows = torch.zeros(len(steps), dtype=torch.long)
            layers = None if state.layers is None else states.select(state.layers, rows)
            said, _ = self.network(Inputs(tokens, reals), layers)
            found += said[:, 0].softmax(-1)[:, 1].tolist()
        return [Prediction(name, p) for name, p in zip(names, found, strict=True)]

    def _read(self, data: Any, stamps: Iterable[Any] | None) -> list[Answer]:
        schema, framed = self.schema, hasattr(data, "columns")
        if isinstance(data, str | bytes):
            raise DataError(f"{HINT}, got a single string: write [{data!r}]")
        if framed:  # as training data: a question never seen is read as new, not as a mistake
            table = Table(data.reset_index(drop=True), HANDED)
            if schema.user in data.columns and data[schema.user].nunique() > 1:
                raise DataError(
                    f'column "{schema.user}" holds several: ask about all with predict_table'
                )
            questions = list(table.column(schema.question, "question"))
            responses = list(table.column(schema.correct, "response"))
            if stamps is None and schema.time is not None and schema.time in data.columns:
                stamps = list(data[schema.time])
            pairs = list(zip(questions, responses, strict=True))
        else:
            pairs = [_pair(item) for item in data]
        if stamps is None or not pairs:
            clock = None
        else:
            clock = self._stamps(list(stamps))
            if len(clock) != len(pairs):
                raise DataError(
                    f"times: want one for each of {len(pairs)} answers, got {len(clock)}"
                )
            back = next((i for i in range(1, len(clock)) if clock[i] < clock[i - 1]), None)
            if back is not None:
                raise DataError(
                    f"times: answer {back + 1} is before the one before it; want them in order"
                )
        found = []
        for i, (question, response) in enumerate(pairs):
            right = word_of(response)
            if right < 0:
                raise DataError(f"response {response!r} to {question!r}: {HINT}")
            known = self._numbers.get(str(question).strip(), 0) if framed else None
            number = self._question(question) if known is None else known
            found.append(Answer(number, right, None if clock is None else clock[i]))
        return found

    def _question(self, name: Any) -> int:
        whole = isinstance(name, float) and name.is_integer()
        name = str(int(name)) if whole else str(name).strip()
        if name not in self._numbers:
            near = did_you_mean(name, self._numbers)
            raise DataError(
                f"question {name!r} was never seen in training ({len(self._numbers):,} were).{near}"
            )
        return self._numbers[name]

    def _stamps(self, stamps: Sequence[Any]) -> list[int]:
        import pandas as pd  # noqa: PLC0415

        name = self.schema.time or "time"
        read = times(Table(pd.DataFrame({name: list(stamps)}), "times"), name)
        if self.schema.time is not None and read.calendar != self.schema.calendar:
            wanted = "dates" if self.schema.calendar else "plain numbers"
            raise DataError(f"times: want {wanted}, as in training, got {next(iter(stamps))!r}")
        return read.values.tolist()


def _pair(item: Any) -> tuple[Any, Any]:
    if isinstance(item, str):
        question, mark, response = item.rpartition("=")
        if not mark:
            raise DataError(f"{HINT}, got {item!r}")
        return question, response
    try:
        question, response = item
    except (TypeError, ValueError):
        raise DataError(f"{HINT}, got {item!r}") from None
    return question, response


MODEL = ResponseModel
