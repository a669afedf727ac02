"""Frames in, frames out: the same answers as from files, and a run that can go on."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_data import TINY, events_frame, interactions_frame, series_frame

import stepscan as ss
from stepscan.cli import main
from stepscan.data import DataError, DataOptions, open_dataset
from stepscan.data.frames import frame_table, is_frame

HOURS = pd.date_range("2024-01-01", periods=4, freq="h")


def same_parts(one, other):
    """Whether two data sets say the same to a model."""
    for name, packed in one.parts.items():
        at = torch.arange(len(packed))
        here, there = other.parts[name].inputs_at(at), packed.inputs_at(at)
        for a, b in zip(here, there, strict=True):
            assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-5)
    return one.inputs == other.inputs


@pytest.mark.parametrize("kind", ["events", "series", "interactions"])
def test_a_frame_is_read_like_its_file(kind, files, options):
    frame = {"events": events_frame, "series": series_frame, "interactions": interactions_frame}
    assert same_parts(
        open_dataset(frame[kind](), options.get(kind)), open_dataset(files[kind], options.get(kind))
    )


def test_an_index_of_times_is_a_column():
    plain = series_frame(("a",)).drop(columns="unique_id")
    wanted = open_dataset(plain, DataOptions(horizon=6))
    for frame in (plain.set_index("ds"), plain.set_index("ds").rename_axis(None)):
        found = open_dataset(frame, DataOptions(horizon=6))
        assert found.schema.time == (frame.index.name or "time")
        assert found.schema.center == wanted.schema.center


@pytest.mark.parametrize(
    "cells",
    [
        pd.Series(HOURS),
        pd.Series(HOURS.tz_localize("Europe/Berlin")),
        pd.Series(HOURS.to_period("h")),
        pd.Series(["a", 1, None, 2.5], dtype=object),
        pd.Series(["a", "b", None, "a"], dtype="category"),
        pd.Series([1, 2, 3, 4], dtype="category"),
        pd.Series([1, 2, None, 4], dtype="Int64"),
        pd.Series([True, False, True, None], dtype=object),
        pd.Series([t.date() for t in HOURS]),
    ],
    ids=lambda cells: str(cells.dtype),
)
def test_what_is_kept_comes_back_as_it_was(cells, tmp_path):
    table = frame_table(pd.DataFrame({"x": cells, "y": 1.0}))
    table.frame.to_parquet(tmp_path / "kept.parquet", index=False)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "kept.parquet"), table.frame)


def test_the_frame_of_the_caller_is_left_alone():
    frame = events_frame().astype({"activity": "category"}).set_index("case")
    before = frame.copy()
    frame_table(frame)
    pd.testing.assert_frame_equal(frame, before)


def test_a_run_on_a_frame_goes_on_from_what_it_kept(tmp_path):
    frame = events_frame().astype({"activity": "category"})
    out = tmp_path / "run"
    model = ss.fit(frame, out=out, **TINY)
    assert [p.name for p in out.glob("*.parquet")] == ["frame-data.parquet"]
    moved = tmp_path / "elsewhere"
    shutil.move(out, moved)
    again = ss.resume(moved, quiet=True)
    assert again.about["test"] == model.about["test"]
    whole = ss.load(moved).own_data()
    assert whole.schema == model.schema


def test_several_frames_are_compared_by_their_names(tmp_path):
    frames = [events_frame(30), events_frame(40)]
    for frame, name in zip(frames, ["north", "south"], strict=True):
        frame.attrs["name"] = name
    found = ss.compare(frames, ["min_gru"], minutes=0.01, seeds=1, width=16, out=tmp_path / "c",
                       quiet=True)  # fmt: skip
    assert [s["data"]["name"] for s in found["sections"]] == ["north", "south"]
    assert ss.load(tmp_path / "c/models/south/min_gru").own_data().kind == "events"


def test_answers_come_as_a_frame(models):
    model = models("events")
    frame = events_frame()
    listed = model.predict_table(frame, top=2)
    found = model.predict_frame(frame.set_index("case"), top=2)
    assert list(found.columns) == ["case", "place", "activity", "probability"]
    assert len(found) == 2 * len(listed)
    first = found.groupby("case", sort=False).first()
    assert first["activity"].to_dict() == {case: said[0].what for case, said in listed.items()}
    one = model.predict_frame(frame[frame["case"] == "N003"], top=2)
    assert one["probability"].tolist() == pytest.approx([p.probability for p in listed["N003"]])


def test_frames_of_other_libraries_are_read():
    pa = pytest.importorskip("pyarrow")
    frame = events_frame()
    table = pa.Table.from_pandas(frame)
    assert is_frame(table)
    assert same_parts(open_dataset(table), open_dataset(frame))


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (pd.DataFrame({"x": []}), "want rows and columns, got 0 x 1"),
        (pd.DataFrame([[1, 2]], columns=["x", "x "]), 'column "x" is there twice'),
        (
            pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")])),
            "want one name a column, got 2 levels",
        ),
        (pd.DataFrame({"when": HOURS, "what": list("abcd")}), "no usable column"),
    ],
    ids=["empty", "twice", "levels", "no role"],
)
def test_a_frame_that_is_none_is_one_line(frame, said):
    with pytest.raises(DataError, match=said) as caught:
        open_dataset(frame)
    assert "\n" not in str(caught.value)


def test_what_is_no_data_is_said():
    with pytest.raises(ValueError, match="want a file, a folder, a name or a frame, got ndarray"):
        ss.fit(np.zeros(3))


# Files of any size -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["events", "interactions"])
@pytest.mark.parametrize("out", ["answers.csv", "answers.parquet"])
def test_a_file_is_answered_in_pieces_as_it_is_whole(kind, out, models, files, tmp_path):
    model = models(kind)
    whole = model.predict_frame(files[kind], top=2)
    count = model.predict_file(files[kind], tmp_path / out, top=2, rows=40)
    read = pd.read_csv if out.endswith("csv") else pd.read_parquet
    found = read(tmp_path / out)
    assert count == len(found) == len(whole)
    assert [p.name for p in tmp_path.iterdir()] == [out]
    by = list(whole.columns[:2])
    pd.testing.assert_frame_equal(
        found.sort_values(by, ignore_index=True),
        whole.sort_values(by, ignore_index=True),
        check_dtype=False,
        rtol=1e-4,
    )


def test_times_and_suffixes_come_as_frames(models):
    model, frame = models("events"), events_frame(12)
    assert list(model.predict_frame(frame, what="time").columns) == ["case", "seconds"]
    found = model.predict_frame(frame, what="suffix")
    assert list(found.columns) == ["case", "activity", "times", "probability", "ended"]


def test_what_cannot_be_written_is_said_and_leaves_nothing(models, files, tmp_path):
    model = models("events")
    with pytest.raises(ValueError, match=r"ends in \.csv or \.parquet"):
        model.predict_file(files["events"], tmp_path / "answers.txt")
    with pytest.raises(DataError, match="no such file"):
        model.predict_file(tmp_path / "none.csv", tmp_path / "answers.csv")
    frame = events_frame().rename(columns={"activity": "step"})
    frame.to_csv(tmp_path / "renamed.csv", index=False)
    with pytest.raises(DataError, match='no column "activity"'):
        model.predict_file(tmp_path / "renamed.csv", tmp_path / "answers.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["renamed.csv"]


def test_a_log_on_disk_is_judged_by_some_of_it_and_says_so(files, tmp_path, monkeypatch):
    monkeypatch.setattr("stepscan.apps.domain.JUDGED", 60)
    options = DataOptions(large=1e-6)
    model = ss.fit(files["events"], options=options, out=tmp_path / "run", **TINY)
    section = json.loads((tmp_path / "run/results.json").read_text())["sections"][0]
    (note,) = (line for line in section["data"]["findings"] if line.startswith("judged"))
    assert "of train" in note
    assert model.schema == ss.load(tmp_path / "run").own_data().schema


def test_the_command_writes_a_file_of_answers(models, files, tmp_path, capsys):
    model = models("events")
    run = model.about["folder"]
    out = tmp_path / "next.csv"
    assert (
        main(["predict", run, "--file", str(files["events"]), "--out", str(out), "--top", "2"]) == 0
    )
    found = pd.read_csv(out)
    assert f"saved  {out}  {len(found)} rows" in capsys.readouterr().out
    assert list(found.columns) == ["case", "place", "activity", "probability"]
    assert main(["predict", run, "JFK>LAX", "--out", str(out)]) == 2
    assert "--out goes with --file" in capsys.readouterr().err
