"""Who stands where: the candidates of one section, summarised over seeds and put in order."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from stepscan.analyze.intervals import Interval, mean_interval, paired_difference

Section: TypeAlias = Mapping[str, Any]

NOUNS = {"series": "steps", "events": "events", "interactions": "items", "responses": "answers"}
"""What one step of a sequence is called, by kind of data; otherwise tokens."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One candidate's scores on one metric."""

    candidate: Mapping[str, Any]
    scores: tuple[float | None, ...]
    """One per seed; None where that seed failed. Empty: never scored on this metric."""
    interval: Interval | None
    """Over the seeds that did not fail; None if there are none."""

    @property
    def name(self) -> str:
        """The candidate's name."""
        return str(self.candidate["name"])

    @property
    def baseline(self) -> bool:
        """Whether it is one of the field's own baselines."""
        return bool(self.candidate.get("baseline"))

    @property
    def failed(self) -> int:
        """How many seeds failed."""
        return sum(x is None for x in self.scores)

    @property
    def sound(self) -> bool:
        """Scored, and no seed failed: only such a candidate may be called best."""
        return bool(self.scores) and not self.failed


def standings(section: Section, metric: str | None = None) -> list[Standing]:
    """Return the candidates from best to worst on `metric` (the leading one by default).

    Models first, then baselines; within each, those with failed seeds come last, since the mean
    of the seeds that survived flatters.
    """
    metric = metric or section["metric"]
    sign = 1 if lower_is_better(section, metric) else -1
    found = []
    for candidate in section["candidates"]:
        scores = tuple(map(finite, candidate["scores"].get(metric) or ()))
        alive = [x for x in scores if x is not None]
        interval = mean_interval(alive) if alive else None
        found.append(Standing(candidate=candidate, scores=scores, interval=interval))

    def rank(one: Standing) -> tuple[bool, bool, float]:
        mean = sign * one.interval.mean if one.interval else math.inf
        return one.baseline, not one.sound, mean

    return sorted(found, key=rank)


def best(ranked: list[Standing], *, baseline: bool) -> Standing | None:
    """Return the best sound model, or the best sound baseline."""
    return next((one for one in ranked if one.sound and one.baseline == baseline), None)


def overall_best(ranked: list[Standing], *, lower: bool) -> Standing | None:
    """Return the best sound candidate, be it a model or a baseline."""
    found = [x for x in (best(ranked, baseline=flag) for flag in (False, True)) if x]
    sign = 1 if lower else -1
    return min(found, key=lambda one: sign * one.interval.mean, default=None)  # type: ignore[union-attr]


def behind(one: Standing, leader: Standing | None, *, lower: bool) -> Interval | None:
    """Return how much worse `one` is than the leader, seed by seed; None if that cannot be said."""
    if leader is None or one is leader or not one.sound:
        return None
    ours, theirs = list(one.scores), list(leader.scores)
    if len(ours) == 1:
        ours *= len(theirs)  # a baseline without seeds meets each of the leader's
    if len(ours) != len(theirs):
        return None
    pair = (ours, theirs) if lower else (theirs, ours)
    return paired_difference(*pair)  # type: ignore[arg-type]  # sound: no None among them


def described(section: Section, metric: str) -> Mapping[str, Any]:
    """Return the metric's entry, or a bare one."""
    known = {entry["name"]: entry for entry in section["metrics"]}
    return known.get(metric, {"name": metric, "better": "lower", "definition": "", "unit": ""})


def lower_is_better(section: Section, metric: str) -> bool:
    """Whether a smaller score is the better one."""
    return described(section, metric)["better"] == "lower"


def noun(section: Section) -> str:
    """What one step of a sequence is called in this section."""
    return NOUNS.get(section["data"].get("kind", ""), "tokens")


def at_length(entry: Mapping[str, Any] | None, length: int) -> float | None:
    """Return what was measured at `length` tokens of context, if it was."""
    return finite((entry or {}).get(str(length)))


def finite(value: object) -> float | None:
    """Return a number; None for what is missing, not a number or infinite."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


SHORT, LONG = 1024, 65536
"""The two lengths of context at which speed and state are measured."""
