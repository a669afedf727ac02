"""Rolling backtests on real series: the recipe of `stepscan fit` beside the methods of the field.

    OMP_NUM_THREADS=1 python benchmarks/forecasting.py --steps 1000 --seeds 0 1

Every data set is cut as `fit` cuts it; the model learns from the training part, is chosen and
calibrated by the validation part, and forecasts from origins all over the test part, which nothing
was chosen by. The budget is counted in optimizer steps, so that a busy machine does not change the
result. Pieces that are finished are kept in the results file and not made again.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from stepscan.apps import runs
from stepscan.apps.candidate import Candidate
from stepscan.apps.kinds import domain_of
from stepscan.apps.series import backtest as rolling
from stepscan.apps.series.domain import Series
from stepscan.data.open import open_dataset

RESULTS = Path(__file__).parent / "results" / "forecasting.json"
CASES = {  # windows, and steps between them: together they cover the test part
    "elecdemand": (28, 48),
    "weather": (14, 48),
    "employment": (12, 6),
}
SHOWN = ("MASE", "CRPS", "scaled CRPS", "coverage 80", "coverage 90")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=list(CASES))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--layers", help="instead of the recipe's")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    found = kept(asked.out)
    for name in asked.data:
        for seed in asked.seeds:
            key = f"{name} {asked.layers or 'recipe'} {asked.steps} steps seed {seed}"
            if key not in found["runs"]:
                ran = measure(name, seed, asked.steps, asked.layers, found)
                now = kept(asked.out)  # another process may have written meanwhile
                now["simple"] = found["simple"] | now["simple"]
                found = now | {"runs": now["runs"] | {key: ran}}
                runs.write_json(asked.out, found)
            show(key, found["runs"][key], found["simple"][name])


def kept(path: Path) -> dict:
    """What was found before, and where this is run."""
    found = json.loads(path.read_text()) if path.exists() else {"simple": {}, "runs": {}}
    facts = {"command": f"python {' '.join(sys.argv)}", "machine": runs.machine()}
    return found | facts | {"versions": runs.versions(), "threads": torch.get_num_threads()}


def measure(
    name: str, seed: int, steps: int, layers: str | None, found: dict[str, dict]
) -> dict[str, object]:
    """Train and test one model, and the simple methods where `found` does not have them yet."""
    domain = domain_of(open_dataset(name))
    assert isinstance(domain, Series)
    config = domain.config(None if layers is None else domain.pattern(layers))
    recipe = domain.recipe
    train = recipe.training(steps=steps, seed=seed)
    start = time.process_time()
    candidate = Candidate(domain, config, train)
    candidate.trainer.advance()
    network = candidate.finish()
    seconds = time.process_time() - start
    windows, step = CASES[name]
    test = domain.packed("test")
    cutoffs, _ = rolling.windows_of(test.panel, domain.schema, windows, step)
    work = rolling.Rolling(
        panel=test.panel,
        names=test.names,
        schema=domain.schema,
        windows=cutoffs,
        valid=int((test.asked_from - domain.packed("valid").asked_from).max()),
    )
    rolling.check_unseen(work, test.asked_from, domain.schema.names)
    tested = rolling.backtest(
        network,
        work,
        name="stepscan",
        reach=domain.reach,
        train=None,
        every=1,
        levels=(80,),
        horizons=[domain.schema.horizon],
        say=lambda line: None,
        beside=name not in found["simple"],
    )
    rows = tested.by_series[tested.by_series["metric"] == "MASE"]
    by_window = rows.groupby("cutoff")[list(tested.by_series.columns[4:])].mean()
    table = {
        row["model"]: {k: row[k] for k in tested.scores.columns[2:]}
        | {"MASE by window": by_window[row["model"]].tolist()}
        for row in tested.scores.to_dict("records")
    }
    ours = table.pop("stepscan")
    if table:
        found["simple"][name] = table
    return {
        "scores": ours,
        "valid": candidate.best,
        "stretch": network.head.stretch.tolist(),
        "parameters": sum(p.numel() for p in network.parameters()),
        "layers": [c.name for c in network.config.mixers],
        "cpu seconds": seconds,
        "notes": list(tested.notes),
    }


def show(key: str, run: dict, simple: dict) -> None:
    print(f"\n{key}   {run['cpu seconds']:.0f} s CPU   {'; '.join(run.get('notes', ()))}")
    print(f"{'':16}" + "".join(f"{name:>13}" for name in SHOWN) + f"{'windows won':>13}")
    ours = run["scores"]
    for who, scores in {"stepscan": ours, **simple}.items():
        pairs = list(zip(ours["MASE by window"], scores["MASE by window"], strict=True))
        share = f"{sum(a < b for a, b in pairs)} of {len(pairs)}" if scores is not ours else ""
        print(f"{who:16}" + "".join(f"{scores[name]:13.3f}" for name in SHOWN) + f"{share:>13}")


if __name__ == "__main__":
    main()
