"""`stepscan predict`: next events, next items or classes for a history."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from stepscan.apps.model import Model
from stepscan.cli.arguments import parse
from stepscan.cli.table import show


@dataclass(frozen=True)
class Args:
    """Say what comes next after a history, given in words or in a file."""

    model: tyro.conf.Positional[Path]
    """A run folder or a model folder."""
    history: tyro.conf.Positional[tuple[str, ...]] = ()
    """Activities or items in order, the last one last, of anyone; or the pixels of an image."""
    file: Path | None = None
    """A table with the columns of the training data: one answer per case or user in it."""
    top: int = 3
    """How many."""
    exclude_seen: bool = False
    """Do not offer what is in the history."""
    json: bool = False
    """Print JSON."""


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    args = parse(Args, argv, command="predict")
    if bool(args.history) == (args.file is not None):
        raise ValueError("predict: want a history, or a table with --file; one of the two")
    model = Model.load(args.model)
    if args.file is not None:
        answers = model.predict_table(args.file, top=args.top, exclude_seen=args.exclude_seen)
        rows = [
            {"of": name, "place": i, "what": p.what, "probability": p.probability}
            for name, found in answers.items()
            for i, p in enumerate(found, start=1)
        ]
    else:
        if args.exclude_seen and model.kind not in ("events", "interactions"):
            raise ValueError(f"predict: --exclude-seen is for items, this model is of {model.kind}")
        asked = {"exclude_seen": True} if args.exclude_seen else {}
        found = model.predict(args.history, top=args.top, **asked)
        rows = [
            {"place": i, "what": p.what, "probability": p.probability}
            for i, p in enumerate(found, start=1)
        ]
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        show(rows, as_json=False)
    return 0
