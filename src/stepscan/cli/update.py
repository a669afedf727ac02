"""`stepscan update`: go on training a model of series on new data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from stepscan.apps.fit import fit
from stepscan.apps.model import Model
from stepscan.apps.progress import Voice
from stepscan.cli.arguments import parse
from stepscan.cli.training import end
from stepscan.data.base import DataOptions


@dataclass(frozen=True)
class Args:
    """Go on training a model of series on new data, with the weights and the scales it has."""

    run: tyro.conf.Positional[Path]
    """The run, or its model folder; it stays as it is."""
    data: tyro.conf.Positional[str]
    """A file with the columns that the model learned from; new series are welcome."""
    minutes: float | None = None
    """Budget in minutes of training; left out, 3."""
    steps: int | None = None
    """Budget in optimizer steps, instead."""
    learning_rate: float | None = None
    """Peak of the schedule; left out, a third of the recipe's."""
    valid: float | None = None
    """The part held out for choosing: a fraction below 1, or a number of steps."""
    test: float | None = None
    """The part held out for the final figure, in the same way."""
    missing: tuple[str, ...] = ()
    """Further strings that mean a missing value; left out, those of the run."""
    seed: int = 0
    """Decides the batches."""
    out: Path | None = None
    """The new run folder; left out, runs/NAME-1, runs/NAME-2 ..."""
    json: bool = False
    """Print the results as JSON and nothing else."""
    quiet: bool = False
    """Print nothing."""


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    args = parse(Args, argv, command="update")
    budget = {"minutes": args.minutes, "steps": args.steps}

    def train() -> Model:
        return fit(
            args.data,
            options=DataOptions(valid=args.valid, test=args.test, missing=args.missing),
            out=args.out,
            voice=Voice(quiet=args.quiet or args.json),
            warm_start=args.run,
            learning_rate=args.learning_rate,
            seed=args.seed,
            **budget,
        )

    return end(train, as_json=args.json, quiet=args.quiet)
