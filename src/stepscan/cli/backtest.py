"""`stepscan backtest`: forecasts from several cutoffs, beside simple methods."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from stepscan.apps.model import Model
from stepscan.cli.arguments import parse
from stepscan.cli.forecast import of_data
from stepscan.cli.table import show, write_csv

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Args:
    """Say how the model would have done from several cutoffs, beside simple methods."""

    model: tyro.conf.Positional[Path]
    """A run folder or a model folder."""
    data: tyro.conf.Positional[str | None] = None
    """A file with the columns of the training data; left out, the training data itself."""
    windows: int = 4
    """How many cutoffs; the last one lies a horizon before the end of the data."""
    step: int | None = None
    """Steps between cutoffs; left out, the horizon."""
    refit: bool = False
    """Train anew on what lies before each cutoff, with the budget of the run."""
    every: int = 1
    """With --refit: before every so many windows."""
    levels: tuple[float, ...] = (80, 90)
    """Percent that the bands in the file hold."""
    horizons: tuple[int, ...] = ()
    """Score the first so many steps, for each number; left out, all."""
    out: Path | None = None
    """Write all forecasts as a csv file: unique_id, ds, cutoff, y, a column per method ..."""
    json: bool = False
    """Print the scores as JSON and nothing else."""


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    args = parse(Args, argv, command="backtest")
    model = Model.load(args.model)
    if args.every < 1:
        raise ValueError(f"backtest: want --every of 1 or more, got {args.every}")
    tested = model.backtest(
        of_data(args.data, model),
        windows=args.windows,
        step=args.step,
        refit=args.every if args.refit else False,
        levels=args.levels,
        horizons=args.horizons or None,
        say=lambda line: None if args.json else print(line, file=sys.stderr),
    )
    if args.out is not None:
        write_csv(tested.frame, args.out)
    scores = [{str(k): v for k, v in row.items()} for row in tested.scores.to_dict("records")]
    if args.json:
        clean = json.loads(tested.scores.to_json(orient="records"))  # NaN is null
        print(json.dumps({"scores": clean, "notes": tested.notes}, indent=2))
        return 0
    show(scores, as_json=False)
    for note in tested.notes:
        print(f"note     {note}")
    print(
        "\nEvery number is the mean over windows, then over series; lower is better, but coverage"
    )
    print("should be what its name says.")
    for metric, words in tested.definitions().items():
        print(f"{metric:12} {words}")
    if args.out is not None:
        print(f"saved    {args.out}  {len(tested.frame):,} rows")
    return 0
