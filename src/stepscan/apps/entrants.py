"""Candidates that are trained in turns, so that the noise of the machine hits all alike."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stepscan.apps.candidate import Candidate
from stepscan.apps.domain import Domain, Metric, Recipe, Scores
from stepscan.apps.progress import clock
from stepscan.models import SequenceModel
from stepscan.train.config import TrainConfig
from stepscan.train.loop import DivergedError

SLICES = 12  # turns that each candidate's budget is cut into
LOOKS = 8  # points of a learning curve
LOOK = 8_000  # steps that a look reads: many candidates look many times


@dataclass
class Entrant:
    """One mixer or layer pattern, over all seeds."""

    name: str
    config: Any
    runs: list[Candidate | None] = field(default_factory=list)
    """By seed; None where it diverged."""
    models: list[SequenceModel | None] = field(default_factory=list)
    scores: list[Scores | None] = field(default_factory=list)

    def values(self, metric: str) -> list[float | None]:
        """One figure per seed."""
        return [None if s is None else s[metric] for s in self.scores]

    def best(self, metric: Metric) -> SequenceModel | None:
        """The model of the best seed."""
        chosen = None
        for seed, score in enumerate(self.values(metric.name)):
            if score is not None and (chosen is None or metric.wins(score, chosen[1])):
                chosen = seed, score
        return None if chosen is None else self.models[chosen[0]]


def plan(recipe: Recipe, minutes: float, *, seed: int) -> TrainConfig:
    """How a candidate is trained."""
    return recipe.training(minutes=minutes, seed=seed, evaluations=LOOKS)


def train_in_turns(
    domain: Domain,
    entrants: Sequence[Entrant],
    *,
    minutes: float,
    seeds: int,
    show: Callable[[float, str], None],
) -> None:
    """Seed by seed, all entrants in turns, so that the noise of the machine hits all alike."""
    begin = time.monotonic()
    for seed in range(seeds):
        running: list[tuple[Entrant, Candidate]] = []
        for entrant in entrants:
            train = plan(domain.recipe_for(entrant.config), minutes, seed=seed)
            run = Candidate(domain, entrant.config, train, look=LOOK)
            entrant.runs.append(run)
            running.append((entrant, run))
        while running:
            for entrant, run in list(running):
                used = [r.trainer.progress if r else 1.0 for e in entrants for r in e.runs]
                part = sum(used) / (seeds * len(entrants))
                taken = time.monotonic() - begin
                left = f"left {clock(taken * (1 - part) / part)}" if part > 0.02 else ""
                show(part, f"seed {seed}  {entrant.name}  {left}")
                try:
                    run.trainer.advance(seconds=60 * minutes / SLICES)
                except DivergedError:
                    entrant.runs[seed] = None
                    running.remove((entrant, run))
                    continue
                if run.trainer.done:
                    running.remove((entrant, run))
        for entrant in entrants:
            entrant.models.append(_finished(entrant.runs[seed]))
            if entrant.models[seed] is None:
                entrant.runs[seed] = None


def _finished(run: Candidate | None) -> SequenceModel | None:
    try:
        return None if run is None else run.finish()
    except DivergedError:
        return None
