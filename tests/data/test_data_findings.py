"""Problems that are planted are found and named; clean data stay silent."""

import numpy as np
import pandas as pd
import pytest
from made_up_data import events_frame, interactions_frame, prose, series_frame

from stepscan.data import DataOptions, open_dataset

SERIES = DataOptions(horizon=6, test=24, valid=24)


def noticed(frame, **options):
    return open_dataset(frame, DataOptions(**options)).findings


def sensors(steps=500, seed=0):
    """A series with a weather of its own, one covariate of another kind, no trouble."""
    rng = np.random.default_rng(seed)
    y = 20 + np.cumsum(rng.normal(size=steps)) * 0.2 + 3 * np.sin(np.arange(steps) / 24 * 2 * np.pi)
    return pd.DataFrame(
        {
            "time": pd.date_range("2024-01-01", periods=steps, freq="h"),
            "y": y,
            "wind": rng.gamma(2, size=steps),
        }
    )


def of_sensors(frame, **options):
    return noticed(frame, **({"target": "y", "horizon": 6, "test": 24, "valid": 24} | options))


# Clean data --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_clean_series_are_silent(seed):
    assert of_sensors(sensors(seed=seed)) == ()


def test_clean_data_of_every_kind_are_silent(tmp_path):
    assert open_dataset(series_frame(), SERIES).findings == ()
    assert not [f for f in noticed(interactions_frame()) if "seen fewer" not in f]
    frame = events_frame(200).assign(weekday=lambda f: f["timestamp"].dt.day_name())
    quiet = ("have the time of the one before",)
    assert not [f for f in noticed(frame, attributes=("weekday",)) if not f.endswith(quiet)]
    (tmp_path / "prose.txt").write_text(prose())
    assert open_dataset(tmp_path / "prose.txt").findings == ()


# Leaks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [1, 3, 6])
@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_a_covariate_that_is_the_future_target_is_found(ahead, noise):
    frame = sensors()
    rng = np.random.default_rng(1)
    shifted = frame["y"].shift(-ahead).ffill()
    frame["sales"] = 5 - 2 * shifted + noise * rng.normal(size=len(frame))
    (line,) = of_sensors(frame)
    assert line.startswith(f'covariate "sales" moves as the target {ahead} steps later does')


def test_a_leak_is_found_beside_wild_values_and_series_of_other_sizes():
    frames = []
    for i, name in enumerate("abc"):
        frame = sensors(seed=i).assign(unique_id=name)
        frame["y"] *= 100.0**i
        frame["plan"] = 3 * frame["y"].shift(-2).fillna(0)
        frames.append(frame)
    frame = pd.concat(frames, ignore_index=True)
    frame.loc[700, "y"] = 9e5
    lines = of_sensors(frame, id="unique_id")
    assert [f for f in lines if 'covariate "plan" moves as the target 2 steps later' in f]


def test_the_past_of_the_target_is_no_leak():
    frame = sensors()
    frame["yesterday"] = frame["y"].shift(24).bfill()
    frame["sensor"] = 1.8 * frame["y"] + 32  # the same step: known only with the target itself
    assert of_sensors(frame) == ()


def test_a_smooth_covariate_beside_a_smooth_target_is_no_leak():
    frame = sensors()
    t = np.arange(len(frame)) / 48
    frame["y"], frame["phase"] = np.sin(t), np.cos(t)
    assert not [f for f in of_sensors(frame) if "moves as the target" in f and '"y"' in f]


def test_what_is_said_to_be_known_ahead_may_not_be_the_target():
    frame = sensors()
    frame["plan"] = frame["y"] * 2
    (line,) = of_sensors(frame, future=("plan",))
    assert line.startswith('covariate "plan" moves as the target itself does')


def test_an_attribute_that_gives_the_next_activity_away_is_found():
    frame = events_frame(200)
    after = frame.groupby("case")["activity"].shift(-1).fillna("none")
    frame["queue"] = after.str.lower()
    lines = noticed(frame, attributes=("queue",))
    (line,) = [f for f in lines if "tells the next activity" in f]
    assert line.startswith('column "queue" tells the next activity in 100% of cases')
    frame["queue"] = frame["activity"].str.lower()  # says no more than the activity
    assert not [f for f in noticed(frame, attributes=("queue",)) if "tells the next" in f]


def test_names_are_no_attribute_that_tells():
    frame = events_frame(200)
    frame["serial"] = [f"n{i}" for i in range(len(frame))]
    assert not [f for f in noticed(frame, attributes=("serial",)) if "tells the next" in f]


@pytest.mark.parametrize("kind", ["events", "interactions"])
def test_copies_under_another_name_are_found(kind):
    frame = events_frame(60) if kind == "events" else interactions_frame(40)
    who = frame.columns[0]
    twin = frame[frame[who] == frame[who].iloc[0]].assign(**{who: "twin"})
    assert not [f for f in noticed(frame) if "copies" in f]
    (line,) = [f for f in noticed(pd.concat([frame, twin.iloc[::-1]])) if "copies" in f]
    assert line.startswith(f'1 sequences are copies of others ("twin" of "{frame[who].iloc[0]}"')


def test_a_channel_that_is_the_class_is_found():
    rng = np.random.default_rng(0)
    rows = []
    for i in range(80):
        kind = int(rng.integers(3))
        for step in range(12):
            rows.append(
                (i, step, rng.normal() + 0.3 * kind, kind + 0.1 * rng.normal(), "abc"[kind])
            )
    frame = pd.DataFrame(rows, columns=["id", "time", "force", "code", "label"])
    lines = noticed(frame, kind="labelled", label="label")
    assert [f for f in lines if 'channel "code" alone tells the class' in f]
    assert not [f for f in lines if '"force" alone' in f]


def test_documents_that_are_there_twice_are_found(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(prose())
    assert "1 empty or repeated files left out" in open_dataset(tmp_path).findings


# Values ------------------------------------------------------------------------------------------


def test_a_wild_value_is_found_with_its_place():
    frame = sensors()
    frame.loc[123, "y"] = 1e6
    (line,) = of_sensors(frame)
    assert line.startswith("1 values lie more than 15 standard deviations")
    assert "1e+06 at 2024-01-06 03:00:00" in line


def test_a_level_that_moves_is_found():
    frame = sensors()
    frame.loc[len(frame) - 24 :, "y"] += 100
    (line,) = [f for f in of_sensors(frame) if "lies elsewhere" in f]
    assert line.startswith("in 1 of 1 series the test part lies elsewhere")


def test_a_long_gap_is_found_with_its_place():
    frame = sensors().drop(index=range(100, 130))
    (line,) = of_sensors(frame)
    wanted = (
        "the longest gap is 30 steps without a value, more than the horizon at 2024-01-05 04:00"
    )
    assert line.startswith(wanted)


def test_constant_columns_are_found():
    assert [f for f in of_sensors(sensors().assign(site=1.0)) if '"site" never changes' in f]
    lines = noticed(events_frame(60).assign(site="A"), attributes=("site",))
    assert 'column "site" is always "A": it tells nothing' in lines


@pytest.mark.parametrize("year", ["1900-01-01", "1970-01-01", "2099-12-31"])
def test_dates_that_stand_for_none_are_found(year):
    frame = events_frame(60)
    frame.loc[17, "timestamp"] = pd.Timestamp(year)
    (line,) = [f for f in noticed(frame) if "years away" in f]
    assert f"such as {year} in row 18" in line


# The test part against the training part ---------------------------------------------------------


def test_another_mix_of_activities_is_found():
    frame = events_frame(200)
    late = frame["timestamp"] > frame["timestamp"].quantile(0.7)
    frame.loc[late, "activity"] = frame.loc[late, "activity"].replace(
        r"JFK>.*", "LAX>JFK", regex=True
    )
    assert [f for f in noticed(frame) if "the test part differs from the training part" in f]


def test_slower_cases_are_found():
    frame = events_frame(200)
    first = frame.groupby("case")["timestamp"].transform("min")
    slow = first > first.quantile(0.75)
    frame.loc[slow, "timestamp"] = first + 5 * (frame["timestamp"] - first)
    assert [f for f in noticed(frame) if "times longer in the test part" in f]


def test_items_that_come_up_late_are_found():
    frame = interactions_frame(60)
    last = frame.groupby("user")["timestamp"].transform("max") == frame["timestamp"]
    frame.loc[last, "item"] = [f"new {i % 3}" for i in range(int(last.sum()))]
    assert [f for f in noticed(frame) if "never occur in the training part" in f]


def test_a_user_that_is_many_is_found():
    frame = interactions_frame(40)
    robot = frame.sample(300, replace=True, random_state=0)
    robot = robot.assign(user="robot", timestamp=1_800_000_000 + np.arange(300))
    assert [f for f in noticed(pd.concat([frame, robot])) if "of all interactions" in f]


def test_time_zones_are_said():
    frame = sensors()
    stamps = frame["time"].dt.strftime("%Y-%m-%dT%H:%M:%S")
    zones = ["+02:00" if i < 250 else "+01:00" for i in range(len(frame))]
    (line,) = [f for f in of_sensors(frame.assign(time=stamps + zones)) if "offsets" in f]
    assert line == "times come with 2 offsets from UTC (+01:00, +02:00): all are read as UTC"
    mixed = stamps.where(np.arange(len(frame)) % 2 == 0, stamps + "Z")
    (line,) = of_sensors(frame.assign(time=mixed))
    assert line.startswith("times without a zone, such as")
