"""How the score of a candidate falls with training time, and from when on another one leads.

Every point is a training of its own, with its own schedule: a look into a longer training would be
a model whose learning rate has not come down yet.
"""

import math
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

from stepscan.analyze.scaling import Fit, crossing, fit
from stepscan.apps.domain import Domain
from stepscan.apps.entrants import Entrant, train_in_turns

FEWEST = 3
"""Halvings, so that a law of three numbers has one point to spare."""


def check(halvings: int) -> None:
    """`ValueError` if there are too few, but not none."""
    if halvings and halvings < FEWEST:
        raise ValueError(f"compare: want scaling >= {FEWEST}, or 0 for none, got {halvings}")


def scaling(
    domain: Domain,
    section: Mapping[str, Any],
    *,
    halvings: int,
    most: int,
    show: Callable[[float, str], None] = lambda part, line: None,
) -> dict[str, Any]:
    """Train the candidates of a section for shorter times too, and fit a law to each.

    Args:
        domain: The data set.
        section: What they reached in the whole time, as `compare.section` returns it.
        halvings: How many shorter times.
        most: Steps of the test part that are scored.
        show: Called with the part of the work done and what is going on.

    Returns:
        Points (seconds, score), laws and crossings: plain data, as results.json holds it.
    """
    metric, minutes = domain.metrics[0], section["budget"]["minutes"]
    if metric.better != "lower":
        return {"findings": [f"{metric.name} does not fall with time: no law of scaling is fitted"]}
    rows = [row for row in section["candidates"] if not row["baseline"]]
    configs = {
        row["name"]: domain.candidate(row["name"], row["config"].get("width")) for row in rows
    }
    points: dict[str, list[list[float]]] = {}
    for row in rows:
        scores = [score for score in row["scores"][metric.name] if score is not None]
        pairs = zip(row["seconds"], scores, strict=False)
        points[row["name"]] = [list(pair) for pair in pairs]
    for k in range(1, halvings + 1):
        entrants = [Entrant(name, config) for name, config in configs.items()]
        seeds = len(section["budget"]["seeds"])
        train_in_turns(domain, entrants, minutes=minutes / 2**k, seeds=seeds, show=show)
        for entrant in entrants:
            for run, model in zip(entrant.runs, entrant.models, strict=True):
                if run is not None and model is not None:
                    score = domain.score(model, "test", most)[metric.name]
                    points[entrant.name].insert(0, [run.trainer.seconds, score])
    return {"points": points, **laws(points, metric.name)}


def laws(points: Mapping[str, list[list[float]]], metric: str) -> dict[str, Any]:
    """Name -> law with its interval, where laws cross, and both in sentences."""
    fits: dict[str, Fit] = {}
    said = []
    for name, pairs in points.items():
        try:
            fits[name] = fit(*zip(*pairs, strict=True))
        except ValueError as error:
            said.append(f"{name}: {error}")
    for name, found in fits.items():
        low, high = found.interval("exponent")
        floor = f"{found.law.floor:.3g} + " if found.law.floor > 0 else ""
        said.append(
            f"{name}: {metric} = {floor}{found.law.scale:.3g} x seconds^-"
            f"{found.law.exponent:.3g} (exponent {low:.2g} to {high:.2g}, "
            f"points off by {found.error:.1%})"
        )
    crossings = []
    for one, other in combinations(fits, 2):
        place = crossing(fits[one], fits[other])
        if place is None:
            continue
        before = fits[one].law(place.compute / 2) < fits[other].law(place.compute / 2)
        first, second = (one, other) if before else (other, one)
        high = None if math.isinf(place.high) else place.high  # JSON has no infinity
        crossings.append({"first": first, "second": second, **place._asdict(), "high": high})
        said.append(
            f"{first} leads until about {_seconds(place.compute)} of training, {second} from then "
            f"on (95 %: {_seconds(place.low)} to {_seconds(place.high)})"
        )
    return {
        "laws": {
            name: {**found.law._asdict(), "interval": found.interval("exponent")}
            for name, found in fits.items()
        },
        "crossings": crossings,
        "findings": [f"{line}." for line in said],
    }


def _seconds(seconds: float) -> str:
    """A time as people say it; infinite is beyond what can be said."""
    if math.isinf(seconds):
        return "unknown"
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} seconds"
