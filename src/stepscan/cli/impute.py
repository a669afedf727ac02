"""`stepscan impute`: fill the gaps of series, with bands."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from stepscan.apps.model import Model
from stepscan.cli.arguments import parse
from stepscan.cli.table import show, write_csv

SHOWN = 20


@dataclass(frozen=True)
class Args:
    """Fill every missing value between two known ones."""

    model: tyro.conf.Positional[Path]
    """A run folder or a model folder."""
    data: tyro.conf.Positional[str]
    """A file with the columns of the training data."""
    out: Path | None = None
    """Write all steps to a csv file; else the filled ones are printed."""
    json: bool = False
    """Print JSON: the filled ones."""


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    args = parse(Args, argv, command="impute")
    frame = Model.load(args.model).impute(args.data)
    filled = frame[frame["missing"]]
    said = f"{len(filled):,} of {len(frame):,} values were missing"
    if args.out is not None:
        write_csv(frame, args.out)
        print(f"saved  {args.out}  {said}")
        return 0
    rows = filled[["series", "time", "value", "low", "high"]].astype({"time": str})
    records = [{str(k): v for k, v in row.items()} for row in rows.to_dict("records")]
    if args.json:
        print(json.dumps(records, indent=2))
        return 0
    if records:
        show(records[:SHOWN], as_json=False)
    more = len(records) - SHOWN
    print(said + (f"; {more:,} more with --out or --json" if more > 0 else ""))
    return 0
