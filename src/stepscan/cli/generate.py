"""`stepscan generate`: text from a prompt."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from stepscan.apps.model import Model
from stepscan.cli.arguments import parse


@dataclass(frozen=True)
class Args:
    """Write text that goes on after a prompt."""

    model: tyro.conf.Positional[Path]
    """A run folder or a model folder."""
    prompt: str = ""
    """What to begin with; empty begins a new document."""
    length: int = 400
    """Tokens at the most."""
    temperature: float = 0.8
    """0 always takes the likeliest token."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with this much probability."""
    min_p: float = 0.0
    """Keep tokens at least this many times as likely as the likeliest."""
    stop: str | None = None
    """End the text where this appears."""
    seed: int = 0
    """The same seed gives the same text."""
    dtype: Literal["fp32", "bf16", "int8"] = "fp32"
    """What the weights are rounded to for new tokens: less memory to read, so faster."""
    json: bool = False
    """Print JSON."""


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    args = parse(Args, argv, command="generate")
    text = Model.load(args.model).generate(
        args.prompt,
        length=args.length,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        stop=args.stop,
        seed=args.seed,
        dtype=args.dtype,
    )
    print(json.dumps({"prompt": args.prompt, "text": text}) if args.json else args.prompt + text)
    return 0
