"""Who gains from times and from UniRec on ml-100k: NDCG@10 by groups of users and items.

python benchmarks/uneven_users.py [--runs "A;B"] [--seeds 0,1] [--epochs 5]

Full ranking, leave-last-out. Each run is kept as soon as it is finished, and not run again. Seconds
are of one thread's own time.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from stepscan.analyze.speed import machine
from stepscan.apps.interactions.domain import Interactions
from stepscan.apps.interactions.groups import groups
from stepscan.apps.kinds import domain_of
from stepscan.apps.ranking import measures
from stepscan.cli.speed import write
from stepscan.cli.table import show
from stepscan.data.base import DataOptions
from stepscan.data.open import open_dataset
from stepscan.models import build
from stepscan.train.loop import Trainer

RESULT = Path(__file__).parent / "results" / "uneven_users.json"
RUNS = {
    "sasrec": ("sasrec", "no"),
    "sasrec with a clock": ("sasrec", "yes"),
    "unirec without a clock": ("unirec[dropout=0.5]", "no"),
    "unirec": ("unirec[dropout=0.5]", "yes"),
}


def run(name: str, seed: int, epochs: int) -> dict[str, Any]:
    """One training, judged at its end on the test part."""
    layers, clock = RUNS[name]
    domain = domain_of(open_dataset("ml_100k", DataOptions(clock=clock)))
    assert isinstance(domain, Interactions)
    config = domain.config(domain.pattern(layers))
    recipe, train = domain.recipe_for(config), domain.dataset.parts["train"]
    torch.manual_seed(seed)
    model = build(config)
    plan = recipe.training(
        steps=round(epochs * len(train) / (recipe.rows * recipe.length)), seed=seed
    )
    trainer = Trainer(model, train, plan, objective=domain.objective)
    begin = time.process_time()
    trainer.advance()
    spent = time.process_time() - begin
    rank = domain.ranks(model)
    packed = domain.dataset.parts["test"]
    asked = packed.targets_at(packed.begins + packed.lengths - 1)
    found = groups(asked["uneven"], asked["token"], torch.tensor(domain.schema.counts))
    scores = {group: measures(rank[inside])["NDCG@10"] for group, inside in found.items()}
    return {
        "run": name,
        "seed": seed,
        "epochs": epochs,
        "seconds_per_epoch": spent / epochs,
        "all": measures(rank),
        "NDCG@10": scores,
    }


def main() -> None:
    """Run what is missing, and show what there is."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--runs", default="")
    words.add_argument("--seeds", default="0,1")
    words.add_argument("--epochs", type=int, default=5)
    args = words.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(RESULT.read_text()) if RESULT.exists() else {"runs": []}
    done = {(r["run"], r["seed"], r["epochs"]) for r in kept["runs"]}
    for seed in map(int, args.seeds.split(",")):
        for name in args.runs.split(";") if args.runs else RUNS:
            if (name, seed, args.epochs) not in done:
                kept["runs"].append(run(name, seed, args.epochs))
                kept |= {"command": " ".join(["python", *sys.argv]), "machine": machine.describe()}
                write(RESULT, json.dumps(kept, indent=1) + "\n")
    rows = [
        {"run": r["run"], "seed": r["seed"], "epochs": r["epochs"]}
        | {"all": r["all"]["NDCG@10"], **r["NDCG@10"]}
        | {"s/epoch": r["seconds_per_epoch"]}
        for r in kept["runs"]
    ]
    show(rows, as_json=False)


if __name__ == "__main__":
    main()
