"""Rolling-origin backtests: the cutoffs, what is known at them, and every metric."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_data import TINY, series_frame
from utilsforecast import losses

from stepscan.apps.baselines import series as simple
from stepscan.apps.baselines.ets import ets_quantiles, spread_evenly
from stepscan.apps.fit import fit
from stepscan.apps.kinds import domain_of
from stepscan.apps.model import Model
from stepscan.apps.series.backtest import windows_of
from stepscan.apps.series.domain import LEVELS
from stepscan.apps.series.scores import DEFINITIONS, leaderboard, quantile_column, score_window
from stepscan.cli import main
from stepscan.data import DataError, DataOptions, open_dataset

STEPS, HORIZON = 260, 6
OPTIONS = DataOptions(horizon=HORIZON, test=60, valid=24)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """DLinear need not be good here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simple, "STEPS", 20)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on two hourly series, the last 60 hours held out."""
    folder = tmp_path_factory.mktemp("backtest")
    series_frame(steps=STEPS).to_csv(folder / "power.csv", index=False)
    fit(folder / "power.csv", options=OPTIONS, out=folder / "run", **TINY)
    return folder / "run"


@pytest.fixture(scope="module")
def tested(run):
    """Three windows, ten hours apart."""
    return Model.load(run).backtest(windows=3, step=10, horizons=(1, HORIZON))


def test_the_frame_has_the_shape_people_know(tested):
    frame = tested.frame
    assert list(frame.columns[:5]) == ["unique_id", "ds", "cutoff", "y", "gated_delta_net"]
    for who in ("seasonal naive", "last value", "drift", "DLinear", "ETS"):
        assert {who, f"{who}-lo-80", f"{who}-hi-80", f"{who}-lo-90", f"{who}-hi-90"} <= {*frame}
        assert (frame[f"{who}-lo-90"] <= frame[f"{who}-lo-80"] + 1e-9).all()
    last = pd.Timestamp("2024-01-01") + pd.Timedelta(hours=STEPS - 1)
    wanted = [last - pd.Timedelta(hours=h) for h in (26, 16, 6)]
    assert sorted(frame["cutoff"].unique()) == wanted
    ahead = (frame["ds"] - frame["cutoff"]) / pd.Timedelta(hours=1)
    assert sorted(ahead.unique()) == list(range(1, HORIZON + 1))
    data = series_frame(steps=STEPS).set_index(["unique_id", "ds"])["y"]
    same = data.reindex(pd.MultiIndex.from_frame(frame[["unique_id", "ds"]]))
    assert frame["y"].to_numpy() == pytest.approx(same.to_numpy())
    assert len(frame) == 3 * 2 * HORIZON


def test_a_forecast_of_a_backtest_is_the_forecast_of_that_day(run, tested):
    """The model and every simple method: what came after the cutoff makes no difference."""
    model, data = Model.load(run), series_frame(steps=STEPS)
    columns = [c for c in tested.frame if "ETS" not in c and "DLinear" not in c][4:]
    for cutoff, told in tested.frame.groupby("cutoff"):
        alone = model.forecast(data[data["ds"] <= cutoff], levels=(80, 90))
        ours = told[alone.columns[2:]].to_numpy()
        assert ours == pytest.approx(alone.iloc[:, 2:].to_numpy(), abs=1e-4)
    changed = data.assign(y=data["y"].where(data["ds"] <= cutoff, 1e3))
    again = model.backtest(_kept(changed, run), windows=3, step=10).frame
    pd.testing.assert_frame_equal(tested.frame[columns], again[columns], atol=1e-6)
    learned = tested.frame.columns[4:]
    pd.testing.assert_frame_equal(tested.frame[learned], again[learned], atol=1e-3, rtol=1e-3)
    wrong = data.assign(y=data["y"].where(data["ds"] > cutoff, data["y"] + 1.0))
    moved = model.backtest(_kept(wrong, run), windows=3, step=10).frame
    assert (moved["gated_delta_net"] - again["gated_delta_net"]).abs().min() > 0.01, (
        "the check sees"
    )


def _kept(frame, run):
    """The data of the run under its own name, with other values."""
    path = run.parent / f"other-{abs(hash(frame['y'].sum()))}.csv"
    frame.to_csv(path, index=False)
    return path


def plain_scores(frame, history, model, season):
    """Every metric straight from its definition, for one series and window."""
    y, f = frame["y"].to_numpy(), frame[model].to_numpy()
    past = history["y"].to_numpy()
    naive = np.nanmean(np.abs(past[season:] - past[:-season]))
    square = np.nanmean((past[season:] - past[:-season]) ** 2)
    pinball = [
        np.maximum(t * (y - q), (t - 1) * (y - q))
        for t in LEVELS
        for q in [frame[quantile_column(model, t)].to_numpy()]
    ]
    low, high = (frame[quantile_column(model, t)].to_numpy() for t in (0.1, 0.9))
    wide = [frame[quantile_column(model, t)].to_numpy() for t in (0.05, 0.95)]
    return {
        "MASE": np.abs(y - f).mean() / naive,
        "RMSSE": np.sqrt(((y - f) ** 2).mean() / square),
        "sMAPE": (np.abs(y - f) / (np.abs(y) + np.abs(f))).mean(),
        "WAPE": np.abs(y - f).sum() / np.abs(y).sum(),
        "CRPS": 2 * np.mean(pinball) / naive,
        "scaled CRPS": 2 * np.mean(pinball) / np.abs(y).mean(),
        "coverage 80": ((low <= y) & (y <= high)).mean(),
        "coverage 90": ((wide[0] <= y) & (y <= wide[1])).mean(),
    }


def made_up_window(seed=0, silent=False):
    rng = np.random.default_rng(seed)
    frames, histories = [], []
    for name in ("a", "b"):
        past = rng.normal(10, 3, 40)
        past[[3, 17]] = np.nan
        ds = pd.date_range("2024-01-01", periods=48, freq="D")
        histories.append(pd.DataFrame({"unique_id": name, "ds": ds[:40], "y": past}))
        frame = pd.DataFrame({"unique_id": name, "ds": ds[40:], "y": rng.normal(10, 3, 8)})
        for model in ("one", "two"):
            said = np.sort(rng.normal(10, 4, (8, len(LEVELS))), 1)
            if silent and model == "two" and name == "b":
                said[:] = np.nan
            frame[model] = said[:, 3]
            for i, level in enumerate(LEVELS):
                frame[quantile_column(model, level)] = said[:, i]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True), pd.concat(histories, ignore_index=True)


@pytest.mark.parametrize("season", [0, 1, 7])
def test_metrics_equal_a_plain_computation(season):
    frame, history = made_up_window()
    found = score_window(frame, history, ["one", "two"], LEVELS, season)
    assert set(found["metric"]) == set(DEFINITIONS), "each has a definition"
    for name, own in frame.groupby("unique_id"):
        for model in ("one", "two"):
            past = history[history["unique_id"] == name]
            wanted = plain_scores(own, past, model, season or 1)
            rows = found[found["unique_id"] == name].set_index("metric")[model]
            assert rows.to_dict() == pytest.approx(wanted, rel=1e-9)
    shifted = frame.assign(y=frame["y"] + 1)
    other = score_window(shifted, history, ["one", "two"], LEVELS, season)
    assert (other["one"] != found["one"])[~found["metric"].str.contains("coverage")].all()


def test_crps_of_scoringrules_is_the_scaled_quantile_loss_of_utilsforecast():
    frame, history = made_up_window()
    ours = score_window(frame, history, ["one"], LEVELS, 7)
    ours = ours[ours["metric"] == "CRPS"].set_index("unique_id")["one"]
    columns = {"one": [quantile_column("one", level) for level in LEVELS]}
    theirs = losses.scaled_mqloss(frame, columns, np.array(LEVELS), 7, history)
    assert 2 * theirs.set_index("unique_id")["one"].to_numpy() == pytest.approx(ours.to_numpy())


def test_a_method_that_says_nothing_of_a_series_has_no_score_there():
    frame, history = made_up_window(silent=True)
    found = score_window(frame, history, ["one", "two"], LEVELS, 7)
    silent = found["unique_id"] == "b"
    assert found.loc[silent, "two"].isna().all()
    assert found.loc[~silent, "two"].notna().all()
    assert found["one"].notna().all()


def test_a_series_that_never_changed_has_no_scale():
    frame, history = made_up_window()
    history.loc[history["unique_id"] == "a", "y"] = 4.0
    found = score_window(frame, history, ["one"], LEVELS, 7).set_index(["metric", "unique_id"])
    for metric in ("MASE", "RMSSE", "CRPS"):
        assert np.isnan(found.loc[(metric, "a"), "one"])
        assert found.loc[(metric, "b"), "one"] > 0


def test_the_leaderboard_averages_windows_then_series():
    rows = [("a", 1, 1.0), ("a", 2, 3.0), ("b", 1, 10.0)]
    details = pd.DataFrame(rows, columns=["unique_id", "cutoff", "one"])
    table = leaderboard(details.assign(metric="MASE", horizon=4), ["one"])
    assert table.to_dict("records") == [{"horizon": 4, "model": "one", "MASE": 6.0}]


def test_each_window_is_scaled_by_its_own_past(tested):
    """MASE from the frame, by hand: the in-sample part ends at the cutoff of the window."""
    data = series_frame(steps=STEPS)
    season = 24
    rows = tested.by_series
    rows = rows[(rows["metric"] == "MASE") & (rows["horizon"] == HORIZON)]
    for row in rows.to_dict("records"):
        own = data[(data["unique_id"] == row["unique_id"])]
        past = own[own["ds"] <= row["cutoff"]]["y"].to_numpy()
        naive = np.nanmean(np.abs(past[season:] - past[:-season]))
        said = tested.frame[
            (tested.frame["unique_id"] == row["unique_id"])
            & (tested.frame["cutoff"] == row["cutoff"])
        ]
        for who in ("gated_delta_net", "drift", "ETS"):
            error = (said["y"] - said[who]).abs().mean()
            assert row[who] == pytest.approx(error / naive, rel=1e-6)
    scales = rows.groupby("cutoff")["drift"].mean()
    assert scales.nunique() == 3


def test_scores_of_fit_agree_with_utilsforecast(run):
    """MASE, CRPS and the coverage that `fit` reports, from the same forecasts."""
    model = Model.load(run)
    domain = domain_of(open_dataset(run.parent / "power.csv", OPTIONS))
    packed = domain.packed("test")
    at = packed.origins()
    said, actual = domain.forecast(model.network, packed, at), packed.actual_at(at)
    ours = domain.score(model.network)
    frame = pd.DataFrame(
        {
            "unique_id": np.repeat(np.array(packed.names)[packed.series_at(at)], HORIZON),
            "ds": np.arange(actual.numel()),
            "y": actual.flatten(),
            "m-lo-80": said[..., 1].flatten(),
            "m-hi-80": said[..., 5].flatten(),
            "m": said[..., 3].flatten(),
        }
        | {f"q{i}": said[..., i].flatten() for i in range(len(LEVELS))}
    ).dropna(subset="y")
    panel = packed.panel
    before = torch.arange(len(panel.y)) < torch.from_numpy(packed.asked_from)[panel.series]
    train = pd.DataFrame(
        {
            "unique_id": np.array(packed.names)[panel.series[before]],
            "ds": panel.stamps[before],
            "y": panel.y[before],
        }
    )
    season = domain.schema.season
    mase = losses.mase(frame, ["m"], season, train)["m"].mean()
    assert ours["MASE"] == pytest.approx(mase, abs=1e-6)
    columns = {"m": [f"q{i}" for i in range(len(LEVELS))]}
    crps = 2 * losses.scaled_mqloss(frame, columns, np.array(LEVELS), season, train)["m"].mean()
    assert ours["CRPS"] == pytest.approx(crps, abs=1e-6)
    inside = frame["y"].between(frame["m-lo-80"], frame["m-hi-80"]).mean()
    assert ours["coverage gap"] == pytest.approx(abs(inside - 0.8), abs=1e-6)
    per_series = losses.coverage(frame[["unique_id", "y", "m", "m-lo-80", "m-hi-80"]], ["m"], 80)
    assert per_series["m"].mean() == pytest.approx(inside, abs=0.02)


def test_windows_end_with_the_data():
    dataset = open_dataset("weather")
    panel, schema = dataset.parts["test"].panel, dataset.schema
    windows, notes = windows_of(panel, schema, 3, 100)
    assert not notes
    stamps = panel.stamps.numpy()[windows.place]
    assert (stamps == stamps[:, :1]).all(), "the same dates for all series"
    hour = 3_600_000_000_000
    last = int(panel.stamps[windows.stop - 1].max())
    assert stamps[:, 0].tolist() == [last - (48 + 100 * k) * hour for k in (2, 1, 0)]
    assert windows.first.tolist() == (windows.place[0] + 1).tolist()


def test_what_the_model_has_seen_is_not_tested(run):
    model = Model.load(run)
    data = run.parent / "power.csv"
    for source in (None, data):
        with pytest.raises(DataError, match=r"2 of 12 windows ask for values .* take 10 windows"):
            model.backtest(source, windows=12)
    assert len(model.backtest(windows=10).frame["cutoff"].unique()) == 10
    for wrong, said in (
        ({"windows": 0}, "1 or more, got 0"),
        ({"step": 0}, "got 4 and 0"),
        ({"windows": 99}, r"reach back before the data begins; want \d+ windows or fewer"),
        ({"horizons": (7,)}, "horizons from 1 to 6, got .7."),
        ({"levels": (99,)}, "from 0.05 to 0.95"),
    ):
        with pytest.raises(ValueError, match=said):
            model.backtest(**wrong)


def test_new_series_are_measured_before_the_first_cutoff(run, tmp_path):
    data = series_frame(("fresh",), STEPS)
    data.to_csv(tmp_path / "new.csv", index=False)
    late = data.assign(y=data["y"].where(data["ds"] < data["ds"].iloc[-20], 1e4))
    late.to_csv(tmp_path / "late.csv", index=False)
    model = Model.load(run)
    one, two = (
        model.backtest(tmp_path / name, windows=1, step=6).frame for name in ("new.csv", "late.csv")
    )
    assert one["unique_id"].unique() == ["fresh"]
    early = model.backtest(tmp_path / "late.csv", windows=4).frame
    first = early["cutoff"].min()
    whole = model.backtest(tmp_path / "new.csv", windows=4).frame
    pick = [f[f["cutoff"] == first]["gated_delta_net"].to_numpy() for f in (early, whole)]
    assert pick[0] == pytest.approx(pick[1]), "its scale knows nothing of what comes"
    assert not np.allclose(one["gated_delta_net"], two["gated_delta_net"])


def test_refit_trains_on_what_lies_before(run):
    model = Model.load(run)
    lines = []
    tested = model.backtest(windows=12, refit=6, say=lines.append)
    assert sum("training on" in line for line in lines) == 2
    assert len(tested.frame["cutoff"].unique()) == 12, "no data is too old when it is refitted"
    data = series_frame(steps=STEPS)
    cutoff = sorted(tested.frame["cutoff"].unique())[5]
    changed = _kept(data.assign(y=data["y"].where(data["ds"] <= cutoff, 5.0)), run)
    again = model.backtest(changed, windows=12, refit=6).frame
    early = tested.frame["cutoff"] <= cutoff
    ours = ["gated_delta_net", "gated_delta_net-lo-80"]
    pd.testing.assert_frame_equal(tested.frame[early][ours], again[early][ours], atol=1e-4)
    kept = model.backtest(windows=4).frame
    late = tested.frame[tested.frame["cutoff"] >= kept["cutoff"].min()]
    assert not np.allclose(late["gated_delta_net"], kept["gated_delta_net"], atol=1e-3)
    pd.testing.assert_series_equal(
        late["drift"].reset_index(drop=True), kept["drift"].reset_index(drop=True)
    )


def test_drift_is_the_line_through_the_ends(datasets):
    packed = datasets["series"].parts["test"]
    at = packed.origins()[:2]
    line = simple.drift(packed, at)
    for row, place in enumerate(packed.steps[at].tolist()):
        begin = int(packed.panel.begin[packed.panel.series[place]])
        y = packed.panel.y[begin : place + 1].numpy()
        seen = np.flatnonzero(~np.isnan(y))[-1]
        slope = (y[seen] - y[0]) / seen
        ahead = np.arange(1, HORIZON + 1) + len(y) - 1 - seen
        assert line[row].numpy() == pytest.approx(y[seen] + slope * ahead)


def test_exponential_smoothing_finds_a_season_and_its_own_errors():
    """Bands of a forecaster that knows the process hold what they say."""
    rng = np.random.default_rng(0)
    steps = np.arange(24 * 30)
    y = 5 + np.sin(2 * np.pi * steps / 24) * 3 + rng.normal(size=len(steps)) / 2
    data = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=len(y), freq="h"), "y": y})
    domain = domain_of(_opened(data))
    packed = domain.packed("test")
    at = packed.origins()
    said, actual = ets_quantiles(packed, at, LEVELS), packed.actual_at(at)
    seen = ~actual.isnan()
    error = (said[..., 3] - actual)[seen].abs().mean()
    assert error < 0.55, "the noise alone is 0.4"
    inside = (actual >= said[..., 1]) & (actual <= said[..., 5])
    assert inside[seen].double().mean().item() == pytest.approx(0.8, abs=0.1)
    flat = domain_of(_opened(data.assign(y=3.0))).packed("test")
    assert (ets_quantiles(flat, flat.origins()[:1], LEVELS) == 3).all()


def _opened(frame):
    return open_dataset(frame, DataOptions(horizon=24, test=96, valid=96, season=24))


def test_exponential_smoothing_is_asked_of_some_series_only(datasets):
    packed = datasets["series"].parts["test"]
    at = packed.origins()
    assert spread_evenly(packed, at, len(at)).equal(at)
    half = spread_evenly(packed, at, len(at) // 2)
    assert packed.series_at(half).unique().tolist() in ([0], [1])


def test_the_command(run, tmp_path, capsys):
    out = tmp_path / "all.csv"
    words = ["backtest", str(run), "--windows", "2", "--step", "6", "--out", str(out)]
    assert main(words) == 0
    said = capsys.readouterr().out
    for word in ("MASE", "drift", "ETS", "a fraction from 0 to 1 as in utilsforecast"):
        assert word in said
    assert pd.read_csv(out).shape[0] == 2 * 2 * HORIZON
    assert main([*words[:4], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scores"][0]["model"] == "gated_delta_net"
    assert main(["backtest", str(run), "--windows", "50"]) == 2
    assert "windows" in capsys.readouterr().err
    assert main(["backtest", str(run), "--every", "0"]) == 2
