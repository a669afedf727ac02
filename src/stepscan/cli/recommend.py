"""`stepscan recommend`: the best items for a history, or for every user of a table."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from stepscan.apps.model import Model
from stepscan.apps.ranking import TOP
from stepscan.cli.arguments import names, parse
from stepscan.cli.table import show, write_csv


@dataclass(frozen=True)
class Args:
    """Offer items to users, known or not, from what they took before.

    Without a history it is what new users are offered, the most popular items.
    """

    model: tyro.conf.Positional[Path]
    """A run folder or a model folder."""
    history: tyro.conf.Positional[tuple[str, ...]] = ()
    """Items in order, the last one last, of anyone."""
    file: Path | None = None
    """A table with the columns of the training data: one list for each user in it."""
    items: Path | None = None
    """A table of further items, of which the model has read nothing yet: with items as text."""
    users: str | None = None
    """These users alone, separated by commas; without --file, of the training data."""
    top: int = TOP
    """How many."""
    exclude_seen: bool = False
    """Do not offer what is in the history."""
    out: Path | None = None
    """Write the lists as csv, and print nothing."""
    json: bool = False
    """Print JSON."""


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    args = parse(Args, argv, command="recommend")
    if args.history and (args.file is not None or args.users is not None):
        raise ValueError("recommend: want a history, or users with --file or --users; not both")
    model: Any = Model.load(args.model)
    if args.items is not None:
        model = model.with_items(args.items)
    asked: dict[str, Any] = {"top": args.top, "exclude_seen": args.exclude_seen}
    if args.file is None and args.users is None:
        found = model.recommend(args.history, **asked)
        rows = [{"place": i, **offer._asdict()} for i, offer in enumerate(found, 1)]
    else:
        users = None if args.users is None else names(args.users)
        rows = model.recommend_table(args.file, users=users, **asked).to_dict("records")
    if args.out is not None:
        import pandas as pd  # noqa: PLC0415

        write_csv(pd.DataFrame(rows), args.out)
    elif args.json:
        print(json.dumps(rows, indent=2))
    else:
        show([_ids_as_words(row) for row in rows], as_json=False)
    return 0


def _ids_as_words(row: dict[str, Any]) -> dict[str, Any]:
    """Item 1682 is not a number of anything."""
    return {k: v if k in ("place", "score") else str(v) for k, v in row.items()}
