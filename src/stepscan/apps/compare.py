"""Candidates in equal time on this machine: trained in turns, several seeds, beside baselines."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stepscan.analyze.intervals import mean_interval, paired_difference
from stepscan.apps import measure, report, runs
from stepscan.apps import scaling as curves
from stepscan.apps.domain import Domain, Metric, Scores, bounded, with_options
from stepscan.apps.entrants import Entrant, plan, train_in_turns
from stepscan.apps.kinds import domain_of
from stepscan.apps.model import Model
from stepscan.apps.progress import Voice
from stepscan.apps.reach import looks_back
from stepscan.apps.sources import Data, Source, open_source
from stepscan.data.base import DataOptions
from stepscan.data.frames import is_frame
from stepscan.models import SequenceModel, build

TEST = 60_000  # steps of the test part at the most


def compare(
    data: "Data | Sequence[Data]" = "stdlib",
    candidates: Sequence[str] = ("gated_delta_net", "mamba2", "attention", "lstm"),
    *,
    minutes: float = 1.0,
    seeds: int = 2,
    width: int | None = None,
    scaling: int = 0,
    options: DataOptions | None = None,
    out: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    voice: Voice | None = None,
    **choices: Any,
) -> dict[str, Any]:
    """Train several models in equal time on this machine, judge them, and leave a report.

    Args:
        data: A file, a folder, the name of a data set, or a frame, which is called by its
            `attrs["name"]`; or several of them.
        candidates: Names of mixers, or layer patterns.
        minutes: Training time of each candidate and seed.
        seeds: How many times each is trained.
        width: Model width; None is the recipe's of the kind of data.
        scaling: Also train for the half of the time, the quarter ..., so many times, and fit how
            the score falls with time: three or more.
        options: How to read the data.
        out: The run folder; None makes one under runs/.
        quiet: Say nothing.
        voice: Where to say it; None is standard output.
        choices: Fields of `Recipe` to change: rows, length, learning_rate ...

    Returns:
        What results.json holds. `report.html` and the best model of each candidate lie beside it.
    """
    voice = voice or Voice(quiet=quiet)
    alone = isinstance(data, str | os.PathLike) or is_frame(data)
    sources: list[Any] = [data] if alone else list(data)
    if not sources or not candidates or seeds < 1:
        raise ValueError(
            f"compare: want data, candidates and seeds >= 1, got {len(sources)} data sets, "
            f"{len(candidates)} candidates, {seeds} seeds"
        )
    curves.check(scaling)
    opened = [open_source(source, options) for source in sources]
    domains = [domain_of(source.dataset) for source in opened]
    for domain in domains:  # nothing is written before it is known that all of it can be run
        domain.recipe = with_options(domain.recipe, **choices)
        plan(domain.recipe, minutes, seed=0)
        for name in candidates:
            config = domain.candidate(name, width)
            with torch.device("meta"):
                build(config)
    title = "compare " + " ".join(domain.dataset.name for domain in domains)
    folder = runs.new_folder(title, out)
    try:
        return _run(
            list(zip(opened, domains, strict=True)),
            candidates,
            minutes=minutes,
            seeds=seeds,
            width=width,
            scaling=scaling,
            options=options,
            folder=folder,
            title=title,
            voice=voice,
        )
    finally:
        with contextlib.suppress(OSError):  # interrupted before there was anything to keep
            folder.rmdir()


def _run(
    data: Sequence[tuple[Source, Domain]],
    candidates: Sequence[str],
    *,
    minutes: float,
    seeds: int,
    width: int | None,
    scaling: int,
    options: DataOptions | None,
    folder: Path,
    title: str,
    voice: Voice,
) -> dict[str, Any]:
    """Data set after data set; what is finished is kept if the next one is interrupted."""
    sections: list[dict[str, Any]] = []
    results: dict[str, Any] = {}
    for source, domain in data:
        kept = source.keep(folder)
        voice.say(*domain.dataset.lines())
        voice.say(report.opening({"budget": {"minutes": minutes, "seeds": list(range(seeds))}}))
        with voice.moving():
            found, models = section(
                domain,
                candidates,
                minutes=minutes,
                seeds=seeds,
                width=width,
                show=voice.show,
            )
            if scaling:
                found["scaling"] = curves.scaling(
                    domain, found, halvings=scaling, most=TEST, show=voice.show
                )
        sections.append(found)
        for name, model in models.items():
            about = {
                "data": domain.dataset.name,
                "metric": found["metric"],
                "candidate": name,
                "reach": domain.reach,
                "source": kept,
                "options": None if options is None else dataclasses.asdict(options),
            }
            where = folder / "models" / runs.word(domain.dataset.name) / runs.word(name)
            Model(model, domain.dataset.schema, about).save(where)
        results = runs.results(f"stepscan {title}", sections, runs.command_line())
        runs.write_json(folder / "results.json", results)
        report.write(results, folder / "report.html")
        voice.say(*report.leaderboard(found), f"verdict  {found['verdict']}")
        voice.say(*found.get("scaling", {}).get("findings", ()), "")
    voice.say(f"report   {folder}/report.html")
    return results | {"folder": str(folder)}


def section(
    domain: Domain,
    candidates: Sequence[str],
    *,
    minutes: float,
    seeds: int,
    width: int | None = None,
    show: Callable[[float, str], None] = lambda part, line: None,
) -> tuple[dict[str, Any], dict[str, SequenceModel]]:
    """Train and judge the candidates on one data set.

    Args:
        domain: The data set.
        candidates: Names of mixers, or layer patterns.
        minutes: Training time of each candidate and seed.
        seeds: How many; seed s decides initial weights and batches of every candidate alike.
        width: Model width; None is the recipe's.
        show: Called with the part of the work done and what is going on.

    Returns:
        A section of results.json (docs/results.md), and the best model of each candidate.
    """
    entrants = [Entrant(name, domain.candidate(name, width)) for name in dict.fromkeys(candidates)]
    train_in_turns(domain, entrants, minutes=minutes, seeds=seeds, show=show)
    show(1.0, "scoring the test part")
    domain = bounded(domain)
    rows = [_judge(domain, entrant) for entrant in entrants]
    show(1.0, "baselines")
    rows += [baseline_row(name, scores) for name, scores in domain.baselines(TEST)]
    metric = domain.metrics[0]
    models = {e.name: model for e in entrants if (model := e.best(metric)) is not None}
    show(1.0, "examples")
    return as_section(domain, rows, models, minutes=minutes, seeds=range(seeds)), models


def as_section(
    domain: Domain,
    rows: list[dict[str, Any]],
    models: Mapping[str, SequenceModel],
    *,
    minutes: float,
    seeds: Sequence[int],
) -> dict[str, Any]:
    """What the report says of one data set: a section of results.json (docs/results.md).

    Args:
        domain: The data set.
        rows: Candidates and baselines.
        models: Those that show examples, by name.
        minutes: Training time of each candidate and seed.
        seeds: Of the candidates.
    """
    metric = domain.metrics[0]
    return {
        "data": {
            "name": domain.dataset.name,
            "kind": domain.kind,
            "lines": list(domain.dataset.said),
            "findings": list(domain.dataset.findings),
        },
        "metric": metric.name,
        "metrics": [m._asdict() for m in domain.metrics],
        "budget": {"minutes": minutes, "seeds": list(seeds)},
        "candidates": rows,
        "verdict": verdict(metric, rows),
        "examples": domain.examples(models),
        "details": [*domain.breakdown(models), *looks_back(domain, models)],
    }


def verdict(metric: Metric, rows: Sequence[Mapping[str, Any]]) -> str:
    """Who leads by how much, how sure that is, and whether any training was worth it."""
    trained = _ranked(metric, [row for row in rows if not row["baseline"]])
    simple = _ranked(metric, [row for row in rows if row["baseline"]])
    if not trained:
        return "Every candidate diverged: lower the learning rate."
    (lead, best), *others = trained
    unit = f" {metric.unit}" if metric.unit else ""
    alone = sum(not row["baseline"] for row in rows) == 1
    verb = "reaches" if alone else "is best with"
    text = f"{lead['name']} {verb} {best:.3g}{unit} {metric.name}"
    if others:
        second, other = others[0]
        pairs = [
            (a, b)
            for a, b in zip(lead["scores"][metric.name], second["scores"][metric.name], strict=True)
            if a is not None and b is not None
        ]
        won = sum(metric.wins(a, b) for a, b in pairs)
        gap = paired_difference(*zip(*pairs, strict=True)) if pairs else None
        ahead = best - other if gap is None else gap.mean
        spread = "" if gap is None or gap.half is None else f" ± {gap.half:.2g}"
        sure = gap is not None and gap.excludes_zero
        text += (
            f"; it leads {second['name']} by {ahead if metric.better == 'higher' else -ahead:.2g}"
            f"{spread} ({won} of {_seeds(len(pairs))}{'' if sure else ', not beyond the noise'})"
        )
    if simple:
        baseline, score = simple[0]
        verb = "beats" if metric.wins(best, score) else "does not beat"
        text += f". It {verb} {baseline['name']} ({score:.3g}), the best of the simple methods"
    said = [text, *_failures(metric, rows), _slowdown(rows)]
    return ". ".join(sentence for sentence in said if sentence) + "."


def _judge(domain: Domain, entrant: Entrant) -> dict[str, Any]:
    """Everything the report says of an entrant."""
    for model in entrant.models:
        scores = None if model is None else domain.score(model, "test", TEST)
        whole = scores is not None and all(map(math.isfinite, scores.values()))
        entrant.scores.append(scores if whole else None)
    model = entrant.best(domain.metrics[0])
    runs = [run for run in entrant.runs if run is not None]
    return {
        "name": entrant.name,
        "baseline": False,
        "parameters": None if model is None else measure.parameters(model),
        "config": entrant.config.to_dict(),
        "scores": {m.name: entrant.values(m.name) for m in domain.metrics},
        "seconds": [run.trainer.seconds for run in runs],
        "tokens": [run.trainer.tokens for run in runs],
        "tokens_per_second": [run.trainer.tokens / run.trainer.seconds for run in runs],
        "decode_per_second": None if model is None else measure.decode_per_second(model),
        "state_bytes": None if model is None else measure.state_bytes(model),
        "curve": [
            {"seed": seed, **{k: [look[k] for look in run.curve] for k in run.curve[0]}}
            for seed, run in enumerate(entrant.runs)
            if run is not None and run.curve
        ],
    }


def baseline_row(name: str, scores: Scores) -> dict[str, Any]:
    """What the report says of a simple method."""
    return {
        "name": name,
        "baseline": True,
        "parameters": None,
        "config": None,
        "scores": {metric: [score] for metric, score in scores.items()},
        "seconds": [],
        "tokens": [],
        "tokens_per_second": None,
        "decode_per_second": None,
        "state_bytes": None,
        "curve": [],
    }


def _ranked(
    metric: Metric, rows: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], float]]:
    """Rows with their mean score, best first; those without any score are left out."""
    scored = []
    for row in rows:
        values = [v for v in row["scores"].get(metric.name, []) if v is not None]
        if values:
            scored.append((row, mean_interval(values).mean))
    return sorted(scored, key=lambda pair: pair[1], reverse=metric.better == "higher")


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def _failures(metric: Metric, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The candidates that gave no score with some seed."""
    found = []
    for row in rows:
        values = row["scores"].get(metric.name, [])
        failed = sum(value is None for value in values)
        if failed and not row["baseline"]:
            found.append(f"{row['name']} failed with {failed} of {_seeds(len(values))}")
    return found


def _slowdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The candidate whose decoding suffers most from a long past, if any does."""
    falls = []
    for row in rows:
        if row["decode_per_second"]:
            short, long = row["decode_per_second"].values()
            falls.append((short / long, row["name"]))
    fall, name = max(falls, default=(1.0, ""))
    return (
        f"{name} decodes {fall:.1f}x slower after 65,536 steps than after 1,024" if fall > 2 else ""
    )
