"""`stepscan update`: a model of series goes on: trained on new data, or learning as it reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from stepscan.apps.fit import fit
from stepscan.apps.model import Model
from stepscan.apps.progress import Voice
from stepscan.apps.series.online_run import learn_on
from stepscan.cli.arguments import parse
from stepscan.cli.training import end
from stepscan.data.base import DataOptions


@dataclass(frozen=True)
class Args:
    """Go on training a model of series on new data, with the weights and the scales it has.

    With --learn it reads the new rows once, in order, and learns from each as its time comes.
    """

    run: tyro.conf.Positional[Path]
    """The run, or its model folder; it stays as it is."""
    data: tyro.conf.Positional[str]
    """A file with the columns that the model learned from; new series are welcome."""
    minutes: float | None = None
    """Budget in minutes of training; left out, 3."""
    steps: int | None = None
    """Budget in optimizer steps, instead."""
    learn: bool = False
    """Learn online: forecast every new row, then learn from it; no budget, no held-out parts."""
    method: str | None = None
    """With --learn: uoro, dni, rtrl or snap1; left out, uoro."""
    since: str | None = None
    """With --learn: the time of the last row learned from; left out, the end of the run's data."""
    learning_rate: float | None = None
    """Peak of the schedule; left out, a third of the recipe's. With --learn of every step; left
    out, 0.0001."""
    valid: float | None = None
    """The part held out for choosing: a fraction below 1, or a number of steps."""
    test: float | None = None
    """The part held out for the final figure, in the same way."""
    missing: tuple[str, ...] = ()
    """Further strings that mean a missing value; left out, those of the run."""
    seed: int = 0
    """Decides the batches, and the random signs of uoro."""
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
    _check(args)

    def learn() -> Model:
        told = {"method": args.method, "learning_rate": args.learning_rate}
        return learn_on(
            args.run,
            args.data,
            since=args.since,
            out=args.out,
            voice=Voice(quiet=args.quiet or args.json),
            seed=args.seed,
            **{name: value for name, value in told.items() if value is not None},  # type: ignore
        )

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

    return end(learn if args.learn else train, as_json=args.json, quiet=args.quiet)


def _check(args: Args) -> None:
    """Raise `ValueError` at an option of the other way to go on."""
    theirs = ("minutes", "steps", "valid", "test", "missing") if args.learn else ("method", "since")
    for name in theirs:
        if getattr(args, name) not in (None, ()):
            raise ValueError(
                f"update: --learn reads every new row once; leave out --{name}"
                if args.learn
                else f"update: --{name} is for --learn"
            )
