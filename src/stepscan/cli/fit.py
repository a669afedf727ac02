"""`stepscan fit`: train a model on your data, and leave it in a folder."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tyro

from stepscan.apps.fit import FitOptions, fit, resume
from stepscan.apps.model import Model
from stepscan.apps.progress import Voice
from stepscan.cli.arguments import parse
from stepscan.cli.training import end
from stepscan.data.base import DataOptions


@dataclass(frozen=True)
class Args:
    """Train a model on your data within a budget, judge it beside simple methods, and save it."""

    data: tyro.conf.Positional[str] = "stdlib"
    """A file, a folder, or the name of a data set: stdlib, shakespeare, flights, elecdemand ..."""
    train: FitOptions = field(default_factory=FitOptions)
    """How to train."""
    read: DataOptions = field(default_factory=DataOptions)
    """How to read the data; what is left out is inferred and said."""
    out: Path | None = None
    """The run folder; left out, runs/NAME-1, runs/NAME-2 ..."""
    resume: Path | None = None
    """Go on with the run in this folder; everything else is taken from there."""
    json: bool = False
    """Print the results as JSON and nothing else."""
    quiet: bool = False
    """Print nothing."""


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    args = parse(Args, argv, command="fit")
    if args.resume is not None:
        alone = Args(resume=args.resume, json=args.json, quiet=args.quiet)
        if args != alone:
            raise ValueError(
                "fit: --resume takes the data and all settings from the run; leave the others out"
            )
    voice = Voice(quiet=args.quiet or args.json)

    def train() -> Model:
        if args.resume is not None:
            return resume(args.resume, voice=voice)
        return fit(args.data, options=args.read, out=args.out, voice=voice, **asdict(args.train))

    return end(train, as_json=args.json, quiet=args.quiet)
