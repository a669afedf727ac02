"""`stepscan compare`: several models on your data in equal time, and a report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from stepscan.apps.compare import compare
from stepscan.apps.progress import Voice
from stepscan.cli.arguments import names, parse
from stepscan.data.base import DataOptions


@dataclass(frozen=True)
class Args:
    """Train several models in equal time on this machine, and judge them beside simple methods."""

    data: tyro.conf.Positional[tuple[str, ...]] = ("stdlib",)
    """Files, folders, or names of data sets."""
    mixers: str = "gated_delta_net,mamba2,attention,lstm"
    """Mixers or layer patterns, separated by commas."""
    minutes: float = 1.0
    """Training time of each candidate and seed."""
    seeds: int = 2
    """How many times each candidate is trained."""
    width: int | None = None
    """Model width."""
    scaling: int = 0
    """Also train for the half of the time, the quarter ..., so many times, and fit how the score
    falls with time: three or more."""
    rows: int | None = None
    """Sequences per batch."""
    length: int | None = None
    """Steps per training window."""
    learning_rate: float | None = None
    """Peak of the schedule."""
    read: DataOptions = field(default_factory=DataOptions)
    """How to read the data; what is left out is inferred and said."""
    out: Path | None = None
    """The run folder; left out, runs/compare-NAME-1 ..."""
    json: bool = False
    """Print the results as JSON and nothing else."""
    quiet: bool = False
    """Print nothing."""


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    args = parse(Args, argv, command="compare")
    results = compare(
        args.data,
        names(args.mixers),
        minutes=args.minutes,
        seeds=args.seeds,
        width=args.width,
        scaling=args.scaling,
        options=args.read,
        out=args.out,
        voice=Voice(quiet=args.quiet or args.json),
        rows=args.rows,
        length=args.length,
        learning_rate=args.learning_rate,
    )
    if args.json:
        print(json.dumps(results, indent=2))
    return 0
