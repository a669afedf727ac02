# ruff: noqa: PLC0415 - each stage imports what its own environment has
"""NHITS of NeuralForecast on the windows of benchmarks/forecasting.py, at equal CPU time.

Three steps, since NeuralForecast lives in an environment of its own (pip install neuralforecast):

    python benchmarks/nhits.py prepare --folder build/nhits
    OMP_NUM_THREADS=1 OTHER/bin/python benchmarks/nhits.py train --folder build/nhits
    python benchmarks/nhits.py score --folder build/nhits

It learns from the same training part for as many seconds of one core as our longest training took
(in results/forecasting.json), reads the same covariates, and foretells the same quantiles.
Gaps are filled by the last value, since it takes none.
"""

import argparse
import json
import time
from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).parent / "results"
LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
EVERY_FEW = 20  # optimizer steps between looks at the clock
TRAINED = 100_000  # more steps than any budget lasts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["prepare", "train", "score"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    {"prepare": prepare, "train": train, "score": score}[asked.stage](asked.folder, asked.seeds)


def prepare(folder: Path, seeds: list[int]) -> None:
    """Rows, cutoffs and the budget of every data set, as files that any environment reads."""
    import numpy as np
    import torch
    from forecasting import CASES

    from stepscan.apps.kinds import domain_of
    from stepscan.apps.series import backtest as rolling
    from stepscan.apps.series.frames import moments
    from stepscan.data.open import open_dataset

    ours = json.loads((RESULTS / "forecasting.json").read_text())["runs"]
    for name, (windows, step) in CASES.items():
        took = [run["cpu seconds"] for key, run in ours.items() if key.startswith(f"{name} recipe")]
        if not took:
            continue
        domain = domain_of(open_dataset(name))
        test, valid = domain.packed("test"), domain.packed("valid")
        panel, schema = test.panel, domain.schema
        ids = np.array(test.names, dtype=object)[panel.series.numpy()]
        frame = pd.DataFrame({"unique_id": ids, "ds": moments(panel.stamps.numpy(), schema)})
        frame["y"] = panel.y.numpy()
        channels = panel.channels[:, : len(schema.covariates)].numpy()
        for i, column in enumerate(schema.covariates):
            frame[column] = channels[:, i]
        frame.to_csv(folder / f"{name}.csv", index=False)
        cutoffs, _ = rolling.windows_of(panel, schema, windows, step)
        begin = torch.from_numpy(valid.asked_from)
        rows = []
        for window, place in enumerate(cutoffs.place):
            for s in np.flatnonzero(place >= 0):
                when = moments(panel.stamps[place[s]][None].numpy(), schema)[0]
                rows.append((window, test.names[s], when))
        pd.DataFrame(rows, columns=["window", "unique_id", "cutoff"]).to_csv(
            folder / f"{name}-cutoffs.csv", index=False
        )
        plan = {
            "seconds": max(took),
            "horizon": schema.horizon,
            "season": schema.season,
            "future": list(schema.future),
            "past": [c for c in schema.covariates if c not in schema.future],
            "learned": {
                n: str(moments(panel.stamps[b - 1][None].numpy(), schema)[0])
                for n, b in zip(test.names, begin.tolist(), strict=True)
            },
        }
        (folder / f"{name}.json").write_text(json.dumps(plan))
        print(name, len(frame), "rows", len(cutoffs.place), "windows", plan["seconds"], "s")


def train(folder: Path, seeds: list[int]) -> None:
    """In the other environment: learn for the budget, then forecast every window."""
    import torch
    from neuralforecast import NeuralForecast
    from neuralforecast.losses.pytorch import MQLoss
    from neuralforecast.models import NHITS
    from pytorch_lightning import Callback

    torch.set_num_threads(1)

    class Clock(Callback):
        def __init__(self, seconds: float) -> None:
            self.seconds, self.begin, self.steps = seconds, 0.0, 0

        def on_train_start(self, trainer, module) -> None:
            self.begin = time.process_time()

        def on_train_batch_end(self, trainer, module, *_) -> None:
            self.steps += 1
            spent = time.process_time() - self.begin
            if self.steps % EVERY_FEW == 0 and spent > self.seconds:
                trainer.should_stop = True

    for path in sorted(folder.glob("*.json")):
        name = path.stem
        plan = json.loads(path.read_text())
        frame = pd.read_csv(folder / f"{name}.csv", parse_dates=["ds"])
        cutoffs = pd.read_csv(folder / f"{name}-cutoffs.csv", parse_dates=["cutoff"])
        filled = frame.copy()
        filled["y"] = filled.groupby("unique_id")["y"].ffill().bfill()
        freq = pd.infer_freq(frame[frame["unique_id"] == frame["unique_id"].iloc[0]]["ds"])
        learned = filled["unique_id"].map(plan["learned"]).pipe(pd.to_datetime)
        for seed in seeds:
            out = folder / f"{name}-seed{seed}.csv"
            if out.exists():
                continue
            model = NHITS(
                h=plan["horizon"],
                input_size=max(2 * plan["season"], 5 * plan["horizon"]),
                loss=MQLoss(quantiles=list(LEVELS)),
                futr_exog_list=plan["future"] or None,
                hist_exog_list=plan["past"] or None,
                scaler_type="robust",
                start_padding_enabled=True,
                max_steps=TRAINED,
                val_check_steps=TRAINED,
                windows_batch_size=256,
                random_seed=seed,
                callbacks=[Clock(plan["seconds"])],
                accelerator="cpu",
                enable_progress_bar=False,
                logger=False,
                enable_checkpointing=False,
            )
            forecaster = NeuralForecast(models=[model], freq=freq)
            forecaster.fit(filled[filled["ds"] <= learned])
            pieces = []
            for window, group in cutoffs.groupby("window"):
                until = filled["unique_id"].map(group.set_index("unique_id")["cutoff"])
                history = filled[filled["ds"] <= until]
                ahead = None
                if plan["future"]:
                    ahead = filled[filled["ds"] > until].groupby("unique_id").head(plan["horizon"])
                    ahead = ahead[["unique_id", "ds", *plan["future"]]]
                said = forecaster.predict(df=history, futr_df=ahead).reset_index(drop=True)
                pieces.append(said.assign(window=window))
            pd.concat(pieces, ignore_index=True).to_csv(out, index=False)
            print(name, "seed", seed, flush=True)


def score(folder: Path, seeds: list[int]) -> None:
    """By the same functions as everything else."""
    from stepscan.apps import runs
    from stepscan.apps.series.scores import leaderboard, quantile_column, score_window

    results = {}
    for path in sorted(folder.glob("*.json")):
        name, plan = path.stem, json.loads(path.read_text())
        frame = pd.read_csv(folder / f"{name}.csv", parse_dates=["ds"])[["unique_id", "ds", "y"]]
        cutoffs = pd.read_csv(folder / f"{name}-cutoffs.csv", parse_dates=["cutoff"])
        for seed in seeds:
            said = folder / f"{name}-seed{seed}.csv"
            if not said.exists():
                continue
            table = pd.read_csv(said, parse_dates=["ds"])
            columns = [c for c in table.columns if c.startswith("NHITS")]
            wanted = ["NHITS", *(quantile_column("NHITS", level) for level in LEVELS)]
            values = table[columns].to_numpy()
            assert values.shape[1] == len(LEVELS), columns
            values.sort(axis=1)
            table[wanted] = pd.DataFrame(values[:, [3, *range(7)]], index=table.index)
            details = []
            for window, group in cutoffs.groupby("window"):
                rows = table[table["window"] == window].merge(frame, on=["unique_id", "ds"])
                rows = rows[rows["y"].notna()].reset_index(drop=True)
                until = frame["unique_id"].map(group.set_index("unique_id")["cutoff"])
                scored = score_window(
                    rows, frame[frame["ds"] <= until], ["NHITS"], LEVELS, plan["season"]
                )
                details.append(scored.assign(horizon=plan["horizon"]))
            scores = leaderboard(pd.concat(details, ignore_index=True), ["NHITS"])
            found = scores.to_dict("records")[0]
            results[f"{name} seed {seed}"] = {k: v for k, v in found.items() if k != "model"} | {
                "cpu seconds": plan["seconds"]
            }
            print(name, seed, {k: round(v, 3) for k, v in found.items() if k != "model"})
    runs.write_json(RESULTS / "nhits.json", {"runs": results, "command": __doc__})


if __name__ == "__main__":
    main()
