"""Models of series that go on: reading along without training, and training on new data."""

import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_data import TINY, series_frame

from stepscan.apps.baselines import series as simple
from stepscan.apps.fit import fit, resume
from stepscan.apps.model import Model
from stepscan.apps.series import live
from stepscan.cli import main
from stepscan.data import DataError, DataOptions

START = pd.Timestamp("2024-01-01")


def frame(names=("a", "b"), steps=400):
    """With a covariate, one that is known ahead, and two columns with one value a series."""
    data = series_frame(names, steps)
    hour = data["ds"].dt.hour
    return data.assign(
        warm=np.cos(np.arange(len(data))),
        open=(hour.between(8, 18)).astype(float),
        region=data["unique_id"].map({"a": "north", "b": "south"}).fillna("north"),
        size=data["unique_id"].map({"a": 3.0, "b": 7.5}).fillna(5.0),
    )


def between(data, first, last):
    since = (data["ds"] - START) / pd.Timedelta(hours=1)
    return data[(since >= first) & (since < last)].reset_index(drop=True)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simple, "STEPS", 5)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on the first 260 hours of two series."""
    folder = tmp_path_factory.mktemp("updates")
    between(frame(), 0, 260).to_csv(folder / "first.csv", index=False)
    how = DataOptions(horizon=6, test=24, valid=24, future=("open",), static=("region", "size"))
    fit(folder / "first.csv", options=how, out=folder / "run", **TINY)
    return folder / "run"


def with_ahead(data, first, last):
    """Some rows, and what is known ahead of the six after them: no value, no other covariate."""
    ahead = between(data, last, last + 6).assign(y=np.nan, warm=np.nan)
    return pd.concat([between(data, first, last), ahead], ignore_index=True)


def said(model, data=None):
    table = model.forecast(data)
    return table[["series", "time"]].to_numpy().tolist(), table.iloc[:, 2:].to_numpy()


def assert_same(model, whole):
    """The forecast after updates is that of the whole history."""
    (names, ours), (others, theirs) = said(model), said(model, whole)
    assert names == others
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_static_columns_are_read(run):
    schema = Model.load(run).schema
    assert schema.static == ("region", "size")
    assert schema.static_levels == (("north", "south"), ())
    assert schema.covariates == ("warm", "open")


@pytest.mark.parametrize("cuts", [(260, 261, 262), (260, 300), (260, 271, 290, 394)])
def test_reading_along_is_reading_it_all(run, cuts):
    model, data = Model.load(run), frame()
    steps = 0
    for first, last in pairwise(cuts):
        history = None if steps else with_ahead(data, 0, 260)
        steps += model.update(with_ahead(data, first, last), history=history)
        assert_same(model, with_ahead(data, 0, last))
    assert steps == 2 * (cuts[-1] - 260)
    old, new = (said(model, with_ahead(data, 0, last))[1] for last in (260, cuts[-1]))
    assert not np.allclose(old, new, atol=1e-2), "the check sees what was read"


def test_it_begins_with_what_the_model_learned_from(run):
    model, data = Model.load(run), frame()
    before = said(model, between(data, 0, 260))
    rows = between(data, 260, 264)
    rows = rows[rows["unique_id"] == "a"]
    assert model.update(rows) == 4
    names, values = said(model)
    assert names[6:] == before[0][6:], "the other series stands where it stood"
    assert values[6:] == pytest.approx(before[1][6:], abs=1e-4)
    assert names[0][1] == "2024-01-12 00:00:00"
    assert model.forecast(samples=2).shape == (24, 4)


def test_the_state_is_small_and_does_not_grow(run):
    model, data = Model.load(run), frame(steps=700)
    model.update(between(data, 260, 500))
    kept = len(model._live.rows.y)
    model.update(between(data, 500, 700))
    assert len(model._live.rows.y) == kept < 2 * 400


def test_steps_come_one_by_one_with_gaps_and_late_values(run):
    model, data = Model.load(run), frame().drop(columns=["open"]).assign(open=0.0)
    rows = between(data, 260, 290)
    rows.loc[rows["unique_id"] == "a", "y"] = rows["y"].where(rows.index % 3 > 0)
    whole = between(data, 0, 260)
    for _, row in rows[rows["unique_id"] == "a"].groupby("ds"):
        model.update(row, history=whole if model._live is None else None)
    a = rows[rows["unique_id"] == "a"]
    assert_same(model, pd.concat([whole, a], ignore_index=True))


def test_a_new_series_is_measured_when_it_comes(run):
    model, data = Model.load(run), frame(("a", "b", "new"))
    new = between(data[data["unique_id"] == "new"], 0, 200)
    assert model.update(new, history=between(frame(), 0, 260)) == 200
    alone = said(model, pd.concat([between(frame(), 0, 260), new], ignore_index=True))
    assert said(model)[1] == pytest.approx(alone[1], abs=1e-4)
    model.update(between(data[data["unique_id"] == "new"], 200, 210))
    assert model.forecast()["series"].unique().tolist() == ["a", "b", "new"]
    center = dict(zip(model._live.schema.names, model._live.schema.center, strict=True))
    assert center["new"] == pytest.approx(new["y"].median()), "it keeps its first scales"


def test_rows_that_were_read_are_refused_and_nothing_changes(run):
    model, data = Model.load(run), frame()
    model.update(between(data, 260, 262))
    before = said(model)
    for rows, wrong in (
        (between(data, 261, 264), r'2 rows were read before, .* "2024-01-11 21:00:00" of series'),
        (between(data, 262, 264).drop(columns="y"), 'no column "y" for the target'),
        (between(data, 262, 264).assign(y="x"), "is not a number"),
        (between(data, 262, 264).assign(region="elsewhere", size=3.0), None),
    ):
        if wrong is None:
            assert model.update(rows) == 4, "a category never seen is no error"
            continue
        with pytest.raises(DataError, match=wrong):
            model.update(rows)
        after = said(model)
        assert after[0] == before[0]
        assert (after[1] == before[1]).all()


def test_updates_on_steps_without_a_clock(tmp_path):
    """Rows in order, no time column: the new ones come after the old ones."""
    rng = np.random.default_rng(0)
    y = pd.DataFrame({"y": rng.normal(size=90).cumsum()})
    model = fit(y[:70], options=DataOptions(horizon=3, test=8, valid=8), out=tmp_path / "r", **TINY)
    assert model.update(y[70:80]) == 10
    assert model.update(y[80:]) == 10
    assert_same(model, y)


def test_a_model_learns_on_from_new_data(run, tmp_path):
    data = frame(("a", "b", "new"))
    data.to_csv(tmp_path / "second.csv", index=False)
    old = Model.load(run)
    new = fit(tmp_path / "second.csv", warm_start=run, out=tmp_path / "run", steps=6, quiet=True)
    kept = ("season", "lags", "horizon", "covariate_center", "static_levels", "origin")
    assert all(getattr(new.schema, f) == getattr(old.schema, f) for f in kept)
    place = {name: i for i, name in enumerate(new.schema.names)}
    for i, name in enumerate(old.schema.names):
        for field in ("center", "scale", "spread"):
            assert getattr(new.schema, field)[place[name]] == getattr(old.schema, field)[i]
    assert new.schema.naive[place["a"]] != old.schema.naive[0], "MASE is of the new history"
    assert "new" in place
    same = [torch.equal(p, q) for p, q in zip(*map(_weights, (old, new)), strict=True)]
    assert not all(same), "it has learned on"
    far = [(p - q).abs().max() for p, q in zip(*map(_weights, (old, new)), strict=True)]
    assert max(far) < 0.2, "from where it was"
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    looks = [r["scores"]["MASE"] for r in records if r["event"] == "evaluation"]
    assert new.about["valid"]["MASE"] <= min(looks) + 1e-9
    assert resume(tmp_path / "run", quiet=True).schema == new.schema
    assert new.backtest(windows=1).frame["unique_id"].nunique() == 3


def _weights(model):
    return list(model.network.parameters())


def test_no_step_of_training_keeps_what_was_there(run, tmp_path):
    """The old weights are judged first, and stay where training makes them worse."""
    frame().to_csv(tmp_path / "second.csv", index=False)
    ruinous = {"steps": 3, "learning_rate": 30.0}
    new = fit(tmp_path / "second.csv", warm_start=run, out=tmp_path / "run", quiet=True, **ruinous)
    old = Model.load(run)
    assert all(torch.equal(p, q) for p, q in zip(*map(_weights, (old, new)), strict=True))


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda f: f.rename(columns={"y": "kWh"}), 'no column "y" for the target. Columns: '),
        (lambda f: f.rename(columns={"warm": "temp"}), 'no column "warm" for the covariate'),
        (lambda f: f.rename(columns={"region": "area"}), 'no column "region" for the static'),
        (lambda f: f[f["ds"].dt.hour % 2 == 0], "2-hour steps, the model learned steps of hours"),
        (lambda f: f[f["ds"] < START + pd.Timedelta(hours=20)], "the longest series has 20 hours"),
    ],
)
def test_data_of_another_shape_is_refused_in_one_line(run, tmp_path, capsys, change, wrong):
    change(frame()).to_csv(tmp_path / "other.csv", index=False)
    out = tmp_path / "run"
    words = ["update", str(run), str(tmp_path / "other.csv"), "--steps", "2", "--out", str(out)]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert wrong in said
    assert said.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("choices", "wrong"),
    [
        ({"layers": "gla"}, "learns on as it is; leave out layers"),
        ({"width": 8}, "leave out width"),
        ({"options": DataOptions(horizon=3)}, "leave out horizon"),
        ({"options": DataOptions(target="warm")}, "leave out target"),
    ],
)
def test_what_the_model_is_cannot_be_changed(run, choices, wrong):
    with pytest.raises(ValueError, match=wrong):
        fit(run.parent / "first.csv", warm_start=run, **choices)


def test_other_kinds_do_not_learn_on(models, run, capsys):
    folder = models("text").about["folder"]
    assert main(["update", folder, str(run.parent / "first.csv")]) == 2
    assert "only models of series learn on" in capsys.readouterr().err
    assert main(["update", str(run), "elecdemand"]) == 2
    assert "new data comes in a file or a frame" in capsys.readouterr().err


def test_pieces_of_the_reader_do_not_matter(run, monkeypatch):
    """However the series are put side by side."""
    data, found = with_ahead(frame(), 0, 300), []
    for rows in (1, 2):
        monkeypatch.setattr(live, "ROWS", rows)
        model = Model.load(run)
        model.update(between(frame(), 300, 301), history=data)
        found.append(said(model)[1])
    assert found[0] == pytest.approx(found[1], abs=1e-5)
