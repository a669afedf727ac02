"""Sequential recommendation on ml-100k: leave-last-out, full ranking, beside the simple methods.

python benchmarks/recommendation.py [--runs "A;B"] [--seeds 0,1] [--epochs 24] [--peer FILE.json]

Each run is kept as soon as it is finished, and not run again: an interrupted script goes on. An
epoch is as many steps of windows as the training part has. Seconds are of one thread's own time,
so that what else the machine does does not count. `--peer` puts the figures of another library,
measured elsewhere on the same interactions in the same order, beside ours.

"matched" has the settings of RecBole's SASRec: Adam with a constant learning rate of 1e-3, no
weight decay, no clipping, about 2,048 items asked for in a step, so that an epoch is 48 steps there
and here. RecBole reads 50 items for each of these answers, nearly five million an epoch; we answer
after every item of a window, and read as many as are asked for. "8 windows" reads and asks for
eight times as many in a step, each item in about eight contexts, in as many steps an epoch.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from stepscan.analyze.speed import machine
from stepscan.apps.baselines.markov import Markov
from stepscan.apps.interactions.domain import Interactions, _pairs
from stepscan.apps.kinds import domain_of
from stepscan.apps.ranking import measures, ranks
from stepscan.cli.speed import write
from stepscan.cli.table import show
from stepscan.data.open import open_dataset
from stepscan.models import build
from stepscan.train.config import TrainConfig
from stepscan.train.loop import Trainer

RESULT = Path(__file__).parent / "results" / "recommendation.json"
MATCHED = {
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "betas": (0.9, 0.999),
    "warmup": 0.0,
    "floor": 1.0,
    "clip": 1e9,
}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "sasrec, matched": ("sasrec", MATCHED),
    "sasrec, matched, 8 windows": ("sasrec", MATCHED | {"rows": 328}),
    "sasrec": ("sasrec", {}),
    "bert4rec": ("bert4rec", {}),
    "gru": ("gru", {}),
    "min_gru": ("min_gru", {}),
    "gated_delta_net": ("gated_delta_net", {}),
    "mamba2": ("mamba2", {}),
}
LOOKS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48)
"""Epochs after which a run is judged, and its last."""


def anchors(domain: Interactions) -> dict[str, dict[str, float]]:
    """Popularity and the chain, counted on the training part, and with the validation items."""
    found = {}
    last, wanted = _pairs(domain.dataset.parts["test"])
    for counted, part in (("train", "train"), ("train and validation", "test")):
        packed = domain.dataset.parts[part]  # what the test part reads is all but the test items
        items = packed.inputs_at(torch.arange(len(packed)))[0][:, 0].numpy()
        inside = ~packed.starts[1:].numpy()
        for name, model in (
            ("popularity", Markov(items, items, domain.schema.tokens[0], 0)),
            (
                "Markov chain",
                Markov(items[:-1][inside], items[1:][inside], domain.schema.tokens[0], 1),
            ),
        ):
            place = ranks(torch.from_numpy(model.table(last)), torch.from_numpy(wanted))
            found[f"{name}, {counted}"] = measures(place)
    return found


def run(domain: Interactions, name: str, seed: int, epochs: int) -> dict[str, Any]:
    """One training, judged on both parts as it goes."""
    layers, settings = RUNS[name]
    config = domain.config(domain.pattern(layers))
    recipe, train = domain.recipe_for(config), domain.dataset.parts["train"]
    epoch = len(train) / (recipe.rows * recipe.length)
    plan: dict[str, Any] = {
        "rows": recipe.rows,
        "length": recipe.length,
        "learning_rate": recipe.learning_rate,
        "weight_decay": recipe.weight_decay,
        "steps": round(epochs * epoch),
        "seed": seed,
    } | settings
    torch.manual_seed(seed)
    model = build(config)
    trainer = Trainer(model, train, TrainConfig(**plan), objective=domain.objective)
    looks, spent = [], 0.0
    for done in [e for e in LOOKS if e < epochs] + [epochs]:
        begin = time.process_time()
        trainer.advance(steps=round(done * epoch) - trainer.step)
        spent += time.process_time() - begin
        scores = {part: measures(domain.ranks(model, part)) for part in ("valid", "test")}
        looks.append({"epochs": done, "seconds": spent, "scores": scores})
        print(name, seed, done, f"{spent:.1f} s", scores["test"]["NDCG@10"], flush=True)
    best = max(looks, key=lambda look: look["scores"]["valid"]["NDCG@10"])
    return {
        "run": name,
        "seed": seed,
        "settings": plan | {"betas": list(plan.get("betas", (0.9, 0.95)))},
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds_per_epoch": spent / epochs,
        "looks": looks,
        "best": {"epochs": best["epochs"], **best["scores"]["test"]},
    }


def beside(found: dict[str, Any], name: str) -> dict[str, Any]:
    """Our means over seeds as a multiple of the peer's figures, epoch by epoch, and the time."""
    ours = [run for run in found["runs"] if run["run"] == name]
    longest = {}  # of each seed
    for run in sorted(ours, key=lambda run: run["looks"][-1]["epochs"]):
        longest[run["seed"]] = run
    rows = []
    for theirs in found["peer"]["looks"]:
        looks = [
            look
            for run in longest.values()
            for look in run["looks"]
            if look["epochs"] == theirs["epochs"]
        ]
        if looks:
            row: dict[str, Any] = {"epochs": theirs["epochs"], "seeds": len(looks)}
            for metric in ("HR@10", "NDCG@10"):
                mean = sum(look["scores"]["test"][metric] for look in looks) / len(looks)
                row[metric] = mean / theirs["scores"]["test"][metric]
            rows.append(row)
    taken = [run["seconds_per_epoch"] for run in longest.values()]
    theirs = [look["seconds"] for look in found["peer"]["looks"]]
    faster = (sum(theirs) / len(theirs)) / (sum(taken) / len(taken)) if taken else None
    return {"run": name, "of the peer's": rows, "times as fast an epoch": faster}


def main() -> None:
    """Run what is missing, and show what there is."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--data", default="ml_100k")
    words.add_argument("--runs", default="")
    words.add_argument("--seeds", default="0")
    words.add_argument("--epochs", type=int, default=24)
    words.add_argument("--peer", type=Path)
    words.add_argument("--out", type=Path, default=RESULT)
    args = words.parse_args()
    torch.set_num_threads(1)
    domain = domain_of(open_dataset(args.data))
    assert isinstance(domain, Interactions)
    found: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"runs": []}
    found |= {"command": " ".join(["python", *sys.argv]), "machine": machine.describe()}
    found["data"] = list(domain.dataset.said)
    found["anchors"] = anchors(domain)
    if args.peer is not None:
        found["peer"] = json.loads(args.peer.read_text())
    write(args.out, json.dumps(found, indent=1) + "\n")
    for seed in map(int, args.seeds.split(",")):
        for name in filter(None, args.runs.split(";")):
            key = name, seed, args.epochs
            there = {(r["run"], r["seed"], r["looks"][-1]["epochs"]) for r in found["runs"]}
            if key not in there:
                found["runs"].append(run(domain, name, seed, args.epochs))
                write(args.out, json.dumps(found, indent=1) + "\n")
    if "peer" in found:
        found["against the peer"] = [
            beside(found, name) for name in RUNS if name.startswith("sasrec, matched")
        ]
        write(args.out, json.dumps(found, indent=1) + "\n")
    rows = [{"method": name, **scores} for name, scores in found["anchors"].items()]
    rows += [
        {"method": f"{r['run']} (seed {r['seed']}, {r['best']['epochs']} epochs)", **r["best"]}
        for r in found["runs"]
    ]
    show(
        [{k: row[k] for k in ("method", "HR@10", "NDCG@10", "MRR@10")} for row in rows],
        as_json=False,
    )


if __name__ == "__main__":
    main()
