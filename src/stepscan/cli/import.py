"""`stepscan import`: a checkpoint from elsewhere becomes a model folder."""  # noqa: N999 (named as the command)

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from stepscan.apps.checkpoint import TOKENIZER, import_checkpoint
from stepscan.cli.arguments import parse


@dataclass(frozen=True)
class Args:
    """Turn a Hugging Face checkpoint on this disk into a model folder; nothing is fetched."""

    checkpoint: tyro.conf.Positional[Path]
    """A folder with config.json and safetensors, and tokenizer.json if there is one."""
    out: Path | None = None
    """The model folder to make; there must be none yet."""
    json: bool = False
    """Print JSON."""


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    args = parse(Args, argv, command="import")
    if args.out is None:
        raise ValueError("import: want --out, the model folder to make")
    model = import_checkpoint(args.checkpoint, args.out)
    config = model.network.config
    layers = Counter(mixer.name for mixer in config.mixers)
    count = sum(p.numel() for p in model.network.parameters())
    kept = (args.out / TOKENIZER).is_file()
    if args.json:
        facts = {"saved": str(args.out), "layers": layers, "width": config.width}
        facts |= {"parameters": count, "tokenizer": TOKENIZER if kept else None}
        print(json.dumps(model.about | facts))
        return 0
    said = " + ".join(f"{number} {name}" for name, number in layers.items())
    prompt = "'Once upon a time'" if kept else "'1 2 3'"
    print(f"model       {model.about['model_type']}: {said}  width {config.width}", end="  ")
    print(f"{count:,} parameters, as float32")
    print(f"tokenizer   {TOKENIZER + ', kept' if kept else 'none: prompts are token numbers'}")
    print(f"saved       {args.out}")
    print(f"next        stepscan generate {args.out} --prompt {prompt}")
    return 0
