"""Planted anomalies come out on top, and sound data is called anomalous as often as was said."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_data import demand
from quick_series import quick_series
from scipy import stats

from stepscan.apps.model import Model
from stepscan.apps.series.anomalies import NAIVE, Tail, fit_tail, pareto, score_steps
from stepscan.cli import main
from stepscan.data.base import DataError, DataOptions

DAY = 24
HOW = DataOptions(horizon=12, test=400, valid=700)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("anomalies")
    demand(120).to_csv(folder / "load.csv", index=False)
    quick_series(
        folder / "load.csv", HOW, folder / "run", layers="nlinear[window=168]", steps=80, rows=4,
        length=400, learning_rate=3e-3,
    )  # fmt: skip
    return folder / "run"


@pytest.fixture(scope="module")
def model(run):
    return Model.load(run)


def test_the_tail_is_a_generalised_pareto_distribution():
    for gamma in (0.0, 0.2, 0.4):
        sample = stats.genpareto(gamma, scale=2.0).rvs(40_000, random_state=1)
        shape, scale = pareto(sample)
        assert shape == pytest.approx(gamma, abs=0.05)
        assert scale == pytest.approx(2.0, rel=0.08)


def test_probabilities_are_those_of_the_scores():
    """Of a normal sample; in its tail, lighter than any that is fitted, on the safe side."""
    rng = np.random.default_rng(0)
    tail = fit_tail(np.abs(rng.normal(size=3000)))
    for score in (0.5, 1.0, 2.0, 3.0, 3.5):
        true = 2 * stats.norm.sf(score)
        assert 0.75 * true < tail.p(np.array([score]))[0] < (1.15 if score < 2 else 2.5) * true
        assert Tail(np.empty(0)).p(np.array([score]))[0] == pytest.approx(true)
    found = tail.p(np.linspace(0, 60, 500))
    assert (np.diff(found) <= 1e-12).all()
    assert found[-1] > 0
    assert np.isnan(tail.p(np.array([np.nan]))).all()
    assert not len(fit_tail(np.ones(10)).bulk), "too few to tell"


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_sound_data_is_called_anomalous_as_often_as_was_said(model, rate):
    """10,000 new hours; neighbours hang together, so the error is wider than a binomial one."""
    frame = model.anomalies(demand(420, seed=5), rate=rate, hide=False)
    assert len(frame) == 420 * DAY - max(model.schema.season, 12)
    share = frame["anomaly"].mean()
    assert rate / 2.5 < share < rate * 2.5
    assert (frame["anomaly"] == (10 ** -frame["score"] <= rate)).all()


def planted():
    """Where each anomaly is, and the data with it."""
    frame = demand(40, seed=7)
    y = frame["load"].to_numpy().copy()
    where = {"spike": [400], "dip": [500], "shift": range(600, 610), "season": range(714, 727)}
    y[400] += 12
    y[500] -= 12
    y[600:610] += 12
    y[714:727] = y[714:727][::-1].copy()  # from the low of a day to its peak, the wrong way round
    return frame.assign(load=y), where


def test_planted_anomalies_rank_on_top(model):
    frame, where = planted()
    found = model.anomalies(frame, rate=0.002)
    start = len(frame) - len(found)
    score = found["score"].to_numpy()
    inside = np.zeros(len(found), bool)
    for name, steps in where.items():
        at = np.array(steps) - start
        inside[at] = True
        assert found["anomaly"].to_numpy()[at].any(), name
    outside = score[~inside]
    for name, steps in where.items():
        assert score[np.array(steps) - start].max() > np.sort(outside)[-2], name
    assert found["anomaly"].to_numpy()[~inside].mean() < 0.02
    shift = np.array(where["shift"]) - start
    assert found["anomaly"].to_numpy()[shift].mean() >= 0.8, "every step of a shift is one"
    alone = model.anomalies(frame, rate=0.002, ahead=[1], hide=False)["anomaly"].to_numpy()
    assert alone[shift].mean() < 0.8, "one step ahead alone gets used to it"


def test_what_was_found_is_hidden_from_what_comes_after(model):
    frame, _ = planted()
    seen, hidden = (model.anomalies(frame, rate=0.002, hide=hide) for hide in (False, True))
    start = len(frame) - len(seen)
    after = slice(401 - start, 401 - start + 12)
    assert hidden["score"].to_numpy()[after].max() <= seen["score"].to_numpy()[after].max()
    assert hidden["value"].equals(seen["value"])


def test_missing_values_have_no_score_and_harm_nothing(model):
    frame = demand(40, seed=7)
    whole = model.anomalies(frame)
    frame.loc[700:705, "load"] = np.nan
    holes = model.anomalies(frame)
    start = len(frame) - len(whole)
    gap = np.arange(700, 706) - start
    assert holes["score"].iloc[gap].isna().all()
    assert not holes["anomaly"].iloc[gap].any()
    assert not holes["score"].drop(index=gap).isna().any()
    pd.testing.assert_frame_equal(holes[: gap[0]], whole[: gap[0]])


def test_scores_are_those_of_forecasts_made_before(model):
    """One step by hand: a model that has read up to t - h, asked for t."""
    frame = demand(40, seed=7)
    packed = model.schema.encode(model.table(frame))
    scored = score_steps(model.network, model.schema, packed, (1, 5), reach=model.reach)
    at = 800
    for i, lead in enumerate((1, 5)):
        said = model.forecast(frame[: at - lead + 1]).iloc[lead - 1]
        levels = np.array([0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95])
        knots = said[[str(level) for level in levels]].to_numpy(dtype=float)
        z = stats.norm.ppf(levels)
        slope = [(z[1] - z[0]) / (knots[1] - knots[0]), (z[-1] - z[-2]) / (knots[-1] - knots[-2])]
        y = frame["load"][at]
        want = np.interp(y, knots, z)
        want = z[0] + slope[0] * (y - knots[0]) if y < knots[0] else want
        want = z[-1] + slope[1] * (y - knots[-1]) if y > knots[-1] else want
        assert scored.z[at, i] == pytest.approx(abs(want), rel=1e-3)
    assert np.isnan(scored.z[:1]).all()
    assert np.isnan(scored.z[:5, 1]).all()


def test_own_test_part_and_a_seasonal_naive_score_beside(model):
    frame = model.anomalies()
    assert len(frame) == 400
    assert list(frame) == [
        "series", "time", "value", "expected", "low", "high", "score", "anomaly", NAIVE,
    ]  # fmt: skip
    assert (frame["low"] < frame["expected"]).all()
    assert (frame["expected"] < frame["high"]).all()
    assert frame[NAIVE].notna().all()


def test_lost_training_data_is_said(run, tmp_path, monkeypatch):
    model = Model.load(run)
    model.about["source"] = str(tmp_path / "gone.csv")
    with pytest.warns(RuntimeWarning, match="cannot be read"):
        frame = model.anomalies(demand(30))
    assert frame["score"].notna().all()


def test_command(run, tmp_path, capsys):
    frame, _ = planted()
    frame.to_csv(tmp_path / "new.csv", index=False)
    out = tmp_path / "found.csv"
    assert main(["anomalies", str(run), str(tmp_path / "new.csv"), "--out", str(out)]) == 0
    assert "at a rate of 0.001" in capsys.readouterr().out
    assert pd.read_csv(out)["anomaly"].sum() > 5
    assert main(["anomalies", str(run), str(tmp_path / "new.csv"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["score"] for row in rows] == sorted((r["score"] for r in rows), reverse=True)
    assert main(["anomalies", str(run)]) == 0
    assert main(["anomalies", str(run), "--rate", "2"]) == 2
    assert "want a rate between 0 and 1" in capsys.readouterr().err


@pytest.mark.parametrize("ahead", [[0], [13]])
def test_leads_outside_of_the_horizon_are_named(model, ahead):
    with pytest.raises(DataError, match="want steps ahead from 1 to 12"):
        model.anomalies(ahead=ahead)


def test_a_tail_that_ignores_the_data_is_caught():
    """The check of the rate bites: the normal distribution on heavy tails calls far too many."""
    rng = np.random.default_rng(0)
    scores = np.abs(rng.standard_t(2, size=20_000))
    fitted, normal = fit_tail(scores[:5000]), Tail(np.empty(0))
    shares = [(tail.p(scores[5000:]) <= 0.001).mean() for tail in (fitted, normal)]
    assert 0.0004 < shares[0] < 0.0025
    assert shares[1] > 0.01
    assert torch.tensor(shares).isfinite().all()
