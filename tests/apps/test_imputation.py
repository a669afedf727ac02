"""Gaps are filled from both sides, known values stay, and simple methods are beaten."""

import json
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_data import demand
from quick_series import quick_series

from stepscan.apps.model import Model
from stepscan.apps.series.imputation import Filler, Gap, find_gaps, turned
from stepscan.cli import main
from stepscan.data.base import DataOptions

HOW = DataOptions(horizon=12, test=400, valid=400)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imputation")
    demand(100).to_csv(folder / "load.csv", index=False)
    quick_series(
        folder / "load.csv", HOW, folder / "run", layers="nlinear[window=168]", steps=60, rows=4,
        length=400, learning_rate=3e-3,
    )  # fmt: skip
    return folder / "run"


@pytest.fixture(scope="module")
def model(run):
    return Model.load(run)


class Knocked(NamedTuple):
    frame: pd.DataFrame
    truth: np.ndarray
    gone: np.ndarray


def knocked_out(share, seed=3, days=60):
    """Blocks of 2 to 20 hours without a value, `share` of all."""
    frame = demand(days, seed=seed)
    truth = frame["load"].to_numpy().copy()
    rng = np.random.default_rng(seed)
    gone = np.zeros(len(truth), bool)
    while gone.mean() < share:
        start = int(rng.integers(200, len(truth) - 30))
        gone[start : start + int(rng.integers(2, 21))] = True
    return Knocked(frame.assign(load=np.where(gone, np.nan, truth)), truth, gone)


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_better_than_a_line_and_the_season_before(model, share):
    frame, truth, gone = knocked_out(share)
    found = model.impute(frame)
    assert (found["missing"].to_numpy() == gone).all()
    np.testing.assert_allclose(found["value"].to_numpy()[~gone], truth[~gone])
    line = frame["load"].interpolate().to_numpy()
    season = frame["load"].copy()
    for back in range(1, 5):
        season = season.fillna(frame["load"].shift(back * model.schema.season))
    values = found["value"], line, season.ffill()
    ours, linear, naive = (np.abs(np.array(v)[gone] - truth[gone]).mean() for v in values)
    inside = (found["low"].to_numpy() <= truth) & (truth <= found["high"].to_numpy())
    print(  # noqa: T201
        f"{share:.0%}: {ours:.2f}, line {linear:.2f}, season {naive:.2f}, {inside[gone].mean():.2f}"
    )
    assert ours < min(linear, naive)
    assert 0.8 < inside[gone].mean() < 0.98, "the outermost levels claim 0.9"


def test_turned_twice_is_the_same(model):
    packed = model.schema.encode(model.table(knocked_out(0.1).frame))
    once = turned(packed)
    twice = turned(once)
    for name in ("y", "series", "stamps", "channels", "ahead", "begin", "end", "last_seen"):
        now, was = getattr(twice.panel, name), getattr(packed.panel, name)
        assert torch.equal(now.nan_to_num(9.0), was.nan_to_num(9.0)), name
    assert torch.equal(once.panel.y.flip(0).nan_to_num(9.0), packed.panel.y.nan_to_num(9.0))


def test_gaps_lie_between_known_values_of_one_series(model):
    frame = demand(5)
    frame.loc[[10, 11, 50, 119], "load"] = np.nan
    packed = model.schema.encode(model.table(frame))
    assert find_gaps(packed) == [Gap(9, 12), Gap(49, 51)]
    assert [gap.length for gap in find_gaps(packed)] == [2, 1]


def test_a_gap_of_one_step_is_mostly_a_line_and_each_side_has_its_end(model):
    """Near the beginning the forecast counts more than the one from behind, and the reverse."""
    frame, _, _ = knocked_out(0.1)
    filler = Filler(
        model.network, model.schema, model.schema.encode(model.table(frame)), reach=model.reach
    )
    for length in filler.runs:
        weights = filler.trust(length).weights
        torch.testing.assert_close(weights.sum(0), torch.ones(length, dtype=torch.float64))
        if length >= 8:
            assert weights[0, 0] > weights[0, -1]
            assert weights[1, -1] > weights[1, 0]


def test_answers_are_tried_on_what_was_not_learned_from(model):
    """Where there is enough of it; else on all."""
    packed = model.schema.encode(model.table(knocked_out(0.1).frame))
    last = int(packed.panel.stamps[1000])
    made = [
        Filler(model.network, model.schema, packed, reach=model.reach, seen_until=until)
        for until in (None, last, int(packed.panel.stamps[-60]))
    ]
    for length, at in made[1].runs.items():
        before, few = made[0].runs[length], made[2].runs[length]
        assert (packed.stamps_at(before) <= last).any()
        assert torch.equal(few, before)
        new = (packed.stamps_at(at) > last).all()
        assert new or length > 16, "440 hours hold a hundred runs of 16 hours between gaps"


def test_long_gaps_and_short_tables(model):
    """Longer than two horizons, longer than a season; too little to try the answers on."""
    frame = demand(60, seed=4)
    truth = frame["load"].to_numpy().copy()
    frame.loc[700:900, "load"] = np.nan
    found = model.impute(frame)
    assert found["value"].notna().all()
    gone = found["missing"].to_numpy()
    error = np.abs(found["value"].to_numpy()[gone] - truth[gone]).mean()
    assert error < np.abs(frame["load"].interpolate().to_numpy()[gone] - truth[gone]).mean()
    short = demand(2)
    short.loc[20:22, "load"] = np.nan
    assert model.impute(short)["value"].notna().all()
    whole = demand(2)
    assert not model.impute(whole)["missing"].any()


def test_command(run, tmp_path, capsys):
    frame, _, gone = knocked_out(0.05)
    frame.to_csv(tmp_path / "holes.csv", index=False)
    out = tmp_path / "filled.csv"
    assert main(["impute", str(run), str(tmp_path / "holes.csv"), "--out", str(out)]) == 0
    assert f"{gone.sum():,} of {len(frame):,} values were missing" in capsys.readouterr().out
    filled = pd.read_csv(out)
    assert filled["value"].notna().all()
    assert main(["impute", str(run), str(tmp_path / "holes.csv"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == gone.sum()
    assert main(["impute", str(run), str(tmp_path / "none.csv")]) == 2
    assert "no such file" in capsys.readouterr().err
