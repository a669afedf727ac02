"""What comes next for an aircraft, when, and after that: a trained model beside classical methods.

python benchmarks/next_event.py [--data flights] [--split random] [--layers PATTERN] [--steps 800]
    [--seeds 2]

Cases never trained on; all methods answer the same questions (`stepscan.apps.events`). Suffixes are
the next 10 events of 200 cases, as the metrics in the file say. Finished pieces are kept in
the file of results: run it again to go on with the others, or name another file with --out.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch

from stepscan.analyze.intervals import mean_interval
from stepscan.apps.candidate import Candidate
from stepscan.apps.kinds import domain_of
from stepscan.apps.measure import parameters
from stepscan.apps.runs import machine
from stepscan.cli.speed import write
from stepscan.cli.table import show
from stepscan.data.base import DataOptions
from stepscan.data.open import open_dataset

RESULT = Path(__file__).parent / "results" / "next_event.json"


def train(domain, layers: str, steps: int, seed: int) -> dict:
    """One model, judged on the test part."""
    recipe = domain.recipe
    config = domain.config(layers)
    plan = recipe.training(steps=steps, seed=seed)
    candidate = Candidate(domain, config, plan)
    with candidate.trainer as trainer:
        trainer.run()
        model = candidate.finish()
    return {
        "scores": domain.score(model),
        "seconds": trainer.seconds,
        "tokens": trainer.tokens,
        "parameters": parameters(model),
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="flights")
    parser.add_argument("--split", default="time", help="which cases are held out")
    parser.add_argument("--layers", default="gated_delta_net*2")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    domain = domain_of(open_dataset(args.data, DataOptions(split=args.split)))
    found = json.loads(args.out.read_text()) if args.out.exists() else {}
    found = {"trained": {}, "classical": {}} | found
    found |= {
        "command": f"OMP_NUM_THREADS=1 python benchmarks/next_event.py {' '.join(argv)}".strip(),
        "machine": machine(),
        "data": domain.dataset.lines(),
        "metrics": [m._asdict() for m in domain.metrics],
    }
    for seed in range(args.seeds):
        runs = found["trained"].setdefault(f"{args.layers}, {args.steps} steps", {})
        if str(seed) not in runs:
            runs[str(seed)] = train(domain, args.layers, args.steps, seed)
            write(args.out, json.dumps(found, indent=1) + "\n")
        domain.methods = tuple(m for m in domain.methods if m.name not in found["classical"])
        for name, scores in domain.baselines():
            one = domain.judged[-1]
            found["classical"][name] = {
                "scores": scores,
                "fit_seconds": one.seconds,
                "events": one.events,
            }
            write(args.out, json.dumps(found, indent=1) + "\n")
    rows = [
        {"": name, "seeds": len(runs)}
        | {
            m.name: mean_interval([run["scores"][m.name] for run in runs.values()]).mean
            for m in domain.metrics
        }
        for name, runs in found["trained"].items()
    ]
    rows += [
        {"": name, "seeds": 1} | {m.name: one["scores"][m.name] for m in domain.metrics}
        for name, one in found["classical"].items()
    ]
    show(rows, as_json=False)


if __name__ == "__main__":
    main(sys.argv[1:])
