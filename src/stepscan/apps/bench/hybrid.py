"""Hybrids: how many layers of full attention does a linear mixer need?

A sweep is linear mixers x ratios of linear to full layers at one depth, at equal size and equal
tokens. The best mixer alone need not be the best partner: both orders are compared.

Source: A Systematic Analysis of Hybrid Linear Attention, Wang et al. 2025, arXiv:2507.06457.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, stdev
from typing import Any

from stepscan.analyze.intervals import rank_correlation
from stepscan.apps.bench.matrix import Cell, above_chance, table
from stepscan.models.pattern import parse

RATIOS = ("1:0", "6:1", "3:1", "1:1", "0:1")
NOISE = 0.05
"""Scores above chance that a step may fall by and still count as rising, beside its spread."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Which hybrids."""

    linear: tuple[str, ...]
    """Mixers, with options or not."""
    ratios: tuple[str, ...] = RATIOS
    """Layers of them to full ones, as in 3:1."""
    layers: int = 8
    """Of each model; a ratio that does not divide it is rounded."""
    full: str = "attention"
    """The mixer of the full layers."""

    def __post_init__(self) -> None:
        """Reject what cannot be told apart."""
        if not self.linear or not self.ratios:
            raise ValueError("hybrid sweep: want at least one mixer and one ratio")
        counts: dict[int, str] = {}
        for ratio in self.ratios:
            count = full_layers(ratio, self.layers)
            if count in counts:
                raise ValueError(
                    f"hybrid sweep: {counts[count]} and {ratio} are both {self.layers - count}:"
                    f"{count} with {self.layers} layers; take more layers or fewer ratios"
                )
            counts[count] = ratio
        for name in (*self.linear, self.full):
            if len(parse(name)) != 1:
                raise ValueError(f"hybrid sweep: want a mixer, got the layers {name!r}")

    def patterns(self) -> dict[str, dict[str, Any]]:
        """Pattern -> its mixer, ratio and number of full layers; None where all layers are full."""
        found: dict[str, dict[str, Any]] = {}
        for name in self.linear:
            for ratio in self.ratios:
                count = full_layers(ratio, self.layers)
                linear = None if count == self.layers else name
                text = pattern(name, self.full, count, self.layers)
                found[text] = {"linear": linear, "ratio": ratio, "full": count}
        return found


def full_layers(ratio: str, layers: int) -> int:
    """How many of so many layers a ratio makes full, at least one of each kind that it names."""
    try:
        linear, full = (int(word) for word in ratio.split(":"))
    except ValueError:
        raise ValueError(f"hybrid sweep: want ratios as in 3:1, got {ratio!r}") from None
    if min(linear, full) < 0 or linear + full == 0:
        raise ValueError(f"hybrid sweep: want ratios as in 3:1, got {ratio!r}")
    if layers < (linear > 0) + (full > 0):
        raise ValueError(f"hybrid sweep: {layers} layers are too few for {ratio}")
    if not linear or not full:
        return layers if full else 0
    return min(max(round(layers * full / (linear + full)), 1), layers - 1)


def pattern(linear: str, full: str, count: int, layers: int) -> str:
    """Layers with `count` full ones, each at the end of an equal share of the stack."""
    if 1 < count < layers and layers % count == 0:
        return f"({pattern(linear, full, 1, layers // count)})*{count}"
    places = {(i + 1) * layers // count - 1 for i in range(count)} if count else set()
    names = [full if i in places else linear for i in range(layers)]
    runs = [(name, len(list(same))) for name, same in groupby(names)]
    return " ".join(name if times == 1 else f"{name}*{times}" for name, times in runs)


def summary(cells: Sequence[Cell], patterns: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Per cell mean and spread above chance; per ratio, how its order agrees with that alone.

    Args:
        cells: Of the bench.
        patterns: Of the sweep.
    """
    grid = []
    for cell in cells:
        about = patterns.get(cell["mixer"])
        scores = [above_chance(v, cell["task"]) for v in cell["scores"].get("1", [])]
        if about is not None and scores:
            spread = stdev(scores) if len(scores) > 1 else None
            row = {"task": cell["task"], "mean": fmean(scores), "spread": spread}
            grid.append({**about, **row, "seeds": len(scores)})
    alone, hybrids = _by_ratio(table(cells), patterns)
    agreements = []
    for ratio, scores in hybrids.items():
        shared = [name for name in alone if name in scores]
        if len(shared) >= 2:
            one, other = ([rows[name] for name in shared] for rows in (alone, scores))
            agreements.append(
                {
                    "ratio": ratio,
                    "mixers": len(shared),
                    "rank_correlation": rank_correlation(one, other),
                    "best_alone": max(shared, key=lambda name: alone[name]),
                    "best_hybrid": max(shared, key=lambda name: scores[name]),
                }
            )
    return {"grid": grid, "agreements": agreements}


def findings(found: Mapping[str, Any]) -> list[str]:
    """What the sweep says, from its summary."""
    lines: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    shared: dict[str, Mapping[str, Any]] = {}
    for row in found["grid"]:
        if row["linear"] is None:
            shared[row["task"]] = row
        else:
            lines.setdefault((row["linear"], row["task"]), {})[row["full"]] = row
    said = []
    for (linear, task), rows in lines.items():
        steps = [rows[count] for count in sorted(rows)] + ([shared[task]] if task in shared else [])
        if len(steps) > 1:
            words = ", ".join(f"{row['ratio']} {_score(row)}" for row in steps)
            verb = "rises with" if rising(steps) else "does not rise steadily with"
            said.append(f"{linear} on {task} {verb} full attention: {words}.")
    for row in found["agreements"]:
        same = row["best_alone"] == row["best_hybrid"]
        best = (
            f"{row['best_alone']} is best both alone and so"
            if same
            else f"alone {row['best_alone']} is best, so {row['best_hybrid']}"
        )
        correlation = row["rank_correlation"]
        if correlation is not None:
            said.append(
                f"At {row['ratio']} the order of {row['mixers']} mixers has a rank correlation of "
                f"{correlation:+.2f} with their order alone: {best}."
            )
    return said


def rising(steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether means rise from the first to the last and never fall by more than noise."""
    falls = [
        one["mean"] - other["mean"] > NOISE + max(one["spread"] or 0, other["spread"] or 0)
        for i, one in enumerate(steps)
        for other in steps[i + 1 :]
    ]
    return not any(falls) and steps[-1]["mean"] - steps[0]["mean"] > NOISE


def _by_ratio(
    rows: Mapping[str, Mapping[str, float]], patterns: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Mean over the tasks that all mixers finished: alone, and ratio by ratio."""
    here = {p: rows[p] for p, about in patterns.items() if rows.get(p) and about["linear"]}
    tasks = set.intersection(*(set(row) for row in here.values())) if here else set()
    alone, hybrids = {}, {}
    for text, row in here.items():
        if not tasks:
            break
        about = patterns[text]
        mean = fmean(row[task] for task in tasks)
        target = hybrids.setdefault(about["ratio"], {}) if about["full"] else alone
        target[about["linear"]] = mean
    return alone, hybrids


def _score(row: Mapping[str, Any]) -> str:
    spread = "" if row["spread"] is None else f" ± {row['spread']:.0%}"
    return f"{row['mean']:.0%}{spread}"
