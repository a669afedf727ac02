"""Published orderings, each mixer at the best of several rates and with several seeds.

    OMP_NUM_THREADS=1 python benchmarks/orderings.py [--seeds 3] [--steps 800]

Only the cells that a claim of `stepscan.apps.bench.orderings` speaks of are trained, by the
protocol of `stepscan bench`, with steps as the budget: a busy machine does not change the result.
Trainings that are finished lie in --folder and are not done again.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from stepscan.apps import runs
from stepscan.apps.bench import matrix
from stepscan.apps.bench.orderings import CLAIMS, check
from stepscan.apps.bench.protocol import Protocol
from stepscan.apps.bench.study import run_cell
from stepscan.cli.speed import write

RESULT = Path(__file__).parent / "results" / "orderings.json"
AS_WRITTEN = {"gated_delta_product": "gated_delta_product[window=1]"}
"""The short convolution of the default hides the order of the steps from S3 (docs/log.md)."""
LEFT_OUT = ("slstm", "elman", "s4")
"""Named by a claim beside a relative: lstm and gru, s4d."""


def main() -> None:
    """Train what is missing, judge the claims, keep both."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--steps", type=int, default=800)
    words.add_argument("--seeds", type=int, default=3)
    words.add_argument("--folder", type=Path, default=Path("runs/orderings"))
    words.add_argument("--out", type=Path, default=RESULT)
    asked = words.parse_args()
    torch.set_num_threads(1)
    protocol = Protocol(steps=asked.steps, seconds=600.0, seeds=asked.seeds, looks=5)
    done = {}
    for mixer, task in wanted():
        done[mixer, task] = run_cell(mixer, task, protocol, asked.folder, said)
        cells = matrix.cells(done)
        found = {
            "command": " ".join(["python", *sys.argv]),
            "machine": runs.machine(),
            "versions": runs.versions(),
            "protocol": protocol.to_dict(),
            "orderings": check(cells),
            "cells": cells,
        }
        write(asked.out, json.dumps(found, indent=1) + "\n")
    for row in check(matrix.cells(done)):
        print(f"{row['verdict']}: {row['claim']} ({row['task']})")


def wanted() -> list[tuple[str, str]]:
    """Each mixer and task that some claim is about, once."""
    cells = {
        (AS_WRITTEN.get(mixer, mixer), task): None
        for claim in CLAIMS
        for task in claim.tasks
        for mixer in (*claim.better, *claim.worse)
        if mixer not in LEFT_OUT
    }
    return list(cells)


def said(line: str) -> None:
    """What is trained now."""
    print(line, flush=True)


if __name__ == "__main__":
    main()
