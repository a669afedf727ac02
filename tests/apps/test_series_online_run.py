"""`update --learn`: a new run that has learned from new rows while it read them."""

import copy
import json

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_data import TINY, series_frame

from stepscan.apps.baselines import ets
from stepscan.apps.baselines import series as simple
from stepscan.apps.fit import fit
from stepscan.apps.model import Model
from stepscan.apps.series.learning import learn
from stepscan.apps.series.online_run import learn_on
from stepscan.cli import main
from stepscan.data import DataError, DataOptions
from stepscan.models import Inputs
from stepscan.train.objectives import loss
from stepscan.train.online import Online
from stepscan.train.optimizer import adamw

STEPS, CHANGE, HORIZON = 560, 400, 6
QUICK = {"layers": "min_gru", "width": 16, "rows": 4, "length": 48, "quiet": True}


def wave():
    """A daily wave that turns upside down and doubles after the change."""
    t = np.arange(STEPS)
    y = np.where(t < CHANGE, 1.0, -2.0) * np.sin(t * 2 * np.pi / 24)
    y += 0.1 * np.random.default_rng(0).normal(size=STEPS)
    return pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=STEPS, freq="h"), "y": y})


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simple, "STEPS", 5)
        patch.setattr(ets, "installed", lambda: False)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on what came before the change."""
    folder = tmp_path_factory.mktemp("online")
    wave()[:CHANGE].to_csv(folder / "wave.csv", index=False)
    options = DataOptions(horizon=HORIZON, test=48, valid=48, season=0)
    fit(folder / "wave.csv", options=options, out=folder / "run", steps=60, **QUICK)
    return folder / "run"


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.network.parameters()])


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def learned(run):
    """From the new rows alone."""
    wave()[CHANGE:].to_csv(run.parent / "new.csv", index=False)
    out = run.parent / "after"
    return learn_on(run, run.parent / "new.csv", learning_rate=3e-3, out=out, quiet=True)


def test_the_error_is_of_the_forecasts_that_the_old_run_makes_by_hand(run, learned):
    """From the last old row and every horizon after it, against MASE computed here."""
    frame, old = wave(), Model.load(run)
    y = frame["y"].to_numpy()
    wrong, count = 0.0, 0
    for cut in range(CHANGE, STEPS, HORIZON):
        said = old.forecast(frame[:cut])["0.5"].to_numpy()[: STEPS - cut]
        wrong, count = wrong + np.abs(said - y[cut : cut + HORIZON]).sum(), count + len(said)
    assert count == STEPS - CHANGE, "every new row once"
    naive = learned.schema.naive[0]  # of what lies before the test part of all rows
    assert naive == pytest.approx(np.abs(np.diff(y[: STEPS - 48])).mean())
    facts = learned.about["learned"]
    assert facts["error_as_it_was"]["MASE"] == pytest.approx(wrong / count / naive, rel=1e-5)
    assert facts["error"]["MASE"] < 0.9 * facts["error_as_it_was"]["MASE"], "it helps here"
    assert facts["steps"] == STEPS - CHANGE


def foretold(model, frame, cuts):
    """What `learn` says at these cuts, in units of the head."""
    packed = model.schema.encode(model.table(frame))
    since = int(packed.panel.stamps[CHANGE - 1])
    network = copy.deepcopy(model.network)
    origins = [cut - 1 for cut in cuts]
    told = {"method": "dni", "learning_rate": 3e-3, "origins": origins}
    return learn(network, packed, since, **told).said


def flattering(model, frame, cuts):
    """The broken way: what was said just before each step was learned from."""
    packed = model.schema.encode(model.table(frame))
    network = copy.deepcopy(model.network)
    head = network.config.head
    optimizer = adamw(network, learning_rate=3e-3, weight_decay=0.0, betas=(0.9, 0.999))
    learner = Online(network, lambda o, t: loss(head, o, t).mean, optimizer, method="dni")
    panel = packed.panel
    begin = panel.begin.numpy()
    low, last = begin + 1, panel.end.numpy()
    asked = type(packed)(panel, packed.names, first=begin, last=last, low=low, high=last)
    found = {}
    for i in range(max(cuts)):
        step = torch.tensor([[i]])
        inputs = Inputs(reals=asked.inputs_at(step)[1])
        if i < CHANGE - HORIZON:
            with torch.no_grad():
                _, learner.state = network(inputs, learner.state)
            continue
        found[i] = learner.step(inputs, asked.targets_at(step))[0][0, -1]
    return torch.stack([found[cut - 1] for cut in cuts])


@pytest.mark.parametrize(("make", "honest"), [(foretold, True), (flattering, False)])
def test_no_forecast_knows_what_came_after_it(run, make, honest):
    """Other values after the second cut change nothing that was said up to there."""
    model, frame, cuts = Model.load(run), wave(), [420, 432, 444]
    other = frame.assign(y=frame["y"].where(frame.index < cuts[1], 3.0))
    one, two = make(model, frame, cuts), make(model, other, cuts)
    same = [torch.equal(a, b) for a, b in zip(one, two, strict=True)]
    assert same == ([True, True, False] if honest else [True, False, False])


def test_the_rows_of_the_run_may_be_in_the_file_again(run, learned, tmp_path):
    """New rows alone, or some of the old ones too: the same weights."""
    wave()[300:].to_csv(tmp_path / "grown.csv", index=False)
    again = learn_on(
        run, tmp_path / "grown.csv", learning_rate=3e-3, out=tmp_path / "b", quiet=True
    )
    assert torch.equal(weights(again), weights(learned))
    assert again.about["learned"]["error"] == learned.about["learned"]["error"]
    assert not torch.equal(weights(again), weights(Model.load(run)))


def test_the_new_run_stands_alone_and_learns_on(run, learned, tmp_path):
    before = contents(run)
    assert learned.forecast()["time"].iloc[0] == str(wave()["ds"].iloc[-1] + pd.Timedelta(hours=1))
    more = wave().assign(ds=wave()["ds"] + pd.Timedelta(hours=STEPS))[:30]
    again = learn_on(learned.about["folder"], more, method="rtrl", out=tmp_path / "b", quiet=True)
    assert again.about["learned"]["steps"] == 30
    assert len(again.own_data().parts["test"].panel.y) == STEPS + 30
    assert again.schema == again.own_data().schema
    assert again.impute(more).shape[0] == 30
    with pytest.raises(DataError, match="the model was trained on or chosen by"):
        again.backtest(windows=1)
    assert contents(run) == before
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["frame-data.parquet", "model"]


def test_a_file_that_has_grown_is_learned_from_where_the_weights_were_chosen(run, tmp_path):
    """The test part of the run was never learned from: it is new, as are the rows since."""
    moved = tmp_path / "wave.csv"
    wave()[: CHANGE + 12].to_csv(moved, index=False)
    model = Model.load(run)
    model.about["source"] = str(moved)
    model.save(tmp_path / "old")
    new = learn_on(tmp_path / "old", moved, out=tmp_path / "new", quiet=True)
    assert new.about["learned"]["steps"] == 48 + 12
    moved.unlink()
    later = wave()[CHANGE + 12 : CHANGE + 40]
    assert learn_on(tmp_path / "new", later, out=tmp_path / "c", quiet=True).about["learned"]
    with pytest.raises(DataError, match=r"cannot be read .*no such file.* with --since"):
        learn_on(tmp_path / "old", later, quiet=True)
    told = {"since": wave()["ds"][CHANGE - 1], "out": tmp_path / "d", "quiet": True}
    assert learn_on(tmp_path / "old", wave()[:440], **told).about["learned"]["steps"] == 40


def test_series_go_forward_together_and_new_ones_are_measured(tmp_path):
    """Static and known columns, a series that ended, one that begins, steps that are missing."""
    data = series_frame(("a", "b"), 300)
    hour = data["ds"].dt.hour
    data = data.assign(open=1.0 * hour.between(8, 18), size=data["unique_id"].map({"a": 3, "b": 7}))
    new = series_frame(("a", "new"), 340).assign(open=0.0)
    new = new[new["ds"] >= new["ds"].iloc[270]]
    new["size"] = new["unique_id"].map({"a": 3, "new": 5})
    options = DataOptions(horizon=6, test=24, valid=24, future=("open",), static=("size",))
    made = fit(data, options=options, out=tmp_path / "run", layers="min_gru", **TINY)
    after = learn_on(made.about["folder"], new, out=tmp_path / "b", quiet=True)
    assert set(after.schema.names) == {"a", "b", "new"}
    facts = after.about["learned"]
    assert facts["forecasts"] == 7, "40 new rows of a; b has none, new is measured by its rows"
    assert after.schema.center[1] == made.schema.center[1]
    center = dict(zip(after.schema.names, after.schema.center, strict=True))["new"]
    assert center == pytest.approx(new[new["unique_id"] == "new"]["y"].median())
    assert after.forecast()["series"].unique().tolist() == ["a", "new"], "b had ended"


def test_steps_without_a_clock(tmp_path):
    y = pd.DataFrame({"y": np.random.default_rng(0).normal(size=120).cumsum()})
    options = DataOptions(horizon=3, test=8, valid=8)
    fit(y[:90], options=options, out=tmp_path / "run", layers="min_gru", **TINY)
    after = learn_on(tmp_path / "run", y[90:], out=tmp_path / "b", quiet=True)
    assert after.about["learned"]["steps"] == 30
    assert after.about["learned"]["forecasts"] == 10
    assert len(after.own_data().parts["test"].panel.y) == 120


def test_a_state_that_grows_is_refused(tmp_path):
    data = series_frame(("a",), 200)
    options = DataOptions(horizon=6, test=24, valid=24)
    fit(data[:150], options=options, out=tmp_path / "run", layers="attention", **TINY)
    with pytest.raises(ValueError, match="grows with the sequence"):
        learn_on(tmp_path / "run", data[150:], out=tmp_path / "b", quiet=True)
    assert not (tmp_path / "b").exists()


def test_from_the_command_line(run, learned, tmp_path, capsys):
    out = tmp_path / "made"
    words = ["update", str(run), str(run.parent / "new.csv"), "--learn", "--out", str(out)]
    assert main([*words, "--learning-rate", "3e-3"]) == 0
    said = capsys.readouterr().out
    assert "160 new values of 1 series" in said
    facts = learned.about["learned"]
    assert f"MASE {facts['error']['MASE']:.3f} ({facts['error_as_it_was']['MASE']:.3f})" in said
    assert torch.equal(weights(Model.load(out)), weights(learned))
    words[-1] = str(tmp_path / "json")
    assert main([*words, "--method", "dni", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["learned"]["method"] == "dni"


WRONG = {
    "method": ("{new} --learn --method bptt", "unknown online method 'bptt'. Known: dni, rtrl"),
    "a budget": ("{new} --learn --steps 3", "leave out --steps"),
    "a part": ("{new} --learn --test 9", "leave out --test"),
    "method alone": ("{new} --method dni", "--method is for --learn"),
    "rate": ("{new} --learn --learning-rate 0", "want learning_rate above zero, got 0"),
    "nothing new": ("{old} --learn --since 2025-01-01", "there is none yet"),
    "since": ("{new} --learn --since yesterdy", '"yesterdy" is not a time'),
    "no file": ("none.csv --learn", "none.csv: no such file"),
    "columns": ("{other} --learn", 'no column "y" for the target. Columns: ds, load'),
    "clock": ("{counted} --learn", "holds plain numbers, the model learned times that are dates"),
    "twice": ("{twice} --learn", "this time was there before"),
    "out": ("{new} --learn --out {run}", "is not empty; choose another --out"),
}


@pytest.mark.parametrize(("line", "wanted"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line(line, wanted, run, learned, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    new = wave()[CHANGE:]
    new.rename(columns={"y": "load"}).to_csv("other.csv", index=False)
    new.assign(ds=range(len(new))).to_csv("counted.csv", index=False)
    pd.concat([new, new[:1]]).to_csv("twice.csv", index=False)
    before = sorted(tmp_path.rglob("*"))
    files = {"new": run.parent / "new.csv", "old": run.parent / "wave.csv", "run": run}
    files |= {name: f"{name}.csv" for name in ("other", "counted", "twice")}
    assert main(["update", str(run), *line.format(**files).split()]) == 2
    err = capsys.readouterr().err
    assert wanted in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_what_diverges_or_is_interrupted_leaves_nothing(run, learned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wave()[CHANGE:][:20].to_csv(tmp_path / "new.csv", index=False)
    words = ["update", str(run), "new.csv", "--learn"]
    assert main([*words, "--learning-rate", "1e9"]) == 1

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "save", stop)
    assert main(words) == 130
    assert {p.name for p in tmp_path.rglob("*")} <= {"new.csv", "runs"}
