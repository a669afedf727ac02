"""Mixers x tasks: the scores at the best rate of each sweep, with intervals; then by ability."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

from stepscan.apps.bench.study import best_rate
from stepscan.tasks import ABILITIES, TASKS

Cell = dict[str, Any]
Runs = Sequence[Mapping[str, Any]]


def cells(done: Mapping[tuple[str, str], Runs]) -> list[Cell]:
    """One entry for each mixer and task that was finished: plain data, as results.json holds it."""
    return [_cell(mixer, task, found) for (mixer, task), found in done.items()]


def _cell(mixer: str, task: str, found: Runs) -> Cell:
    sweep = [run for run in found if run["seed"] == 0]
    best = best_rate(sweep)
    chosen = [run for run in found if run["rate"] == best]
    lengths = dict.fromkeys(factor for run in chosen for factor in run["scores"])
    first = chosen[0]
    return {
        "mixer": mixer,
        "task": task,
        "rate": best,
        "scores": {f: [r["scores"][f] for r in chosen if r["scores"]] for f in lengths},
        "seeds": [run["seed"] for run in chosen if run["scores"]],
        "diverged": sum(run["diverged"] for run in chosen),
        "learned": sum(run["ended"] == "learned" for run in chosen),
        "ended": [run["ended"] for run in chosen],
        "sweep": [{k: run[k] for k in ("rate", "valid", "steps", "ended")} for run in sweep],
        "curves": [run["curve"] for run in chosen],
        "steps": [run["steps"] for run in chosen],
        "tokens": [run["tokens"] for run in chosen],
        "seconds": [run["seconds"] for run in chosen],
        "pretraining": [run.get("pretraining") for run in chosen],
        "total_tokens": [total(run, "tokens") for run in chosen],
        "total_seconds": [total(run, "seconds") for run in chosen],
        **{k: first[k] for k in ("width", "parameters", "state_bytes", "streams")},
    }


def total(run: Mapping[str, Any], what: Literal["steps", "tokens", "seconds"]) -> float:
    """Of a training and the self-pretraining before it."""
    return run[what] + (run.get("pretraining") or {what: 0})[what]


def above_chance(score: float, task: str) -> float:
    """From 0, what guessing scores, to 1."""
    chance = TASKS[task]().chance
    return max(0.0, (score - chance) / (1 - chance))


def mean(cell: Cell, factor: str = "1") -> float | None:
    """Mean score over seeds at this length; None where all diverged or it was not asked."""
    values = cell["scores"].get(factor, [])
    return fmean(values) if values else None


def table(found: Iterable[Cell], factor: str = "1") -> dict[str, dict[str, float]]:
    """Mixer -> task -> mean score above chance, in the order of first appearance."""
    rows: dict[str, dict[str, float]] = {}
    for cell in found:
        row = rows.setdefault(cell["mixer"], {})
        score = mean(cell, factor)
        if score is not None:
            row[cell["task"]] = above_chance(score, cell["task"])
    return rows


def by_ability(found: Iterable[Cell], factor: str = "1") -> dict[str, dict[str, float]]:
    """Mixer -> ability -> the mean over its tasks, of those that were finished."""
    rows = {}
    for mixer, scores in table(found, factor).items():
        groups = {ability: [] for ability in ABILITIES}
        for task, score in scores.items():
            groups[TASKS[task].ability].append(score)
        rows[mixer] = {ability: fmean(values) for ability, values in groups.items() if values}
    return rows
