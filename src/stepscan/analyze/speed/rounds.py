"""Fair timing: all that is compared runs in one process, in rounds that take turns.

The first run of each warms up and is kept apart: it also pays for what is compiled or allocated
once. What is slow is run less often, down to that first run alone, and says so by its count.
"""

import gc
from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter
from typing import NamedTuple

Run = Callable[[], object]


class Timing(NamedTuple):
    """Seconds."""

    first: float
    median: float
    least: float
    count: int
    """Runs that the median is of; 1 may be the first run, see `budget` of `in_turns`."""


def in_turns(runs: Mapping[str, Run], *, rounds: int, budget: float) -> dict[str, Timing]:
    """Time every run at most `rounds` times, and no more once it took `budget` seconds in all."""
    firsts = {name: seconds(run) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    spent = dict(firsts)
    collecting = gc.isenabled()
    gc.disable()  # or one of them would pay for what the others left behind
    try:
        for _ in range(rounds):
            for name, run in runs.items():
                if spent[name] < budget:
                    times[name].append(seconds(run))
                    spent[name] += times[name][-1]
            gc.collect(0)
    finally:
        if collecting:
            gc.enable()
    return {name: _timing(firsts[name], times[name]) for name in runs}


def seconds(run: Run) -> float:
    """One run."""
    start = perf_counter()
    run()
    return perf_counter() - start


def _timing(first: float, times: list[float]) -> Timing:
    times = times or [first]
    return Timing(first, median(times), min(times), len(times))
