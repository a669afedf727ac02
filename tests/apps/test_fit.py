"""Runs: what they leave, how they stop, how they go on; comparisons and what they conclude."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from made_up_data import TINY

import stepscan as ss
from stepscan.apps.candidate import Candidate
from stepscan.apps.compare import baseline_row, compare, verdict
from stepscan.apps.domain import Metric
from stepscan.apps.fit import fit, resume
from stepscan.apps.kinds import DOMAINS
from stepscan.train.log import read
from stepscan.train.loop import DivergedError, Trainer

every_kind = pytest.mark.parametrize("kind", DOMAINS)
LEFT = ["metrics.jsonl", "model", "report.html", "results.json", "run.json"]
LOWER = Metric("MASE", "lower", "x")
CANDIDATE = {
    "name", "baseline", "parameters", "config", "scores", "seconds", "tokens", "tokens_per_second",
    "decode_per_second", "state_bytes", "curve",
}  # fmt: skip


def seen(folder):
    return sorted(p.name for p in Path(folder).iterdir() if not p.name.startswith("."))


def check_section(section):
    """As plan and docs/results.md say."""
    names = {metric["name"] for metric in section["metrics"]}
    assert section["metric"] in names
    seeds = len(section["budget"]["seeds"])
    for row in section["candidates"]:
        assert set(row) == CANDIDATE
        assert set(row["scores"]) == names
        assert {len(s) for s in row["scores"].values()} == {1 if row["baseline"] else seeds}
    assert section["verdict"].endswith(".")
    assert [row["baseline"] for row in section["candidates"]].count(True) >= 1


@every_kind
def test_a_run_leaves_what_it_says(kind, models):
    folder = Path(models(kind).about["folder"])
    assert set(LEFT) <= set(seen(folder))
    results = json.loads((folder / "results.json").read_text())
    (section,) = results["sections"]
    check_section(section)
    assert section["data"]["kind"] == kind
    assert section["candidates"][0]["scores"] == {
        name: [value] for name, value in models(kind).about["test"].items()
    }
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    events = {record["event"] for record in read(folder / "metrics.jsonl")}
    assert {"step", "evaluation"} <= events


def weights(folder):
    return torch.cat([p.flatten() for p in ss.load(folder).network.parameters()])


def test_tensorboard_is_drawn_where_asked(files, tmp_path):
    pytest.importorskip("tensorboard", reason="pip install 'stepscan[track]'")
    fit(files["events"], out=tmp_path / "run", tensorboard=True, **TINY)
    assert any((tmp_path / "run" / "tensorboard").iterdir())


def test_the_same_command_gives_the_same_model(files, tmp_path):
    runs = [fit(files["events"], out=tmp_path / str(i), seed=1, **TINY).about for i in range(2)]
    assert torch.equal(*(weights(run["folder"]) for run in runs))
    assert runs[0]["test"] == runs[1]["test"]


def test_a_finished_run_can_be_resumed_and_keeps_its_curve(files, tmp_path):
    first = fit(files["events"], out=tmp_path / "run", **TINY)
    before = json.loads((tmp_path / "run" / "results.json").read_text())
    again = resume(tmp_path / "run", quiet=True)
    after = json.loads((tmp_path / "run" / "results.json").read_text())
    assert again.about["test"] == first.about["test"]
    curves = [results["sections"][0]["candidates"][0]["curve"] for results in (before, after)]
    assert len(curves[0][0]["score"]) == 4
    assert curves[0] == curves[1]


def test_a_run_goes_on_from_anywhere(files, tmp_path, monkeypatch):
    monkeypatch.chdir(files["events"].parent)
    fit("events.csv", out=tmp_path / "run", **TINY)
    monkeypatch.chdir(tmp_path)
    assert resume("run", quiet=True).about["data"] == "events.csv"


def test_what_a_killed_save_left_is_mended(files, tmp_path):
    fit(files["events"], out=tmp_path / "run", **TINY)
    before = weights(tmp_path / "run")
    (tmp_path / "run" / "model").rename(tmp_path / "run" / ".trash-model-1234")
    (tmp_path / "run" / ".stage-model-1234").mkdir()
    resume(tmp_path / "run", quiet=True)
    assert torch.equal(weights(tmp_path / "run"), before)
    assert not list((tmp_path / "run").glob(".*model*"))


def diverge(*_args, **_more):
    raise DivergedError("step 3: loss nan")


def test_divergence_lets_go_of_the_folder(files, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", diverge)
        with pytest.raises(DivergedError):
            fit(files["events"], out=tmp_path / "run", **TINY)
    resume(tmp_path / "run", quiet=True)  # nobody holds the lock


# Processes ---------------------------------------------------------------------------------------

SLOWLY = """
import sys, time, torch
torch.set_num_threads(1)
from stepscan.train import loop
from stepscan.cli import main
from stepscan.train.config import TrainConfig
plain = loop.Trainer._train_step
def slow(self):
    time.sleep(float(sys.argv[1]))
    return plain(self)
loop.Trainer._train_step = slow
default = TrainConfig.__init__
def often(self, **fields):
    default(self, **(fields | {"save_seconds": 0.0}))
TrainConfig.__init__ = often
sys.exit(main(sys.argv[2:]))
"""


def start(*words, cwd, pause=0.0):
    command = [sys.executable, "-c", SLOWLY, str(pause), "fit", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(process, folder, step):
    """Until a checkpoint of this step or a later one is there."""
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        steps = [int(p.name[5:]) for p in folder.glob("checkpoints/step-*")]
        if max(steps, default=0) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate())


SETTINGS = ["--width", "16", "--rows", "2", "--length", "16", "--layers", "min_gru"]


@pytest.fixture(scope="module")
def uninterrupted(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    plan = dict(width=16, rows=2, length=16, layers="min_gru", steps=60, quiet=True)
    fit(files["events"], out=folder, **plan)
    return weights(folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=str)
def test_a_stopped_run_goes_on_bit_for_bit(number, files, tmp_path, uninterrupted):
    run = tmp_path / "run"
    words = [files["events"], "--out", run, "--steps", 60, *SETTINGS]
    first = start(*words, cwd=tmp_path, pause=0.3)
    wait_for(first, run, 5)
    if number == signal.SIGTERM:  # while it lives, nobody else may train there
        second = start("--resume", run, cwd=tmp_path)
        _, said = second.communicate(timeout=120)
        assert second.returncode == 2
        assert "trains here; wait for it" in said
        assert said.count("\n") == 1
    first.send_signal(number)
    _, said = first.communicate(timeout=120)
    if number == signal.SIGKILL:
        assert first.returncode == -9
    else:
        assert first.returncode == 128 + number
        assert f"to go on: stepscan fit --resume {run}" in said
        assert said.count("\n") == 1
    resumed = start("--resume", run, cwd=tmp_path)
    said = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, said
    assert torch.equal(weights(run), uninterrupted)
    assert set(LEFT) <= set(seen(run))


# Comparisons -------------------------------------------------------------------------------------


def test_a_comparison_leaves_a_report_results_and_models(files, options, tmp_path):
    said = compare(
        [files["events"], files["interactions"]],
        ["min_gru", "gla[heads=2]"],
        minutes=0.01,
        seeds=2,
        width=16,
        rows=2,
        length=16,
        out=tmp_path / "out",
        quiet=True,
    )
    assert seen(tmp_path / "out") == ["models", "report.html", "results.json"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results == {k: v for k, v in said.items() if k != "folder"}
    assert [section["data"]["name"] for section in results["sections"]] == [
        "events.csv",
        "interactions.csv",
    ]
    for section in results["sections"]:
        check_section(section)
        trained = [row for row in section["candidates"] if not row["baseline"]]
        assert [row["name"] for row in trained] == ["min_gru", "gla[heads=2]"]
        depth = DOMAINS[section["data"]["kind"]].recipe.depth
        assert [len(row["config"]["layers"]) for row in trained] == [depth, depth]
        for row in trained:  # equal time, to a step
            assert row["seconds"] == pytest.approx([0.6, 0.6], abs=0.3)
    model = ss.load(tmp_path / "out" / "models" / "events.csv" / "min_gru")
    assert model.predict(["JFK>LAX"])[0].probability > 0


class Diary:
    """A trainer that writes down whose turn it is."""

    def __init__(self, monkeypatch):
        self.turns, self.seeds, self.broken = [], [], set()
        plain = Trainer.advance

        def advance(trainer, **options):
            name = trainer.model.config.mixers[0].name
            self.turns.append(name)
            self.seeds.append((name, trainer.config.seed))
            if (name, trainer.config.seed) in self.broken:
                raise DivergedError("made up")
            plain(trainer, **options)

        monkeypatch.setattr(Trainer, "advance", advance)


PLAN = {"minutes": 0.008, "width": 16, "rows": 2, "length": 16, "quiet": True}


def test_candidates_take_turns_with_the_same_seeds(files, tmp_path, monkeypatch):
    diary = Diary(monkeypatch)
    compare(files["events"], ["min_gru", "lstm"], seeds=2, out=tmp_path / "out", **PLAN)
    turns = diary.turns
    assert sum(a != b for a, b in pairwise(turns)) > len(turns) * 0.6
    assert {seed for name, seed in diary.seeds if name == "lstm"} == {0, 1}
    firsts = list(dict.fromkeys(diary.seeds))
    assert firsts == [("min_gru", 0), ("lstm", 0), ("min_gru", 1), ("lstm", 1)]


def test_a_diverged_candidate_is_shown_as_failed(files, tmp_path, monkeypatch):
    diary = Diary(monkeypatch)
    diary.broken = {("lstm", 0), ("gru", 0), ("gru", 1)}
    candidates = ["min_gru", "lstm", "gru"]
    found = compare(files["events"], candidates, seeds=2, out=tmp_path / "out", **PLAN)
    (section,) = found["sections"]
    check_section(section)
    scores = {row["name"]: row["scores"]["accuracy"] for row in section["candidates"]}
    assert [s is None for s in scores["min_gru"]] == [False, False]
    assert [s is None for s in scores["lstm"]] == [True, False]
    assert scores["gru"] == [None, None]
    assert "lstm failed with 1 of 2 seeds" in section["verdict"]
    assert "gru failed with 2 of 2 seeds" in section["verdict"]
    assert not (tmp_path / "out" / "models" / "events.csv" / "gru").exists()
    assert "failed" in (tmp_path / "out" / "report.html").read_text()


def test_an_interrupted_comparison_leaves_no_empty_folder(files, tmp_path, monkeypatch):
    def interrupt(*_args, **_more):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "advance", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compare(files["events"], ["min_gru"], seeds=1, out=tmp_path / "out", **PLAN)
    assert not (tmp_path / "out").exists()


def test_scores_that_are_not_finite_are_failures(files, tmp_path, monkeypatch):
    plain = Candidate.finish

    def finish(run):
        model = plain(run)
        if model.config.mixers[0].name == "lstm":
            for parameter in model.parameters():
                parameter.data.fill_(torch.nan)
        return model

    monkeypatch.setattr(Candidate, "finish", finish)
    for kind in ("events", "interactions"):
        found = compare(files[kind], ["min_gru", "lstm"], seeds=1, out=tmp_path / kind, **PLAN)
        rows = {row["name"]: row for row in found["sections"][0]["candidates"]}
        assert set(next(iter(rows["lstm"]["scores"].values()))) == {None}
        assert None not in next(iter(rows["min_gru"]["scores"].values()))


def row(name, *scores, decode=None):
    made = baseline_row(name, {"MASE": 0.0})
    return made | {"baseline": False, "scores": {"MASE": [*scores]}, "decode_per_second": decode}


SIMPLE = baseline_row("seasonal naive", {"MASE": 1.0})


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        (
            [row("a", 0.5, 0.6, 0.55), row("b", 0.7, 0.81, 0.74), SIMPLE],
            "a is best with 0.55 MASE; it leads b by 0.2 ± 0.025 (3 of 3 seeds). "
            "It beats seasonal naive (1), the best of the simple methods.",
        ),
        (
            [row("a", 1.5, 1.6), row("b", 1.4, 1.9), SIMPLE],
            "a is best with 1.55 MASE; it leads b by 0.1 ± 2.5 (1 of 2 seeds, not beyond the "
            "noise). It does not beat seasonal naive (1), the best of the simple methods.",
        ),
        (
            [row("a", 0.9), row("b", 1.2)],
            "a is best with 0.9 MASE; it leads b by 0.3 (1 of 1 seed, not beyond the noise).",
        ),
        (
            [row("a", 0.9), SIMPLE],
            "a reaches 0.9 MASE. It beats seasonal naive (1), the best of the simple methods.",
        ),
        (
            [row("a", None, None), SIMPLE],
            "Every candidate diverged: lower the learning rate.",
        ),
        (
            [row("a", None, 0.5), row("b", 0.6, 0.7)],
            "a is best with 0.5 MASE; it leads b by 0.2 (1 of 1 seed, not beyond the noise). "
            "a failed with 1 of 2 seeds.",
        ),
        (
            [row("a", 0.5, decode={"1024": 800.0, "65536": 100.0})],
            "a reaches 0.5 MASE. a decodes 8.0x slower after 65,536 steps than after 1,024.",
        ),
    ],
)  # fmt: skip
def test_verdicts_say_who_by_how_much_and_how_sure(rows, wanted):
    assert verdict(LOWER, rows) == wanted
