"""Which memory does this task need? Mixers x tasks under one protocol, as a picture and a table."""

import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stepscan.apps import runs
from stepscan.apps.bench import compute, hybrid, matrix, orderings, pairs
from stepscan.apps.bench.findings import findings
from stepscan.apps.bench.hybrid import Sweep
from stepscan.apps.bench.protocol import QUICK, Protocol, config_of
from stepscan.apps.bench.study import TRAININGS, Study, work
from stepscan.apps.progress import Voice
from stepscan.apps.report import bench as report
from stepscan.names import lookup
from stepscan.tasks import TASKS

__all__ = ["MIXERS", "QUICK", "QUICK_TASKS", "Protocol", "Sweep", "bench", "redraw"]

VERSION = 1
POLL = 2.0  # seconds between looks at the queue, which the workers fill
EACH = 40  # cells of a process: kernels kept for each new shape add some megabytes a cell
MIXERS = (
    "attention",
    "linear_attention",
    "gla",
    "gated_delta_net",
    "gated_delta_product",
    "mamba",
    "s4d",
    "lstm",
)
"""One of each kind: what a bench compares when nothing is said."""
QUICK_TASKS = (
    "parity",
    "word_problem",
    "recall",
    "rebinding",
    "selective_copy",
    "induction_heads",
    "delay",
    "copying",
)


def bench(
    mixers: Sequence[str] = MIXERS,
    tasks: Sequence[str] = QUICK_TASKS,
    *,
    protocol: Protocol = QUICK,
    sweep: Sweep | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    trained: str | os.PathLike[str] | None = None,
    storage: str | None = None,
    workers: int | None = None,
    voice: Voice | None = None,
) -> dict[str, Any]:
    """Train every mixer on every task under the protocol, judge them, and leave a report.

    Args:
        mixers: Names, with options or not, or patterns of layers.
        tasks: Names of tasks.
        protocol: What is equal for all, and how much is trained.
        sweep: Hybrids to compare, instead of `mixers`.
        out: The run folder; None makes one under runs/.
        resume: A run folder to go on with, by its own mixers, tasks and protocol.
        trained: An earlier run folder whose trainings are taken where they are the same: to widen
            it by mixers, tasks, rates or seeds.
        storage: URL of a database that several machines share (they share the folder, too); None
            is a file in the folder.
        workers: Processes of one thread each; None is one per core, 0 works in this process.
        voice: Where to say it; None is standard output.

    Returns:
        What results.json holds; report.html and matrix.svg lie beside it.
    """
    voice = voice or Voice()
    if resume is not None:
        folder = Path(resume)
        plan = dict(runs.read_json(folder / "plan.json"))
        mixers, tasks = plan["mixers"], plan["tasks"]
        protocol = Protocol.from_dict(plan["protocol"])
    else:
        if sweep is not None:
            mixers = tuple(sweep.patterns())
            protocol = dataclasses.replace(protocol, layers=sweep.layers)
        check(mixers, tasks, protocol)
        finished = [] if trained is None else _finished(Path(trained))
        folder = runs.new_folder("bench", out)
        (folder / TRAININGS).mkdir()
        for path in finished:
            shutil.copy(path, folder / TRAININGS)
        plan = {"mixers": [*mixers], "tasks": [*tasks], "protocol": protocol.to_dict()}
        plan |= {} if sweep is None else {"hybrids": sweep.patterns()}
        runs.write_json(folder / "plan.json", plan)
    study = Study(folder, storage)
    study.add([(mixer, task) for task in tasks for mixer in mixers])
    voice.say(f"bench  {len(mixers)} mixers, {len(tasks)} tasks, in {folder}")
    if protocol.budget == "compute":
        threads = torch.get_num_threads() if workers == 0 else 1  # as the trainings have
        plan["budgets"] = compute.budgets(
            folder, mixers, tasks, protocol, threads=threads, told=voice.say
        )
    _work(study, folder, storage, protocol, workers, voice)
    return _finish(folder, plan, study, voice)


def redraw(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Write the report of a run folder again, from its results.json alone."""
    path = Path(folder)
    results = dict(runs.read_json(path / "results.json"))
    if results.get("version") != VERSION or results.get("kind") != "bench":
        raise ValueError(f"{path}/results.json: want results of a bench, version {VERSION}")
    report.write(results, path)
    return results


def check(mixers: Sequence[str], tasks: Sequence[str], protocol: Protocol) -> None:
    """`ValueError` about the first mixer or task that cannot be run, before anything is."""
    if not mixers or not tasks:
        raise ValueError("bench: want at least one mixer and one task")
    for task in tasks:
        lookup(TASKS, task, kind="task")
        for factor in protocol.factors[1:]:
            TASKS[task]().longer(factor)
    for mixer in mixers:
        config_of(mixer, TASKS[tasks[0]](), protocol)


def _finished(folder: Path) -> list[Path]:
    """The trainings of an earlier run."""
    found = sorted((folder / TRAININGS).glob("*.json"))
    if not found:
        raise ValueError(f"bench: {folder}: want a run folder with trainings in {TRAININGS}/")
    return found


def _work(
    study: Study,
    folder: Path,
    storage: str | None,
    protocol: Protocol,
    workers: int | None,
    voice: Voice,
    each: int = EACH,
) -> None:
    """Until every cell is done, by other processes or here. A process does `each` cells and is
    followed by another.
    """
    count = os.cpu_count() or 1 if workers is None else workers
    if count == 0:
        study.work(protocol, voice.say)
        return
    context = multiprocessing.get_context("spawn")
    arguments = (folder, storage, protocol.to_dict(), each)

    def hire() -> multiprocessing.context.SpawnProcess:
        member = context.Process(target=work, args=arguments, daemon=True)
        member.start()
        return member

    def gone(member: multiprocessing.context.SpawnProcess) -> bool:
        return member.exitcode == 0 and bool(study.unfinished())

    crew = [hire() for _ in range(count)]
    total = len(study.cells())
    try:
        with voice.moving():
            seen: set[tuple[str, str]] = set()
            while True:
                crew = [hire() if gone(member) else member for member in crew]
                alive = [member.sentinel for member in crew if member.exitcode is None]
                if not alive and not any(map(gone, crew)):
                    break
                multiprocessing.connection.wait(alive, timeout=POLL)
                for cell, best in study.best().items():
                    if cell not in seen:
                        seen.add(cell)
                        voice.say(f"{len(seen):4} of {total}  {best:6.3f}  {cell[0]} on {cell[1]}")
                voice.show(len(seen) / total, f"{len(seen)} of {total}")
    finally:
        for member in crew:
            member.terminate()


def _finish(folder: Path, plan: Mapping[str, Any], study: Study, voice: Voice) -> dict[str, Any]:
    done, failed = study.done(), study.failed()
    wanted = [(mixer, task) for mixer in plan["mixers"] for task in plan["tasks"]]
    found = matrix.cells({cell: done[cell] for cell in wanted if cell in done})
    results: dict[str, Any] = {
        "version": VERSION,
        "kind": "bench",
        "title": "stepscan bench",
        **{k: v for k, v in runs.results("", [], runs.command_line()).items() if k not in SECTIONS},
        **plan,
        "chance": {task: TASKS[task]().chance for task in plan["tasks"]},
        "abilities": {task: TASKS[task].ability for task in plan["tasks"]},
        "cells": found,
        "failed": [{"mixer": m, "task": t, "why": why} for (m, t), why in failed.items()],
        "findings": [
            *findings(found),
            *pairs.findings(found),
            *compute.findings(found, plan["protocol"]),
        ],
        "orderings": orderings.check(found),
    }
    if "hybrids" in plan:
        results["sweep"] = hybrid.summary(found, plan["hybrids"])
        results["findings"] += hybrid.findings(results["sweep"])
    runs.write_json(folder / "results.json", results)
    report.write(results, folder)
    voice.say("", *results["findings"], "", f"report   {folder}/report.html")
    return results | {"folder": str(folder)}


SECTIONS = ("version", "title", "sections")
