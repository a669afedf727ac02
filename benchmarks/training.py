"""Training speed of every mixer with the native kernels and without, in turns in one process.

python benchmarks/training.py [--mixers gru,lstm] [--rounds 5] [--out FILE.json]

The model and the batch are those of `stepscan fit shakespeare`: two layers of width 128, next
tokens, 4 sequences of 256. A step is all of it: forward, loss, backward, clipping, AdamW.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from stepscan.analyze.speed import machine
from stepscan.analyze.speed.rounds import in_turns
from stepscan.apps.text.domain import Text
from stepscan.cli.speed import write
from stepscan.cli.table import show
from stepscan.mixers import MIXERS
from stepscan.models import ModelConfig, NextToken, SequenceModel
from stepscan.train.config import TrainConfig
from stepscan.train.objectives import loss
from stepscan.train.optimizer import adamw

WIDTH, DEPTH, VOCABULARY = 128, 2, 1024
ROWS, LENGTH = Text.recipe.rows, Text.recipe.length
RESULT = Path(__file__).parent / "results" / "training.json"
CHOICES = {"torch": "off", "native": os.environ.get("STEPSCAN_KERNELS", "auto")}


def step_of(mixer: str, kernels: str) -> Callable[[], None]:
    """One training step of a fresh model."""
    torch.manual_seed(0)
    head = NextToken(vocab=VOCABULARY)
    layers = (MIXERS[mixer](),) * DEPTH
    model = SequenceModel(ModelConfig(head=head, layers=layers, width=WIDTH, tokens=(VOCABULARY,)))
    config = TrainConfig(steps=1)
    optimizer = adamw(
        model,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=config.betas,
    )
    tokens = torch.randint(VOCABULARY, (ROWS, LENGTH + 1))

    def step() -> None:
        os.environ["STEPSCAN_KERNELS"] = kernels  # read at every call of a kernel
        outputs, _ = model(tokens[:, :-1])
        loss(head, outputs, {"token": tokens[:, 1:]}).mean.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """A row for each mixer, as it is measured."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--mixers", default=",".join(MIXERS))
    words.add_argument("--rounds", type=int, default=7)
    words.add_argument("--seconds", type=float, default=3.0, help="for each mixer and choice")
    words.add_argument("--out", type=Path, default=RESULT)
    args = words.parse_args()
    about = machine.describe()
    rows = []
    for mixer in args.mixers.split(","):
        runs = {name: step_of(mixer, kernels) for name, kernels in CHOICES.items()}
        times = in_turns(runs, rounds=args.rounds, budget=args.seconds)
        rates = {f"{name} tokens/s": ROWS * LENGTH / t.median for name, t in times.items()}
        ratio = times["torch"].median / times["native"].median
        rows.append({"mixer": mixer, **rates, "ratio": ratio, "n": times["native"].count})
    show(rows, as_json=False)
    setting = {"width": WIDTH, "depth": DEPTH, "rows": ROWS, "length": LENGTH}
    command = " ".join(["python benchmarks/training.py", *sys.argv[1:]])
    found = {"command": command, **about, **setting, "mixers": rows}
    write(args.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
