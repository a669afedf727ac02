"""`stepscan predict`: next events, next items or classes for a history."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from stepscan.apps.model import Model
from stepscan.cli.arguments import parse
from stepscan.cli.event_answers import event_rows
from stepscan.cli.table import show


@dataclass(frozen=True)
class Args:
    """Say what comes next after a history, given in words or in a file."""

    model: tyro.conf.Positional[Path]
    """A run folder or a model folder."""
    history: tyro.conf.Positional[tuple[str, ...]] = ()
    """Activities or items in order, the last one last, of anyone; or the values of a sequence."""
    file: Path | None = None
    """A table with the columns of the training data: one answer a case, user or sequence."""
    top: int = 3
    """How many."""
    exclude_seen: bool = False
    """Do not offer what is in the history."""
    what: str = "next"
    """Of events: the next activity (next), the time to it (time), the time to the last event of the
    case (remaining), or the rest of the case (suffix)."""
    times: tuple[str, ...] = ()
    """Of the events of the history, one each, if they are known."""
    beams: int | None = None
    """With --what suffix: follow so many of the likeliest ways, instead of drawing some."""
    out: Path | None = None
    """With --file, of events or items: write a csv or parquet file piece by piece, of any size."""
    json: bool = False
    """Print JSON."""


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    args = parse(Args, argv, command="predict")
    if bool(args.history) == (args.file is not None):
        raise ValueError("predict: want a history, or a table with --file; one of the two")
    model = Model.load(args.model)
    if args.exclude_seen and model.kind not in ("events", "interactions"):
        raise ValueError(f"predict: --exclude-seen is for items, this model is of {model.kind}")
    asked = {"exclude_seen": True} if args.exclude_seen else {}
    if args.out is not None:
        return _write(model, args, asked)
    if model.kind == "events":
        rows = event_rows(
            model,
            args.history,
            args.file,
            what=args.what,
            times=args.times,
            top=args.top,
            exclude_seen=args.exclude_seen,
            beams=args.beams,
        )
    elif args.file is not None:
        answers = model.predict_table(args.file, top=args.top, **asked)
        rows = [{"of": name} | row for name, found in answers.items() for row in _rows(found)]
    else:
        rows = _rows(model.predict(args.history, top=args.top, **asked))
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        show(rows, as_json=False)
    return 0


def _write(model: Any, args: Args, asked: dict[str, Any]) -> int:
    """Answers to a file, into a file."""
    if args.file is None:
        raise ValueError("predict: --out goes with --file")
    if model.kind == "events":
        asked |= {"what": args.what, "beams": args.beams}
    count = model.predict_file(args.file, args.out, top=args.top, **asked)
    print(f"saved  {args.out}  {count:,} rows")
    return 0


def _rows(found: Any) -> list[dict[str, Any]]:
    """The likeliest, best first; of labelled sequences also one number or one text."""
    if not isinstance(found, list):
        return [{"what": found}]
    return [
        {"place": i, "what": p.what, "probability": p.probability}
        for i, p in enumerate(found, start=1)
    ]
