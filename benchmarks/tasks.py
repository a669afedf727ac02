"""Tokens per second that each task draws, on one thread: it must never be the bottleneck.

python benchmarks/tasks.py benchmarks/results/tasks.json
"""

import json
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from stepscan.analyze.speed.machine import describe
from stepscan.tasks import TASKS

WANTED, ROUNDS, EXAMPLES = 50_000, 5, 64


def main() -> None:
    torch.set_num_threads(1)
    tasks = {name: task() for name, task in TASKS.items()}
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    rng = torch.Generator().manual_seed(0)
    tokens = {}
    for name, task in tasks.items():
        rows, steps = task.draw(EXAMPLES, rng).input.shape[:2]
        tokens[name] = rows * steps
    for _ in range(ROUNDS):
        for name, task in tasks.items():
            start = perf_counter()
            task.draw(EXAMPLES, rng)
            taken[name].append(perf_counter() - start)
    rates = {name: tokens[name] / median(times) for name, times in taken.items()}
    for name, rate in sorted(rates.items(), key=lambda pair: pair[1]):
        print(f"{name:28} {rate:12,.0f} tokens/s{'' if rate >= WANTED else '  too slow'}")
    if len(sys.argv) > 1:
        found = {**describe(), "command": "python benchmarks/tasks.py", "tokens_per_second": rates}
        Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
