"""`stepscan health`: do the states of a model of text stay sound on longer text than it learned?"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from stepscan.analyze.state_health import Health, collapse_report
from stepscan.apps.model import Model
from stepscan.cli.arguments import parse
from stepscan.cli.table import show
from stepscan.data.text import TextSchema
from stepscan.data.tokens import TokenSchema


@dataclass(frozen=True)
class Args:
    """Read a text beyond the length of a training window: loss, norms of the state, forgetting."""

    model: tyro.conf.Positional[Path]
    """A run folder or a model folder."""
    data: tyro.conf.Positional[Path]
    """A file of text that the model was not trained on."""
    trained: int | None = None
    """Tokens of a training window; the run knows it, other model folders may not."""
    times: int = 16
    """How many training windows to read on end."""
    rows: int = 16
    """Stretches of the text, read side by side; their spread says what chance does to the loss."""
    json: bool = False
    """Print JSON."""


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    args = parse(Args, argv, command="health")
    model = Model.load(args.model)
    if not isinstance(model.schema, TextSchema | TokenSchema):
        raise ValueError(
            f"health: wants a model of text, this one is of {model.kind}; in Python, "
            "analyze.state_health.collapse_report reads anything"
        )
    trained = 2 * model.reach if args.trained is None else args.trained
    if args.times < 2 or args.rows < 1 or trained < 2:
        raise ValueError(
            f"health: want times >= 2, rows >= 1 and trained >= 2, got {args.times}, {args.rows} "
            f"and {trained}"
        )
    text = args.data.read_text(encoding="utf-8", errors="replace")
    ids = torch.as_tensor(model.schema.encode(text), dtype=torch.int64)
    length = trained * args.times
    rows = min(args.rows, len(ids) // length)
    if not rows:
        raise ValueError(
            f"{args.data}: want at least {length:,} tokens, {args.times} windows of {trained:,}; "
            f"got {len(ids):,}. Give a longer text, or fewer --times"
        )
    inputs = ids[: len(ids) // rows * rows].view(rows, -1)[:, :length]
    powers = (1 << i for i in range(args.times.bit_length()))
    lengths = sorted({trained * n for n in (*powers, args.times) if n <= args.times})
    health = collapse_report(model.network, inputs, lengths)
    if args.json:
        said = {"verdict": health.verdict, "words": health.words}
        print(json.dumps(said | {"losses": _losses(health), "states": _states(health)}, indent=2))
        return 0
    print(health.words)
    for table in (_losses(health), _states(health)):
        print()
        show([{k: "-" if v is None else v for k, v in row.items()} for row in table], as_json=False)
    return 0


def _losses(health: Health) -> list[dict[str, object]]:
    cuts = health.lengths[0] // 2, *health.lengths
    return [
        {"from token": begin + 1, "to": end, "loss": loss}
        for begin, end, loss in zip(cuts, cuts[1:], health.losses or (), strict=False)
    ]


def _states(health: Health) -> list[dict[str, object]]:
    """`forgets within` is null, or "-" for people, where the text ends before it is forgotten."""
    return [
        {
            "state": part.name,
            "channels": len(part.growth),
            "norm trained": part.norms[health.times.index(health.lengths[0])].mean().item(),
            "norm last": part.norms[-1].mean().item(),
            "grow": len(part.outliers),
            "forgets within": None if math.isinf(part.horizon) else part.horizon,
        }
        for part in health.parts
    ]
