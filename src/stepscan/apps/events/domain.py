"""Events: what happens next in a case, when, and how it goes on to its end."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from stepscan.apps.domain import Domain, Metric, Recipe, Scores
from stepscan.apps.events import tables
from stepscan.apps.events.classical import METHODS, Judged, cases_of, judge
from stepscan.apps.events.metrics import GAP, NEXT, REMAINING, SUFFIX, Tally
from stepscan.apps.events.mixture import median
from stepscan.apps.events.questions import cut, suffix_questions
from stepscan.apps.events.suffix import suffixes
from stepscan.data.base import Dataset
from stepscan.data.clock import span
from stepscan.data.events import EventSchema
from stepscan.models import NextEvent, SequenceModel
from stepscan.models.heads import HeadConfig
from stepscan.train.evaluate import walk_outputs

TIMES = {"gap": GAP.name, "remaining": REMAINING.name}


class Events(Domain):
    """Cases of timed events."""

    kind: ClassVar[str] = "events"
    metrics: tuple[Metric, ...] = (*NEXT, GAP, REMAINING, SUFFIX)
    recipe: Recipe = Recipe(
        layers="gated_delta_net*2", width=64, rows=8, length=128, learning_rate=2e-3, dropout=0.3
    )

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset)
        schema = self.schema
        unit = self._real_units()
        self._shown = {TIMES[key]: schema.unit / seconds for key, (_, seconds) in unit.items()}
        self._words = {TIMES[key]: word for key, (word, _) in unit.items()}
        times = [
            m._replace(unit=self._words[m.name]) for m in (GAP, REMAINING) if m.name in self._words
        ]
        asked = len(suffix_questions(dataset.parts["test"], schema).real)
        self.metrics = (*NEXT, *times, *([SUFFIX] if asked else []))
        self.methods = METHODS
        """Those that `baselines` judges."""
        self.judged: list[Judged] = []
        """The simple methods, once `baselines` has been asked for."""

    def _real_units(self) -> dict[str, tuple[str, float]]:
        """The word for each time, and its seconds; by what is usual in the training part."""
        schema, packed = self.schema, self.dataset.parts["train"]
        if not schema.calendar:
            plain = {"gap": ("", 1.0), "remaining": ("", 1.0)}
            return plain if schema.ends else {"gap": plain["gap"]}
        units = {"gap": span(schema.unit)}
        if schema.ends:
            usual = packed.targets_at(packed.begins)["remaining"].nanmedian()
            units["remaining"] = span(schema.unit * float(usual.nan_to_num(1.0)))
        return units

    @property
    def schema(self) -> EventSchema:
        """Activities, attributes, the unit of time."""
        assert isinstance(self.dataset.schema, EventSchema)
        return self.dataset.schema

    @property
    def head(self) -> HeadConfig:
        """The next activity, the time to it and, where cases end, the time to the last event."""
        return NextEvent(vocab=self.schema.tokens[0], remaining=self.schema.ends)

    def score(self, model: SequenceModel, part: str = "test", most: int | None = None) -> Scores:
        """Of every held-out event but the first of its case; suffixes of the test part alone."""
        packed = self.part(part, most)
        tally = Tally(self.schema.tokens[0])
        reading = {"rows": 32, "length": self.reach, "slots": self.reach}
        for batch, said in walk_outputs(model, packed, **reading):
            asked = batch.targets["token"] >= 0
            tally.next(said.logits[asked].log_softmax(-1), batch.targets["token"][asked])
            for key, name in TIMES.items():
                if name in self._shown:
                    known = ~batch.targets[key].isnan()
                    guess = median(getattr(said, key)[known])
                    error = (guess - batch.targets[key][known]).abs()
                    tally.times(name, self._shown[name] * error)
        scores = tally.scores()
        if part == "test" and self.metrics[-1] is SUFFIX:
            scores[SUFFIX.name] = self._suffixes(model)
        return scores

    def _suffixes(self, model: SequenceModel) -> float:
        """Mean similarity; of the whole test part, however little of it is judged else."""
        schema, packed = self.schema, self.dataset.parts["test"]
        asked = suffix_questions(packed, schema)
        found = suffixes(model, schema, packed, asked.begins, asked.ends, reach=self.reach)
        if not all(found):  # nothing finite was said
            return math.nan
        return asked.similarity(cut([one[0].symbols for one in found], asked, schema))

    def baselines(self, most: int | None = None) -> Iterator[tuple[str, Scores]]:
        """The classical methods, see `classical.METHODS`; `judged` then tells what they took."""
        schema = self.schema
        packed = self.part("test", most)
        questions = suffix_questions(self.dataset.parts["test"], schema)
        train, test = cases_of(self.dataset.parts["train"]), cases_of(packed)
        self.judged = []
        for one in judge(train, test, questions, schema, self._shown, self.methods):
            self.judged.append(one)
            yield one.name, {m.name: one.scores[m.name] for m in self.metrics}

    def examples(self, models: Mapping[str, SequenceModel]) -> list[dict[str, Any]]:
        """Some held-out cases, what each model expected and what came; what the methods took."""
        shown = [tables.next_events(self, models)]
        if self.metrics[-1] is SUFFIX:
            shown.append(tables.suffixes(self, models))
        return [*shown, *tables.methods(self.judged)]

    def real_time(self, metric: str, units: float) -> str:
        """So many units as people read them."""
        word = self._words[metric]
        return f"{units * self._shown[metric]:.1f}{' ' * bool(word)}{word}"
