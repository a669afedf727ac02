"""Equal compute: the measured speed of a mixer on a task makes its share of CPU time into steps.

A budget in steps can be repeated exactly, one in seconds cannot; so the speed is measured once, the
steps that follow from it lie in the run folder, and what the trainings really took is in the
report. Mixers take turns while they are measured: what else the machine does hits all alike.

Source: Stanić et al. 2023, arXiv:2309.11197.
"""

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from stepscan.apps import runs
from stepscan.apps.bench.protocol import Protocol, config_of
from stepscan.apps.bench.training import BETAS, TRAIN, WEIGHT_DECAY, Descent
from stepscan.models import SequenceModel
from stepscan.tasks import TASKS, Task
from stepscan.train.self_pretrain import self_pretrain

ROUNDS, TURN = 7, 0.25
"""Turns that every mixer takes before a bench, and how many seconds of CPU time each lasts."""
LEVEL = 0.03
"""How far from their median trainings of equal compute may end."""
FILE = "budgets.json"

Clock = Callable[[], float]


def budgets(
    folder: Path,
    mixers: Sequence[str],
    tasks: Sequence[str],
    protocol: Protocol,
    *,
    threads: int,
    told: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Any]]:
    """Task -> mixer -> speed and steps: those in the folder, or measured now and put there.

    Args:
        folder: Of the run.
        mixers: Names or patterns.
        tasks: Names.
        protocol: Of the trainings to come.
        threads: Of each of them.
        told: Where to say what is going on.
    """
    path = folder / FILE
    if path.exists():
        return dict(runs.read_json(path))
    found = {}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for task in tasks:
            told(f"measuring speeds on {task}")
            found[task] = measure(mixers, TASKS[task](), protocol, rounds=ROUNDS, turn=TURN)
    finally:
        torch.set_num_threads(before)
    runs.write_json(path, found)
    return found


def of_cell(protocol: Protocol, folder: Path, mixer: str, task: str) -> Protocol:
    """The protocol of one cell: its own steps, whatever time they take."""
    if protocol.budget == "steps":
        return protocol
    budget = runs.read_json(folder / FILE)[task][mixer]
    return dataclasses.replace(protocol, steps=budget["steps"], seconds=math.inf)


def measure(
    mixers: Sequence[str],
    task: Task,
    protocol: Protocol,
    *,
    rounds: int = 7,
    turn: float = 0.25,
    clock: Clock = time.process_time,
) -> dict[str, dict[str, Any]]:
    """Mixer -> CPU seconds and tokens of a step, tokens per second, their spread, and the steps.

    Args:
        mixers: Names or patterns.
        task: What they are trained on.
        protocol: Of the trainings to come.
        rounds: Turns that count; one before them warms up.
        turn: Seconds of each.
        clock: CPU time so far.

    Raises:
        ValueError: the budget does not reach for a single step.
    """
    pace: dict[str, list[float]] = {mixer: [] for mixer in mixers}
    pretraining: dict[str, list[float]] = {mixer: [] for mixer in mixers}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(0)
        descents = {
            mixer: Descent(
                SequenceModel(config_of(mixer, task, protocol)), task, protocol, rate=1e-4, seed=0
            )
            for mixer in mixers
        }
        for i in range(rounds + 1):
            for mixer in mixers if i % 2 else reversed(mixers):
                pace[mixer].append(_turn(descents[mixer], turn, clock))
                if protocol.self_pretrain:
                    pretraining[mixer].append(_pretraining(descents[mixer], protocol))
    found = {}
    for mixer in mixers:
        warm = pace[mixer][1:]
        step = median(warm)
        spent = protocol.self_pretrain * median(pretraining[mixer][1:] or [0.0])
        steps = round((protocol.seconds - spent) / step)
        if steps < 1:
            raise ValueError(
                f"bench: {protocol.seconds:g} seconds of {mixer} on {task.name} are no step; "
                f"one takes {step:.3g}, self-pretraining {spent:.3g}: want more seconds"
            )
        tokens = descents[mixer].tokens
        found[mixer] = {
            "seconds_per_step": step,
            "tokens_per_second": tokens / step,
            "spread": median(abs(turn - step) for turn in warm) / step,
            "pretraining_seconds": spent,
            "steps": steps,
            "tokens": steps * tokens,
        }
    return found


def findings(cells: Sequence[Mapping[str, Any]], protocol: Mapping[str, Any]) -> list[str]:
    """Whether trainings of equal compute did end together; those that learned before do not count.

    Cells train in different hours and processes, so it is not certain: it is measured.
    """
    if protocol.get("budget") != "compute":
        return []
    took = [
        seconds
        for cell in cells
        for seconds, ended in zip(cell["total_seconds"], cell["ended"], strict=True)
        if ended == "budget"
    ]
    if not took:
        return []
    middle = median(took)
    level = sum(abs(seconds / middle - 1) <= LEVEL for seconds in took)
    said = (
        f"Equal compute: {level} of {len(took)} whole trainings ended within {LEVEL:.0%} of "
        f"{middle:.1f} seconds of one core"
    )
    return [f"{said} (from {min(took):.1f} to {max(took):.1f})."]


def _turn(descent: Descent, seconds: float, clock: Clock) -> float:
    """CPU seconds of a step, over a turn."""
    begin, steps = clock(), 0
    while clock() - begin < seconds:
        descent.step(1.0)
        steps += 1
    return (clock() - begin) / steps


def _pretraining(descent: Descent, protocol: Protocol, steps: int = 3) -> float:
    """CPU seconds of a step of self-pretraining."""
    found = self_pretrain(
        descent.model,
        descent.task,
        steps=steps,
        batch=protocol.batch,
        rate=1e-4,
        seed=TRAIN,
        weight_decay=WEIGHT_DECAY,
        betas=BETAS,
    )
    return found["seconds"] / steps
