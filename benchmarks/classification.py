"""Labelled sequences: accuracy of mixers beside simple methods and published ranges.

python benchmarks/classification.py [--most MINUTES] [--only WORD]

Every piece (a data set, layers, a seed) is trained for the steps in PIECES, and its scores on the
test part are kept in results/classification.json; what is there is not done again, so that the
script may be stopped, or told to stop after so many minutes, and started again.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stepscan.analyze.speed.machine import describe
from stepscan.apps.candidate import Candidate
from stepscan.apps.kinds import domain_of
from stepscan.apps.labelled.metrics import class_scores
from stepscan.data.base import DataOptions
from stepscan.data.open import open_dataset

RESULTS = Path(__file__).parent / "results" / "classification.json"
EVERY = DataOptions(asked="every")
TENS = DataOptions(asked="every", patch=10)
PIECES: list[tuple[str, str, str, DataOptions, int, tuple[int, ...]]] = [
    # name, data, layers, options, steps, seeds
    ("japanese_vowels", "japanese_vowels", "gru*2", DataOptions(), 400, (0, 1, 2)),
    ("japanese_vowels", "japanese_vowels", "gated_delta_net*2", DataOptions(), 150, (0, 1, 2)),
    ("basic_motions", "basic_motions", "gru*2", EVERY, 120, (0, 1, 2)),
    ("basic_motions", "basic_motions", "gated_delta_net*2", EVERY, 120, (0, 1, 2)),
    ("acsf1", "acsf1", "gru*2", EVERY, 150, (0, 1)),
    ("acsf1, patch 10", "acsf1", "gru*2", TENS, 400, (0, 1, 2)),
    ("acsf1, patch 10", "acsf1", "gated_delta_net*2", TENS, 400, (0, 1, 2)),
    ("digits", "digits", "gru*2", DataOptions(), 600, (0, 1, 2)),
    ("digits", "digits", "gated_delta_net*2", DataOptions(), 600, (0, 1, 2)),
    ("plaid, patch 10", "plaid", "gru*2", TENS, 600, (0, 1)),
    ("digits, 2000 steps", "digits", "gru*2", DataOptions(), 2000, (0, 1)),
    ("digits, 2000 steps", "digits", "gated_delta_net*2", DataOptions(), 2000, (0, 1)),
    ("mnist_5k, patch 28", "mnist_5k", "gru*2", DataOptions(patch=28), 1500, (0, 1, 2)),
    ("mnist_5k, patch 28", "mnist_5k", "mamba2*2", DataOptions(patch=28), 1500, (0, 1, 2)),
    ("mnist_5k", "mnist_5k", "gru*2", DataOptions(), 1000, (0, 1)),
    ("mnist_5k", "mnist_5k", "s4d*2", DataOptions(), 1000, (0,)),
    ("mnist_5k", "mnist_5k", "gated_delta_net*2", DataOptions(), 1000, (0, 1)),
]
PUBLISHED = {  # from the papers as remembered; JapaneseVowels and BasicMotions are repeated here
    "japanese_vowels": "1-NN DTW 0.949 to 0.959 (Bagnall et al. 2018, arXiv:1811.00075)",
    "basic_motions": "1-NN DTW 0.975 to 1.000 (Bagnall et al. 2018, arXiv:1811.00075)",
    "acsf1": "1-NN DTW 0.62 to 0.64 (Dau et al. 2019, arXiv:1810.07758)",
    "plaid": "1-NN DTW about 0.84 (Dau et al. 2019, arXiv:1810.07758)",
}
SHORT = ("japanese_vowels", "basic_motions")  # 1-NN DTW takes seconds


def main() -> None:
    told = argparse.ArgumentParser()
    told.add_argument("--most", type=float, default=1e9, help="minutes after which to stop")
    told.add_argument("--only", default="", help="only pieces with this in their name")
    args = told.parse_args()
    torch.set_num_threads(1)
    begin = time.monotonic()
    found = load()
    for name, data, layers, options, steps, seeds in PIECES:
        domain = None
        for seed in seeds:
            key = f"{name} | {layers} | {seed}"
            if args.only not in key or key in found["runs"]:
                continue
            if time.monotonic() - begin > 60 * args.most:
                return
            domain = domain or domain_of(open_dataset(data, options))
            one = run(domain, layers, steps, seed)
            found = keep("runs", key, one)
            print(key, one["scores"], flush=True)
        if domain is not None and data not in found["baselines"]:
            methods = dict(domain.baselines())
            if data in SHORT:
                methods["1-NN DTW"] = nearest(domain)
            found = keep("baselines", data, methods)
    table(found)


def run(domain: Any, layers: str, steps: int, seed: int) -> dict[str, Any]:
    recipe = domain.recipe
    train = recipe.training(steps=steps, seed=seed)
    candidate = Candidate(domain, domain.config(layers), train)
    candidate.trainer.run()
    trainer = candidate.trainer
    scores = domain.score(candidate.finish())
    return {
        "scores": scores,
        "steps": steps,
        "seconds": trainer.seconds,
        "tokens_per_second": trainer.tokens / trainer.seconds,
    }


def nearest(domain: Any) -> dict[str, float]:
    """1-nearest neighbour by multivariate DTW on channels as they are; train and valid known."""
    parts = domain.dataset.parts
    schema = domain.schema
    rows = {
        part: [
            packed.reals[b : b + n, : len(schema.channels)].double().numpy() * schema.scale
            for b, n in zip(packed.begins.tolist(), packed.lengths.tolist(), strict=True)
        ]
        for part, packed in parts.items()
    }
    label = {
        part: packed.targets_at(packed.begins + packed.lengths - 1)["label"].numpy()
        for part, packed in parts.items()
    }
    known = rows["train"] + rows["valid"]
    classes = np.concatenate([label["train"], label["valid"]])
    lengths = np.array([len(x) for x in known])
    padded = np.zeros((len(known), lengths.max(), known[0].shape[1]))
    for i, x in enumerate(known):
        padded[i, : len(x)] = x
    said = [classes[warping(x, padded, lengths).argmin()] for x in rows["test"]]
    return class_scores(np.eye(len(schema.classes))[said], label["test"])


def warping(x: np.ndarray, others: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Squared DTW distances from x [T C] to others [N U C], of which the first `lengths` count."""
    cost = ((x[None, :, None] - others[:, None]) ** 2).sum(-1)  # [N T U]
    row = np.cumsum(cost[:, 0], 1)
    for t in range(1, len(x)):
        above, new = row, np.empty_like(row)
        new[:, 0] = above[:, 0] + cost[:, t, 0]
        for u in range(1, row.shape[1]):
            least = np.minimum(np.minimum(above[:, u], above[:, u - 1]), new[:, u - 1])
            new[:, u] = least + cost[:, t, u]
        row = new
    return row[np.arange(len(others)), lengths - 1]


def load() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}, "baselines": {}}


def keep(where: str, key: str, one: Any) -> dict[str, Any]:
    """One more piece, beside what the file holds by now: another process may have added to it."""
    found = load()
    found[where][key] = one
    told = {**describe(), "command": "python benchmarks/classification.py", "published": PUBLISHED}
    draft = RESULTS.with_suffix(".part")
    draft.write_text(json.dumps({**found, **told}, indent=1) + "\n")
    draft.replace(RESULTS)
    return found


def table(found: dict[str, Any]) -> None:
    """Markdown: mean, smallest and largest over seeds."""
    groups: dict[str, list[dict[str, float]]] = {}
    for key, one in found["runs"].items():
        groups.setdefault(key.rsplit(" | ", 1)[0], []).append(one["scores"])
    for name, scores in groups.items():
        lead = next(iter(scores[0]))
        values = [s[lead] for s in scores]
        print(f"| {name} | {lead} {np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f}) |")
    for data, methods in found["baselines"].items():
        for name, scores in methods.items():
            lead = next(iter(scores))
            print(f"| {data} | {name} | {lead} {scores[lead]:.3f} |")


if __name__ == "__main__":
    main()
