"""What the cells say, in sentences: every word follows from a number."""

from collections.abc import Sequence
from statistics import fmean, median

from stepscan.analyze.intervals import rank_correlation
from stepscan.apps.bench.matrix import Cell, above_chance, by_ability, mean, table
from stepscan.tasks import ABILITIES, TASKS

SOLVED, LOST, NEAR = 0.95, 0.1, 0.05
"""Scores above chance: from when a task counts as solved, until when as guessed, and as level."""
ENOUGH = 6  # mixers, before a correlation is spoken of


def findings(cells: Sequence[Cell]) -> list[str]:
    """Sentences, the most general first."""
    return [
        *_abilities(cells),
        *_tasks(cells),
        *_lengths(cells),
        *_states(cells),
        *_failures(cells),
    ]


def _abilities(cells: Sequence[Cell]) -> list[str]:
    rows = by_ability(cells)
    said = []
    for ability, meaning in ABILITIES.items():
        scores = {m: row[ability] for m, row in rows.items() if ability in row}
        if len(scores) < 2:
            continue
        best = max(scores.values())
        leaders = [m for m, score in scores.items() if score >= best - NEAR]
        last = min(scores, key=lambda m: scores[m])
        if best <= LOST:
            said.append(f"{ability.capitalize()} ({meaning}): no mixer did more than guess.")
        elif len(leaders) == len(scores):
            said.append(
                f"{ability.capitalize()} ({meaning}) tells no mixer from another: "
                f"all within {NEAR:.0%} of {best:.0%}."
            )
        else:
            said.append(
                f"{ability.capitalize()} ({meaning}): {_names(leaders)} "
                f"lead{'s' * (len(leaders) == 1)} with {best:.0%} above chance, "
                f"{last} is last with {scores[last]:.0%}."
            )
    return said


def _tasks(cells: Sequence[Cell]) -> list[str]:
    columns: dict[str, dict[str, float]] = {}
    for mixer, row in table(cells).items():
        for task, score in row.items():
            columns.setdefault(task, {})[mixer] = score
    said = []
    for task, scores in columns.items():
        solved = [m for m, score in scores.items() if score >= SOLVED]
        if solved and len(solved) < len(scores):
            some = f"only {_names(solved)}" if len(solved) <= 4 else f"{len(solved)} mixers"
            said.append(f"{task} was solved by {some} of {len(scores)}.")
    never = [task for task, scores in columns.items() if max(scores.values()) <= LOST]
    if never:
        said.append(
            f"Nobody learned {_names(never)} within the budget: more steps, or an easier one."
        )
    return said


def _lengths(cells: Sequence[Cell]) -> list[str]:
    """Who keeps what it learned beyond the training length."""
    factors = list(dict.fromkeys(f for cell in cells for f in cell["scores"]))
    if len(factors) < 2:
        return []
    far = factors[-1]
    kept: dict[str, list[float]] = {}
    for cell in cells:
        near, late = mean(cell), mean(cell, far)
        if near is None or late is None:
            continue
        learned = above_chance(near, cell["task"])
        if learned >= 0.5:
            kept.setdefault(cell["mixer"], []).append(above_chance(late, cell["task"]) / learned)
    share = {mixer: fmean(values) for mixer, values in kept.items() if len(values) >= 2}
    if len(share) < 2:
        return []
    order = sorted(share, key=lambda m: -share[m])
    return [
        f"At {far} times the training length {order[0]} keeps {share[order[0]]:.0%} of what it "
        f"learned, the median {median(share.values()):.0%}, {order[-1]} {share[order[-1]]:.0%}."
    ]


def _states(cells: Sequence[Cell]) -> list[str]:
    """Whether bytes of memory buy the ability."""
    said = []
    for ability in ABILITIES:
        found = [
            (c["state_bytes"], above_chance(score, c["task"]))
            for c in cells
            if TASKS[c["task"]].ability == ability and (score := mean(c)) is not None
        ]
        if len(found) < ENOUGH:
            continue
        correlation = rank_correlation(*zip(*found, strict=True))
        if correlation is not None and abs(correlation) >= 0.5:
            more = "more" if correlation > 0 else "less"
            said.append(
                f"{ability.capitalize()} goes with {more} state: rank correlation of score and "
                f"bytes {correlation:+.2f} over {len(found)} cells."
            )
    return said


def _failures(cells: Sequence[Cell]) -> list[str]:
    broken = [f"{c['mixer']} on {c['task']}" for c in cells if c["diverged"]]
    edge = [
        f"{c['mixer']} on {c['task']}"
        for c in cells
        if len(c["sweep"]) > 2 and c["rate"] in _ends(c) and (mean(c) or 0) < SOLVED
    ]
    said = []
    if broken:
        said.append(f"Diverged: {_names(broken)}.")
    if len(edge) > len(cells) / 4:
        said.append(
            f"In {len(edge)} of {len(cells)} cells the best learning rate lies at the end of the "
            "sweep: a wider one might change the order."
        )
    return said


def _ends(cell: Cell) -> tuple[float, float]:
    rates = [run["rate"] for run in cell["sweep"]]
    return min(rates), max(rates)


def _names(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
