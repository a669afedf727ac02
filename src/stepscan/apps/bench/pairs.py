"""Two mixers seed by seed, two results mixer by mixer.

Mixers that share a seed share their training examples and their test: the difference of their
scores is free of the luck of the draw. Which of two is ahead on the whole is judged over tasks.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from stepscan.analyze.intervals import Interval, mean_interval, paired_difference, rank_correlation
from stepscan.apps.bench.matrix import Cell, above_chance, by_ability, table

FEWEST = 4
"""Names that two orders share, before how far they agree is spoken of."""


def by_seed(cell: Cell, factor: str = "1") -> dict[int, float]:
    """Scores above chance of the seeds that did not diverge."""
    values = cell["scores"].get(factor, [])
    seeds = cell.get("seeds", range(len(values)))
    return {s: above_chance(v, cell["task"]) for s, v in zip(seeds, values, strict=True)}


def on_task(
    cells: Sequence[Cell], ours: str, theirs: str, task: str, factor: str = "1"
) -> Interval | None:
    """How far one mixer is ahead of another on a task, over the seeds that both have."""
    found = {c["mixer"]: by_seed(c, factor) for c in cells if c["task"] == task}
    shared = [seed for seed in found.get(ours, {}) if seed in found.get(theirs, {})]
    if not shared:
        return None
    a, b = ([found[mixer][seed] for seed in shared] for mixer in (ours, theirs))
    return paired_difference(a, b)


def over_tasks(cells: Sequence[Cell], ours: str, theirs: str) -> Interval | None:
    """How far one mixer is ahead of another: the mean over tasks of differences seed by seed."""
    tasks = dict.fromkeys(cell["task"] for cell in cells)
    gaps = [gap.mean for task in tasks if (gap := on_task(cells, ours, theirs, task)) is not None]
    return mean_interval(gaps) if gaps else None


def agreement(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float | None:
    """Rank correlation of two orders over the names they share; None from too few of them."""
    shared = [name for name in ours if name in theirs]
    if len(shared) < FEWEST:
        return None
    return rank_correlation([ours[n] for n in shared], [theirs[n] for n in shared])


def order(results: Mapping[str, Any]) -> dict[str, float]:
    """Name -> how good, of the results.json of a bench or a `compare`: to hold one against another.

    A bench gives means over tasks, above chance; `compare` the mean over its data sets of the rank
    from the last, since their metrics have no common unit.
    """
    if results.get("kind") == "bench":
        rows = table(results["cells"])
        return {mixer: fmean(row.values()) for mixer, row in rows.items() if row}
    ranks: dict[str, list[float]] = {}
    for section in results["sections"]:
        better = {m["name"]: m["better"] for m in section["metrics"]}[section["metric"]]
        sign = 1 if better == "higher" else -1
        means = {}
        for row in section["candidates"]:
            values = [v for v in row["scores"].get(section["metric"], []) if v is not None]
            if values and not row["baseline"]:
                means[row["name"]] = sign * fmean(values)
        for name, value in means.items():
            behind = sum(other < value for other in means.values())
            ranks.setdefault(name, []).append(behind / max(1, len(means) - 1))
    return {name: fmean(values) for name, values in ranks.items()}


def findings(cells: Sequence[Cell]) -> list[str]:
    """Whether the first is ahead of the second, and which abilities order mixers differently."""
    return [*_lead(cells), *_abilities(cells)]


def _lead(cells: Sequence[Cell]) -> list[str]:
    rows = {mixer: row for mixer, row in table(cells).items() if row}
    tasks = {task for row in rows.values() for task in row}
    ranking = sorted(rows, key=lambda m: -sum(rows[m].values()) / len(tasks))
    if len(ranking) < 2 or len(tasks) < 2:
        return []
    first, second = ranking[:2]
    gap = over_tasks(cells, first, second)
    if gap is None or gap.half is None:
        return []
    sure = "beyond the noise" if gap.excludes_zero else "not beyond the noise"
    return [
        f"Over {gap.count} tasks {first} is {gap.mean:.1%} ± {gap.half:.1%} ahead of {second}, "
        f"paired by task and seed: {sure}."
    ]


def _abilities(cells: Sequence[Cell]) -> list[str]:
    """The two abilities whose orders agree least."""
    columns: dict[str, dict[str, float]] = {}
    for mixer, row in by_ability(cells).items():
        for ability, score in row.items():
            columns.setdefault(ability, {})[mixer] = score
    found = [
        (correlation, one, other)
        for one, other in combinations(columns, 2)
        if (correlation := agreement(columns[one], columns[other])) is not None
    ]
    if not found:
        return []
    correlation, one, other = min(found)
    count = len(columns[one].keys() & columns[other].keys())
    return [
        f"{one.capitalize()} and {other} order the mixers least alike: rank correlation "
        f"{correlation:+.2f} over {count}."
    ]
