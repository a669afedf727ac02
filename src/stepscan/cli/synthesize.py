"""`stepscan synthesize`: series that were never measured, made like those that were; or more
sequences of a rare class.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from stepscan.apps.labelled.synthesis import STEPS, more_of
from stepscan.apps.series.synthesis import synthesize
from stepscan.cli.arguments import parse
from stepscan.cli.table import write_csv
from stepscan.data.base import DataOptions


@dataclass(frozen=True)
class Args:
    """Learn what windows of your series look like, make new ones, and say how good they are.

    With --of, labelled sequences: more of one class, for training.
    """

    data: tyro.conf.Positional[str]
    """A file with series, or the name of a data set; with --of a table of labelled sequences."""
    out: Path
    """The csv file to write: series, step, value; with --of all sequences, old and new, and a
    column `split`."""
    of: str | None = None
    """The class to make more of."""
    count: int | None = None
    """How many to make; left out, 100, or as many as make the class as frequent as any."""
    length: int | None = None
    """Steps of each series; left out, 24."""
    steps: int | None = None
    """Of training; left out, 1500, or 300 for a class."""
    read: DataOptions = field(default_factory=DataOptions)
    """How to read the data; what is left out is inferred."""
    seed: int = 0
    """Of the training and of what is made."""
    json: bool = False
    """Print the scores as JSON and nothing else."""


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    args = parse(Args, argv, command="synthesize")
    if args.of is not None:
        return _more(args)
    length = 24 if args.length is None else args.length
    count = 100 if args.count is None else args.count
    made = synthesize(
        args.data,
        count,
        length=length,
        steps=1500 if args.steps is None else args.steps,
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
        f"saved  {args.out}  {count:,} series of {length} steps\n"
        f"told apart from real ones: {0.5 + made.discriminative:.0%} of the time "
        "(50% is guessing)\n"
        f"learned from, error on real ones: {made.predictive:.3f} "
        f"(learned from real ones: {made.predictive_real:.3f})"
    )
    return 0


def _more(args: Args) -> int:
    """Of a class."""
    if args.length is not None:
        raise ValueError("synthesize: sequences are as long as those of the class; leave --length")
    made = more_of(
        Path(args.data),
        args.of,
        args.count,
        steps=STEPS if args.steps is None else args.steps,
        options=replace(args.read, kind="labelled"),
        seed=args.seed,
    )
    write_csv(made.frame, args.out)
    if args.json:
        told = {"label": made.label, "made": made.count, "learned_from": made.learned_from}
        print(json.dumps({"out": str(args.out), **told, **made.nearest._asdict()}))
        return 0
    print(
        f'saved  {args.out}  {made.count:,} sequences of "{made.label}", made like '
        f"{made.learned_from:,} of the training part, beside all that were there\n"
        f"nearest training sequence at {made.nearest.made:.3g}, from real ones held out "
        f"{made.nearest.held_out:.3g} (p {made.nearest.p:.2g}, no copies)\n"
        f"next   stepscan fit {args.out}      compare it with the model of {args.data}"
    )
    return 0
