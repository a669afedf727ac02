"""`stepscan forecast`: quantiles of the next values of series."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from stepscan.apps.model import Model
from stepscan.cli.arguments import parse
from stepscan.cli.table import show, write_csv
from stepscan.data.base import Dataset
from stepscan.data.named import NAMED
from stepscan.data.open import open_dataset


@dataclass(frozen=True)
class Args:
    """Forecast every series in a table, after its last value."""

    model: tyro.conf.Positional[Path]
    """A run folder or a model folder."""
    data: tyro.conf.Positional[str | None] = None
    """A file with the columns of the training data; left out, the training data itself."""
    horizon: int | None = None
    """Fewer steps than the model learned."""
    quantiles: tuple[float, ...] = ()
    """Those wanted, such as 0.1 0.5 0.9; left out, all that the model learned."""
    levels: tuple[float, ...] = ()
    """Percent that central bands are to hold: columns unique_id, ds, median, lo-80, hi-80 ..."""
    samples: int | None = None
    """Draw so many futures instead."""
    seed: int = 0
    """Of the samples."""
    out: Path | None = None
    """Write a csv file instead of printing."""
    json: bool = False
    """Print JSON."""


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    args = parse(Args, argv, command="forecast")
    model = Model.load(args.model)
    frame = model.forecast(
        of_data(args.data, model),
        horizon=args.horizon,
        quantiles=args.quantiles or None,
        levels=args.levels or None,
        samples=args.samples,
        seed=args.seed,
    )
    if "ds" in frame:
        frame["ds"] = frame["ds"].astype(str)
    if args.out is not None:
        write_csv(frame, args.out)
        print(f"saved  {args.out}  {len(frame):,} rows")
        return 0
    rows = [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        show(rows, as_json=False)
    return 0


def of_data(data: str | None, model: Model) -> str | Dataset | None:
    """A file, or the name of a data set; what the model was trained on is read as it was then."""
    if data is None or data not in NAMED or Path(data).exists():
        return data
    return None if data == model.about.get("source") else open_dataset(data)
