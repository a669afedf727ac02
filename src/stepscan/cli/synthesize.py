"""`stepscan synthesize`: series that were never measured, made like those that were."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from stepscan.apps.series.synthesis import synthesize
from stepscan.cli.arguments import parse
from stepscan.cli.table import write_csv
from stepscan.data.base import DataOptions


@dataclass(frozen=True)
class Args:
    """Learn what windows of your series look like, make new ones, and say how good they are."""

    data: tyro.conf.Positional[str]
    """A file with series, or the name of a data set."""
    out: Path
    """The csv file to write: series, step, value."""
    count: int = 100
    """How many series to make."""
    length: int = 24
    """Steps of each."""
    steps: int = 1500
    """Of training."""
    read: DataOptions = field(default_factory=DataOptions)
    """How to read the data; what is left out is inferred."""
    seed: int = 0
    """Of the training and of what is made."""
    json: bool = False
    """Print the scores as JSON and nothing else."""


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    args = parse(Args, argv, command="synthesize")
    made = synthesize(
        args.data,
        args.count,
        length=args.length,
        steps=args.steps,
        options=args.read,
        seed=args.seed,
    )
    write_csv(made.frame, args.out)
    scores = {
        "discriminative": made.discriminative,
        "predictive": made.predictive,
        "predictive_real": made.predictive_real,
    }
    if args.json:
        print(json.dumps({"out": str(args.out), **scores}))
        return 0
    print(
        f"saved  {args.out}  {args.count:,} series of {args.length} steps\n"
        f"told apart from real ones: {0.5 + made.discriminative:.0%} of the time "
        "(50% is guessing)\n"
        f"learned from, error on real ones: {made.predictive:.3f} "
        f"(learned from real ones: {made.predictive_real:.3f})"
    )
    return 0
