"""Real half-hourly demand: filled gaps and planted anomalies in the month that is held out.

python benchmarks/gaps_and_anomalies.py [--most MINUTES] [--steps N]

For each seed a model of `elecdemand` is trained; then

gaps        blocks of 2 to 24 half hours are hidden, 5 % and 20 % of the month: mean absolute error
            of `impute` (GW) beside the straight line and the value a season before (two where that
            is hidden too), and the share of hidden values inside its band of 90 %
anomalies   a spike, a dip (a half hour, one robust standard deviation up or down), a shifted level
            (a day, as much) and a day turned around are planted, at several places: the place of
            the highest score of each among the scores of the sound steps (1: above all of them),
            beside the residual of the seasonal naive forecast, and whether it was called one at a
            rate of 0.01
alarms      the share of steps of the untouched month called anomalies at 0.01 and 0.05

Every piece is kept in results/gaps_and_anomalies.json and not done again; the models are kept under
--models, a folder for temporary files if left out.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stepscan.apps.candidate import Candidate
from stepscan.apps.kinds import domain_of
from stepscan.apps.model import Model
from stepscan.apps.series.anomalies import NAIVE
from stepscan.data.joining import frame_of
from stepscan.data.open import open_dataset

RESULTS = Path(__file__).parent / "results" / "gaps_and_anomalies.json"
SEEDS, PLACES, DAY = (0, 1), 4, 48
PLANTS = ("spike", "dip", "shift", "turned day")


def main() -> None:
    """Run what is not there yet."""
    told = argparse.ArgumentParser()
    told.add_argument("--most", type=float, default=1e9, help="minutes after which to stop")
    told.add_argument("--steps", type=int, default=400)
    told.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()))
    args = told.parse_args()
    torch.set_num_threads(1)
    begin = time.monotonic()
    dataset = open_dataset("elecdemand")
    packed: Any = dataset.parts["test"]
    frame = frame_of(packed.panel, packed.names, dataset.schema)  # type: ignore[arg-type]
    first = int(packed.asked_from[0])
    for seed in SEEDS:
        for name, measure in (("gaps", gaps), ("anomalies", anomalies), ("alarms", alarms)):
            key = f"{name} | {seed}"
            if key in load()["runs"]:
                continue
            if time.monotonic() - begin > 60 * args.most:
                return
            model = trained(dataset, seed, args.steps, args.models)
            keep(key, {"steps": args.steps} | measure(model, frame, first, seed))
            print(key, json.dumps(load()["runs"][key], indent=1), flush=True)


def trained(dataset: Any, seed: int, steps: int, models: Path) -> Any:
    """The default model of series; read again if it was trained before."""
    folder = models / f"gaps_and_anomalies-{seed}-{steps}"
    domain = domain_of(dataset)
    if not folder.exists():
        config = domain.config(domain.pattern(domain.recipe.layers))
        recipe = domain.recipe_for(config)
        train = recipe.training(steps=steps, seed=seed, evaluations=4)
        candidate = Candidate(domain, config, train)
        candidate.trainer.run()
        network = candidate.finish()
        print("test", domain.score(network), f"{candidate.trainer.seconds:.0f} s", flush=True)
        about = {"source": "elecdemand", "options": None, "reach": domain.reach}
        Model(network, dataset.schema, about).save(folder)
    model = Model.load(folder)
    model.about |= domain.about()
    return model


def gaps(model: Any, frame: Any, first: int, seed: int) -> dict[str, Any]:
    """With two months before the held-out one to read, and to try the answers on."""
    season = model.schema.season
    y = frame["Demand"].to_numpy()
    found: dict[str, Any] = {"season": season}
    for share in (0.05, 0.2):
        rng = np.random.default_rng(seed)
        hidden = np.zeros(len(y), bool)
        while hidden.sum() < share * (len(y) - first):
            length = int(rng.integers(2, 25))
            at = int(rng.integers(first, len(y) - 1 - length))
            if not hidden[at - 1 : at + length + 1].any():  # a known value between two gaps
                hidden[at : at + length] = True
        known = np.where(hidden, np.nan, y)
        since = first - 60 * DAY
        told = frame.assign(Demand=known)[since:]
        filled = model.impute(told)[: len(told)]
        where = hidden[since:]
        said = filled["value"].to_numpy()[where]
        line = np.interp(np.arange(len(y)), np.flatnonzero(~hidden), y[~hidden])[hidden]
        before = np.arange(len(y)) - season
        seasonal = np.where(hidden[before], y[before - season], y[before])[hidden]
        low, high = filled["low"].to_numpy()[where], filled["high"].to_numpy()[where]
        true = y[hidden]
        found[f"{share:g}"] = {
            "hidden": int(hidden.sum()),
            "impute": float(np.abs(said - true).mean()),
            "line": float(np.abs(line - true).mean()),
            "season before": float(np.abs(seasonal - true).mean()),
            "coverage of 0.9": float(((true >= low) & (true <= high)).mean()),
        }
    return found


def anomalies(model: Any, frame: Any, first: int, seed: int) -> dict[str, Any]:
    """One of each at a time, in parts of the month that do not touch."""
    y = frame["Demand"].to_numpy()
    size = float(model.schema.scale[0])
    rng = np.random.default_rng(seed)
    since = first - 28 * DAY
    found: dict[str, Any] = {"size": size}
    ranks: dict[str, list[list[float]]] = {name: [] for name in PLANTS}
    stretch = (len(y) - first) // len(PLANTS)
    for _ in range(PLACES):
        changed, where = y.copy(), {}
        for i, name in enumerate(rng.permutation(PLANTS)):
            at = first + i * stretch + int(rng.integers(DAY, stretch - 2 * DAY))
            length = DAY if name in ("shift", "turned day") else 1
            part = slice(at, at + length)
            if name == "turned day":
                changed[part] = y[part][::-1]
            else:
                changed[part] += -size if name == "dip" else size
            where[name] = part
        table = model.anomalies(frame.assign(Demand=changed)[since:], rate=0.01)
        offset = len(y) - len(table)  # the first steps are not judged
        scores, naive = table["score"].to_numpy(), table[NAIVE].to_numpy()
        called = table["anomaly"].to_numpy()
        sound = np.arange(offset, len(y)) >= first
        for part in where.values():  # what follows a change is not sound either
            sound[part.start - offset : part.stop - offset + DAY] = False
        for name, part in where.items():
            mine = slice(part.start - offset, part.stop - offset)
            ranks[name].append(
                [
                    1 + float((scores[sound] >= np.nanmax(scores[mine])).sum()),
                    1 + float((naive[sound] >= np.nanmax(naive[mine])).sum()),
                    float(called[mine].any()),
                ]
            )
    for name, rows in ranks.items():
        ours, others, called = np.array(rows).T
        found[name] = {
            "rank": ours.tolist(),
            "rank of the seasonal naive residual": others.tolist(),
            "called at 0.01": float(called.mean()),
        }
    return found | {"sound steps": int(sound.sum())}


def alarms(model: Any, frame: Any, first: int, seed: int) -> dict[str, Any]:
    """Of the month as it was."""
    found: dict[str, Any] = {}
    for rate in (0.01, 0.05):
        for hide in (False, True):
            table = model.anomalies(rate=rate, hide=hide)
            word = "second look" if hide else "one look"
            found[f"{rate:g}, {word}"] = float(table["anomaly"].mean())
    return found | {"values": len(table)}


def load() -> dict[str, Any]:
    """What is there."""
    if not RESULTS.exists():
        return {"runs": {}}
    return json.loads(RESULTS.read_text())


def keep(key: str, one: dict[str, Any]) -> None:
    """Write one piece, whole or not at all."""
    found = load()
    found["command"] = "python benchmarks/gaps_and_anomalies.py"
    found["runs"][key] = one
    part = RESULTS.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(RESULTS)


if __name__ == "__main__":
    main()
