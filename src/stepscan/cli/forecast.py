"""`stepscan forecast`: quantiles of the next values of series."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from stepscan.apps.model import Model
from stepscan.cli.arguments import parse
from stepscan.cli.table import show
from stepscan.data.named import NAMED
from stepscan.data.open import open_dataset


@dataclass(frozen=True)
class Args:
    """Forecast every series in a table, after its last value."""

    model: tyro.conf.Positional[Path]
    """A run folder or a model folder."""
    data: tyro.conf.Positional[str | None] = None
    """A file with the columns of the training data; left out, the training data itself."""
    out: Path | None = None
    """Write a csv file instead of printing."""
    json: bool = False
    """Print JSON."""


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    args = parse(Args, argv, command="forecast")
    model = Model.load(args.model)
    named = args.data in NAMED and not Path(args.data).exists()
    frame = model.forecast(open_dataset(args.data) if named else args.data)
    if args.out is not None:
        part = args.out.with_name(f".{args.out.name}.part")
        frame.to_csv(part, index=False)
        part.replace(args.out)
        print(f"saved  {args.out}  {len(frame):,} rows")
        return 0
    rows = frame.to_dict("records")
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        show(rows, as_json=False)
    return 0
