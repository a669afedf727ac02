"""`stepscan anomalies`: values of series that do not fit what came before them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from stepscan.apps.model import Model
from stepscan.cli.arguments import parse
from stepscan.cli.forecast import of_data
from stepscan.cli.table import show, write_csv

SHOWN = 20


@dataclass(frozen=True)
class Args:
    """Score every value by the forecasts that were made of it."""

    model: tyro.conf.Positional[Path]
    """A run folder or a model folder."""
    data: tyro.conf.Positional[str | None] = None
    """A file with the columns of the training data; left out, its own test part."""
    rate: float = 0.001
    """The share of sound values that may be called anomalies."""
    ahead: tuple[int, ...] = ()
    """Judge by forecasts of so many steps ahead; left out, 1 and the whole horizon."""
    out: Path | None = None
    """Write all steps with their scores to a csv file; else the anomalies are printed."""
    json: bool = False
    """Print JSON: the anomalies."""


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    args = parse(Args, argv, command="anomalies")
    model = Model.load(args.model)
    frame = model.anomalies(of_data(args.data, model), rate=args.rate, ahead=args.ahead or None)
    found = frame[frame["anomaly"]].sort_values("score", ascending=False)
    said = f"{len(found):,} of {len(frame):,} values at a rate of {args.rate:g}"
    if args.out is not None:
        write_csv(frame, args.out)
        print(f"saved  {args.out}  {said}")
        return 0
    columns = ["series", "time", "value", "expected", "low", "high", "score"]
    rows = found[columns].astype({"time": str}).to_dict("records")
    rows = [{str(k): v for k, v in row.items()} for row in rows]
    if args.json:
        print(json.dumps(rows, indent=2))
    elif rows:
        show(rows[:SHOWN], as_json=False)
        more = len(rows) - SHOWN
        print(said + (f"; {more:,} more with --out or --json" if more > 0 else ""))
    else:
        print(said)
    return 0
