"""The table of a recorded bench, as Markdown for the docs: score above chance, and at a length.

python benchmarks/matrix_table.py benchmarks/results/bench_matrix.json --length 4
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from stepscan.apps.bench import matrix


def table(results: Mapping[str, Any], length: str) -> list[str]:
    """One row a mixer, the best mean first; `94, 21` is at the training length and at `length`."""
    near, far = (matrix.table(results["cells"], factor) for factor in ("1", length))
    tasks = results["tasks"]
    order = sorted(near, key=lambda m: -fmean(near[m].values()))
    head = ["mixer", "mean", *(f"`{task}`" for task in tasks)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for mixer in order:
        cells = [
            f"{100 * near[mixer][t]:.0f}, {100 * far[mixer][t]:.0f}"
            if t in near[mixer] and t in far[mixer]
            else "-"
            for t in tasks
        ]
        mean = f"{100 * fmean(near[mixer].values()):.0f}"
        lines.append(f"| {' | '.join([f'`{mixer}`', mean, *cells])} |")
    return lines


def verdicts(results: Mapping[str, Any]) -> list[str]:
    """The published orderings, one row each."""
    lines = ["| claim | task, length | scores | verdict |", "|---|---|---|---|"]
    for row in results["orderings"]:
        better, worse = (
            ", ".join(f"`{m}` {100 * v:.0f}" for m, v in row[side].items())
            for side in ("better", "worse")
        )
        claim = f"{row['claim']} ({row['source']})"
        lines.append(
            f"| {claim} | `{row['task']}`, {row['length']}x | {better}; {worse} | "
            f"{row['verdict']} |"
        )
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--length", default="4", help="the other length, as a factor")
    options = parser.parse_args()
    recorded = json.loads(options.results.read_text())
    print("\n".join([*table(recorded, options.length), "", *verdicts(recorded)]))
