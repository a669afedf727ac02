"""The bench: equal sizes, sweeps that choose by validation, cells that go on, honest sentences."""

import dataclasses
import json
import subprocess
import sys
import time
from xml.etree import ElementTree

import pytest
import torch

from stepscan.apps import bench as room
from stepscan.apps.bench import Protocol, _work, bench, matrix, orderings, redraw, study
from stepscan.apps.bench.findings import findings
from stepscan.apps.bench.protocol import config_of, measure
from stepscan.apps.bench.training import train
from stepscan.apps.progress import Voice
from stepscan.cli import main
from stepscan.models import SequenceModel
from stepscan.models.pattern import parse
from stepscan.tasks import TASKS

TINY = Protocol(
    size=6000, steps=4, seconds=60, rates=(1e-3, 1e-2), seeds=2, factors=(1, 2), examples=8, looks=2
)


def run(**changes):
    """A training that was never done."""
    return {
        "mixer": "gla",
        "task": "parity",
        "rate": 1e-3,
        "seed": 0,
        "width": 16,
        "parameters": 1000,
        "state_bytes": 100,
        "streams": True,
        "steps": 10,
        "tokens": 100,
        "seconds": 1.0,
        "curve": [[10, 1.0, 0.9]],
        "valid": 0.9,
        "diverged": False,
        "ended": "budget",
        "scores": {"1": 0.9, "4": 0.6},
    } | changes


def cell(mixer, task, scores, **changes):
    """A cell whose seeds reached these scores at the training length."""
    runs = [
        run(mixer=mixer, task=task, seed=i, scores={"1": s, "4": s}, **changes)
        for i, s in enumerate(scores)
    ]
    (found,) = matrix.cells({(mixer, task): runs})
    return found


# Equal sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", ["gla", "lstm", "attention[window=8]", "(gla attention)*1"])
@pytest.mark.parametrize("task", ["parity", "adding"])
def test_equal_parameters(mixer, task):
    config = config_of(mixer, TASKS[task](), Protocol(size=60_000))
    found = sum(p.numel() for p in SequenceModel(config).parameters())
    assert 0.8 < found / 60_000 < 1.2
    assert len(config.mixers) == 2


def test_equal_state():
    task = TASKS["parity"]()
    sizes = {
        mixer: measure(config_of(mixer, task, Protocol(match="state", size=4096)), task, "state")
        for mixer in ("gla", "lstm", "mamba")
    }
    assert all(0.6 < size / 4096 < 1.6 for size in sizes.values()), sizes


def test_a_width_is_taken_as_it_is():
    assert config_of("gla", TASKS["parity"](), Protocol(match="width", size=48)).width == 48


# One training -----------------------------------------------------------------------------------


def test_a_training_repeats_and_its_seed_matters():
    task = TASKS["parity"]()
    one, again = (train("gla", task, TINY, rate=1e-2, seed=1) for _ in range(2))
    other = train("gla", task, TINY, rate=1e-2, seed=2)
    timeless = lambda r: {k: v for k, v in r.items() if k not in ("seconds", "curve")}  # noqa: E731
    assert timeless(one) == timeless(again)
    assert [look[2] for look in one["curve"]] == [look[2] for look in again["curve"]]
    assert one["scores"] != other["scores"]


def test_what_explodes_is_said_to_have_diverged():
    found = train("plrnn", TASKS["adding"](), TINY, rate=1e30, seed=0)
    assert found["diverged"]
    assert found["ended"] == "diverged"
    assert found["scores"] == {}


def test_training_ends_when_the_task_is_learned(monkeypatch):
    monkeypatch.setattr("stepscan.apps.bench.training.score", lambda *_: 1.0)
    found = train("gla", TASKS["parity"](), TINY, rate=1e-3, seed=0)
    assert found["ended"] == "learned"


@pytest.mark.slow
def test_a_short_training_learns_parity_with_a_gru():
    protocol = Protocol(steps=600, seconds=60, factors=(1,), looks=6)
    assert train("gru", TASKS["parity"](), protocol, rate=1e-2, seed=0)["scores"]["1"] > 0.95


# Sweeps and cells -------------------------------------------------------------------------------


def test_the_rate_is_chosen_by_validation_not_by_the_test():
    runs = [
        run(rate=1e-3, valid=0.6, scores={"1": 0.99}),
        run(rate=3e-3, valid=0.8, scores={"1": 0.7}),
        run(rate=3e-3, valid=0.8, scores={"1": 0.5}, seed=1),
        run(rate=1e-2, valid=0.9, scores={}, diverged=True),
    ]
    (found,) = matrix.cells({("gla", "parity"): runs})
    assert found["rate"] == 3e-3
    assert matrix.mean(found) == pytest.approx(0.6)


def test_scores_are_counted_from_chance():
    assert matrix.above_chance(0.5, "parity") == 0
    assert matrix.above_chance(0.75, "parity") == pytest.approx(0.5)
    assert matrix.above_chance(0.2, "parity") == 0


def test_a_cell_goes_on_where_it_was(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(
        study, "train", lambda m, t, p, rate, seed: done.append((rate, seed)) or run(rate=rate)
    )
    study.run_cell("gla", "parity", TINY, tmp_path, lambda line: None)
    assert done == [(1e-3, 0), (1e-2, 0), (1e-3, 1)]
    next(iter(tmp_path.glob("*.json"))).unlink()
    study.run_cell("gla", "parity", TINY, tmp_path, lambda line: None)
    assert len(done) == 4


def test_a_cell_that_fails_is_tried_again_then_given_up(tmp_path, monkeypatch):
    tries = []

    def broken(*_, **__):
        tries.append(1)
        raise RuntimeError("no luck")

    monkeypatch.setattr(study, "train", broken)
    queue = study.Study(tmp_path, None)
    queue.add([("gla", "parity")])
    queue.add([("gla", "parity")])
    assert queue.cells() == [("gla", "parity")]
    queue.work(TINY)
    assert len(tries) == study.ATTEMPTS
    assert queue.failed() == {("gla", "parity"): "RuntimeError: no luck"}


def test_a_worker_does_so_many_cells_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "train", lambda m, t, p, rate, seed: run(rate=rate, seed=seed))
    queue = study.Study(tmp_path, None)
    queue.add([("gla", "parity"), ("gru", "parity"), ("lstm", "parity")])
    queue.work(TINY, most=2)
    assert queue.unfinished() == {("lstm", "parity")}
    queue.work(TINY, most=2)
    assert not queue.unfinished()


# A whole run ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "run"
    mixers, tasks = ("gla", "lstm"), ("parity", "adding")
    bench(mixers, tasks, protocol=TINY, out=path, workers=0, voice=Voice(quiet=True))
    return path


def test_results_hold_everything_to_redraw(folder):
    results = json.loads((folder / "results.json").read_text())
    assert len(results["cells"]) == 4
    assert results["protocol"]["size"] == TINY.size
    assert all(set(c["scores"]) == {"1", "2"} for c in results["cells"])
    assert all(len(c["scores"]["1"]) == 2 for c in results["cells"])
    before = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    redraw(folder)
    assert (folder / "report.html").read_text() == before


def test_the_pictures_are_whole(folder):
    drawn = ElementTree.fromstring((folder / "matrix.svg").read_text())
    text = " ".join(drawn.itertext())
    assert all(word in text for word in ("gla", "lstm", "parity", "adding"))
    page = (folder / "report.html").read_text()
    assert "<script" not in page
    assert "http://www.w3.org/2000/svg" in page


def test_a_finished_run_goes_on_with_nothing_to_do(folder, monkeypatch):
    monkeypatch.setattr(study, "train", lambda *_, **__: pytest.fail("trained again"))
    results = bench(resume=folder, workers=0, voice=Voice(quiet=True))
    assert len(results["cells"]) == 4


@pytest.mark.dist
@pytest.mark.slow
def test_a_killed_worker_is_noticed_and_its_cell_done(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "GRACE", 3)
    monkeypatch.setattr(study, "BEAT", 1)
    queue = study.Study(tmp_path, None)
    queue.add([("gla", "parity")])
    script = (
        "from pathlib import Path; from stepscan.apps.bench import study, Protocol; study.BEAT = 1;"
        "study.GRACE = 3; study.train = lambda *a, **k: __import__('time').sleep(600);"
        f"study.Study(Path({str(tmp_path)!r}), None).work(Protocol())"
    )
    worker = subprocess.Popen([sys.executable, "-c", script])
    while not queue._trials("RUNNING"):
        time.sleep(0.2)
    worker.kill()
    worker.wait()
    monkeypatch.setattr(study, "train", lambda m, t, p, rate, seed: run(rate=rate, seed=seed))
    queue.work(TINY)
    assert set(queue.done()) == {("gla", "parity")}


@pytest.mark.dist
@pytest.mark.slow
def test_workers_follow_each_other_until_all_is_done(tmp_path):
    queue = study.Study(tmp_path, None)
    cells = [("gla", "parity"), ("lstm", "parity"), ("gru", "parity")]
    queue.add(cells)
    _work(queue, tmp_path, None, TINY, 1, Voice(quiet=True), each=1)
    assert set(queue.done()) == set(cells)


def test_hostile_names_are_shown_as_text(folder, tmp_path):
    results = json.loads((folder / "results.json").read_text())
    text = json.dumps(results).replace('"gla"', '"<script>alert(1)</script>"')
    (tmp_path / "results.json").write_text(text)
    redraw(tmp_path)
    assert "<script" not in (tmp_path / "report.html").read_text()
    assert "<script" not in (tmp_path / "matrix.svg").read_text()


# What is said -----------------------------------------------------------------------------------

CLAIM = orderings.Claim("a beats b", "nobody", ("parity",), ("gru", "lstm"), ("gla",))


@pytest.mark.parametrize(
    ("gru", "lstm", "gla", "verdict"),
    [
        ((0.9, 0.95), (0.8, 0.9), (0.5, 0.55), "reproduced"),
        ((0.9, 0.95), (0.5, 0.5), (0.5, 0.55), "in part"),
        ((0.5, 0.5), (0.5, 0.52), (0.5, 0.55), "not shown"),
        ((0.9, 0.95), (0.5, 0.5), (0.8, 0.85), "contradicted"),
        ((0.6, 1.0), (0.6, 1.0), (0.5, 0.7), "not shown"),
    ],
)
def test_published_orderings_are_judged_by_the_numbers(gru, lstm, gla, verdict):
    found = {"gru": gru, "lstm": lstm, "gla": gla}
    cells = [cell(name, "parity", scores) for name, scores in found.items()]
    (row,) = orderings.check(cells, [CLAIM])
    assert row["verdict"] == verdict


def test_a_mixer_with_options_counts_as_that_mixer():
    cells = [cell("gru[heads=2]", "parity", (0.9, 0.95)), cell("gla", "parity", (0.5, 0.55))]
    (row,) = orderings.check(cells, [CLAIM])
    assert row["better"].keys() == {"gru[heads=2]"}
    assert row["verdict"] == "reproduced"


def test_an_ordering_without_cells_is_not_judged():
    assert orderings.check([cell("gru", "parity", (0.9,))], [CLAIM]) == []


def test_every_claim_names_what_there_is():
    from stepscan.mixers import MIXERS  # noqa: PLC0415

    for claim in orderings.CLAIMS:
        assert set(claim.tasks) <= set(TASKS)
        for mixer in (*claim.better, *claim.worse):
            assert mixer.partition("[")[0] in MIXERS
            parse(mixer)


def test_who_is_said_to_solve_a_task_has_to():
    claim = CLAIM._replace(least=0.9)
    for score, verdict in (((0.9, 0.95), "in part"), ((0.97, 0.99), "reproduced")):
        cells = [cell("gru", "parity", score), cell("gla", "parity", (0.5, 0.55))]
        assert orderings.check(cells, [claim])[0]["verdict"] == verdict


def test_a_claim_about_options_asks_for_these():
    claim = CLAIM._replace(better=("min_gru[eig_range=(-1,1)]",), worse=("min_gru",))
    wide, plain = "min_gru[eig_range=(-1, 1)]", "min_gru[window=2]"
    cells = [cell(wide, "parity", (0.9, 0.95)), cell(plain, "parity", (0.5, 0.55))]
    (row,) = orderings.check(cells, [claim])
    assert (row["better"].keys(), row["worse"].keys()) == ({wide}, {plain})


def test_a_run_is_widened_by_the_trainings_of_another(folder, tmp_path, monkeypatch):
    wider = dataclasses.replace(TINY, seeds=TINY.seeds + 1)
    trained = []
    real = study.train

    def counting(pattern, task, protocol, *, rate, seed):
        trained.append((pattern, task.name, seed))
        return real(pattern, task, protocol, rate=rate, seed=seed)

    monkeypatch.setattr(study, "train", counting)
    made = {"protocol": wider, "out": tmp_path / "wide", "workers": 0, "voice": Voice(quiet=True)}
    results = bench(("gla",), ("parity",), trained=folder, **made)
    assert trained == [("gla", "parity", TINY.seeds)]
    (before,) = [
        c
        for c in json.loads((folder / "results.json").read_text())["cells"]
        if (c["mixer"], c["task"]) == ("gla", "parity")
    ]
    assert results["cells"][0]["scores"]["1"][:-1] == before["scores"]["1"]
    with pytest.raises(ValueError, match="want a run folder with trainings"):
        bench(("gla",), ("parity",), trained=tmp_path, **made | {"out": tmp_path / "none"})
    assert not (tmp_path / "none").exists()


def test_findings_follow_the_numbers():
    cells = [cell("gru", "parity", (1.0,)), cell("gla", "parity", (0.5,))]
    said = " ".join(findings(cells))
    assert "gru leads with 100% above chance, gla is last with 0%" in said
    assert "parity was solved by only gru of 2" in said
    turned = [cell("gru", "parity", (0.5,)), cell("gla", "parity", (1.0,))]
    assert "gla leads" in " ".join(findings(turned))
    level = [cell("gru", "parity", (0.9,)), cell("gla", "parity", (0.9,))]
    assert "tells no mixer from another" in " ".join(findings(level))
    lost = [cell("gru", "parity", (0.5,)), cell("gla", "parity", (0.5,))]
    assert "no mixer did more than guess" in " ".join(findings(lost))


def test_a_failure_is_said():
    cells = [cell("gru", "parity", (1.0,)), cell("gla", "parity", (0.5,), diverged=True)]
    assert "Diverged: gla on parity" in " ".join(findings(cells))


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tasks", "parety"], "Did you mean 'parity'"),
        (["--mixers", "glaa"], "Did you mean 'gla'"),
        (["--rates", "1e-3,x"], "want rates as numbers"),
        (["--rates", "0"], "learning rates above 0"),
        (["--factors", "2,4"], "begin with 1"),
        (["--seeds", "0"], "seeds >= 1"),
        (["--mixers", "mamba[state=0]"], "state"),
        (["--resume", "nowhere"], "is nowhere a run folder"),
        (["--redraw", "nowhere"], "is nowhere a run folder"),
    ],
)
def test_nonsense_is_refused_in_one_line_and_leaves_nothing(
    options, said, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *options]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_defaults_can_be_run():
    room.check(room.MIXERS, room.QUICK_TASKS, room.QUICK)
    assert torch.get_num_threads() == 1
