"""Trouble in data of every kind: one clear line and nothing left, or a repair that is said.

The table in docs/your-data.md is this list in words.
"""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_data import TINY, events_frame, interactions_frame, prose, series_frame

import stepscan as ss
from stepscan.cli import main
from stepscan.data import DataError, DataOptions, files, open_dataset

HOURS = pd.date_range("2024-01-01", periods=200, freq="h")


def sensors():
    rng = np.random.default_rng(0)
    y = 5 + np.sin(np.arange(200) / 24 * 2 * np.pi) + 0.1 * rng.normal(size=200)
    return pd.DataFrame({"time": HOURS, "y": y})


def labelled(count=40, kinds="ab"):
    rng = np.random.default_rng(0)
    rows = [
        (i, step, rng.normal(), kinds[i % len(kinds)]) for i in range(count) for step in range(6)
    ]
    return pd.DataFrame(rows, columns=["id", "time", "force", "label"])


def zoned(frame, zones):
    stamps = frame.iloc[:, 0 if "time" in frame else 2]
    name = stamps.name
    text = stamps.dt.strftime("%Y-%m-%dT%H:%M:%S")
    return frame.assign(**{name: text + np.resize(np.array(zones), len(frame))})


def changed(frame, row, column, value):
    frame = frame.astype({column: object})
    frame.loc[row, column] = value
    return frame


def once(frame, who):
    return frame.groupby(who).head(1)


# What is refused: (frame or text, options, what the line says) -----------------------------------

REFUSED = {
    "series: the same time twice": (
        lambda: pd.concat([sensors(), sensors().iloc[[7]]]),
        ["--target", "y"],
        ['column "time"', "this time was there before", "--id"],
    ),
    "series: a word for a number": (
        lambda: changed(sensors(), 41, "y", "n/a"),
        ["--target", "y"],
        ['row 42, column "y": "n/a" is not a number', "--missing n/a"],
    ),
    "series: an infinite value": (
        lambda: changed(sensors(), 41, "y", "inf"),
        ["--target", "y"],
        ['row 42, column "y": the value is infinite'],
    ),
    "series: a horizon longer than the data": (
        lambda: sensors().head(40),
        ["--target", "y", "--horizon", "48"],
        ["a horizon of 48 needs at least 192", "--horizon 10"],
    ),
    "series: a horizon of nothing": (
        sensors,
        ["--target", "y", "--horizon", "0"],
        ["want a horizon of 1 step or more"],
    ),
    "series: a time that is none": (
        lambda: changed(sensors(), 11, "time", "yesterday"),
        ["--target", "y", "--time", "time"],
        ['row 12, column "time": "yesterday" is not a time'],
    ),
    "series: no values": (
        lambda: sensors().assign(y=""),
        ["--target", "y"],
        ['column "y" holds no values'],
    ),
    "events: one activity": (
        lambda: events_frame().assign(activity="a"),
        [],
        ["at least two different activities, got 1"],
    ),
    "events: cases of one event": (
        lambda: once(events_frame(), "case"),
        [],
        ["second event", "--case"],
    ),
    "events: hardly any cases": (
        lambda: events_frame(4),
        [],
        ["want at least 10 cases", "--case"],
    ),
    "events: a time that is none": (
        lambda: changed(events_frame(), 3, "timestamp", ""),
        [],
        ['row 4, column "timestamp"', "is not a time"],
    ),
    "interactions: users with one event": (
        lambda: once(interactions_frame(), "user"),
        [],
        ["a user with three"],
    ),
    "interactions: items hardly ever seen": (
        interactions_frame,
        ["--minimum", "5000"],
        ["items seen at least 5000 times", "lower --minimum"],
    ),
    "labelled: one class": (
        lambda: labelled(kinds="a"),
        ["--label", "label"],
        ["two"],
    ),
    "labelled: a label that changes": (
        lambda: changed(labelled(), 3, "label", "b"),
        ["--label", "label"],
        ["label"],
    ),
    "labelled: a channel that is no number": (
        lambda: changed(labelled(), 3, "force", "oops"),
        ["--label", "label"],
        ['"oops" is not a number'],
    ),
    "file: empty": ("", [], ["the file is empty"]),
    "file: a header alone": ("time,y\n", [], ["no rows below its header"]),
    "file: a short row": (
        lambda: sensors().to_csv(index=False) + "2024-02-01\n",
        ["--target", "y"],
        ["row 201 has 1 cells, the header has 2", "cut off"],
    ),
    "file: a long row": (
        lambda: sensors().to_csv(index=False).replace(",", ",1,2,", 60),
        ["--target", "y"],
        ["cells, the header has"],
    ),
    "file: binary": (b"time,y\n\0\0\x01\x02" * 50, [], ["binary file"]),
    "file: packed": (None, ["--target", "y"], [".gz is not read; unpack it"]),
    "columns: none of this name": (
        sensors,
        ["--target", "kwh"],
        ['no column "kwh" for the target', "Columns: time, y"],
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_in_one_line_and_nothing_is_left(what, tmp_path, monkeypatch, capsys):
    data, options, said = REFUSED[what]
    monkeypatch.chdir(tmp_path)
    content = data() if callable(data) else data
    path = tmp_path / ("data.csv.gz" if what == "file: packed" else "data.csv")
    if isinstance(content, pd.DataFrame):
        content.to_csv(path, index=False)
    else:
        content = "x" if content is None else content
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    code = main(["fit", path.name, "--steps", "1", *options])
    line = capsys.readouterr().err
    assert code == 2
    assert line.startswith("stepscan: data.csv")
    assert line.count("\n") == 1
    for words in said:
        assert words in line
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


# What is repaired and said -----------------------------------------------------------------------

REPAIRED = {
    "series: offsets from UTC": (
        lambda: zoned(sensors(), ["+01:00"] * 100 + ["+00:00"] * 100).drop(index=range(100, 101)),
        {"target": "y", "horizon": 6},
        "offsets from UTC",
    ),
    "series: some times without a zone": (
        lambda: zoned(sensors(), ["Z", ""]),
        {"target": "y", "horizon": 6},
        "without a zone",
    ),
    "series: missing steps": (
        lambda: sensors().drop(index=range(50, 60)),
        {"target": "y", "horizon": 6},
        "gaps kept as missing: 10",
    ),
    "series: a constant series": (
        lambda: series_frame().assign(y=lambda f: f["y"].where(f["unique_id"] == "a", 3.0)),
        {"horizon": 6},
        "1 constant series in the training part, such as 'b'",
    ),
    "events: rows in no order": (
        lambda: events_frame().iloc[::-1],
        {},
        "cases are put in order of time",
    ),
    "events: rows that are there twice": (
        lambda: pd.concat([events_frame(), events_frame().head(5)]),
        {},
        "5 events repeat another",
    ),
    "events: rows without a case": (
        lambda: changed(events_frame(), 3, "case", ""),
        {},
        '1 rows without "case" or "activity" left out',
    ),
    "events: offsets from UTC": (
        lambda: zoned(events_frame(), ["+01:00", "+02:00"]),
        {},
        "offsets from UTC",
    ),
    "events: times without a zone": (
        lambda: zoned(events_frame(), ["Z", ""]),
        {},
        "without a zone",
    ),
    "interactions: rows that are there twice": (
        lambda: pd.concat([interactions_frame(), interactions_frame().head(5)]),
        {"minimum": 1},
        "5 repeated rows (user, item and time) left out",
    ),
    "interactions: rows without an item": (
        lambda: changed(interactions_frame(), 3, "item", ""),
        {"minimum": 1},
        "1 rows without a user or an item left out",
    ),
    "interactions: rare items": (
        lambda: changed(interactions_frame(), 3, "item", "once"),
        {"minimum": 2},
        "items seen fewer than 2 times left out",
    ),
    "file: not UTF-8": (
        lambda: sensors().assign(site="Köln").to_csv(index=False).encode("latin-1"),
        {"target": "y", "horizon": 6},
        "the file is not UTF-8: read as Latin-1",
    ),
}


@pytest.mark.parametrize("what", REPAIRED)
def test_it_is_mended_and_said(what, tmp_path):
    make, options, said = REPAIRED[what]
    content = make()
    path = tmp_path / "data.csv"
    if isinstance(content, pd.DataFrame):
        content.to_csv(path, index=False)
    else:
        path.write_bytes(content)
    lines = open_dataset(path, DataOptions(**options)).lines()
    assert [line for line in lines if said in line], lines


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (sensors, {"target": "y", "horizon": 6}),
        (events_frame, {}),
        (interactions_frame, {"minimum": 1}),
        (labelled, {"kind": "labelled", "label": "label"}),
    ],
    ids=["series", "events", "interactions", "labelled"],
)
def test_the_order_of_rows_does_not_matter(make, options):
    """Ties aside, which keep the order of the file: there are none here."""
    frame = make()
    if options == {}:
        frame = frame.drop_duplicates(["case", "timestamp"])
    one = open_dataset(frame, DataOptions(**options))
    other = open_dataset(frame.sample(frac=1, random_state=0), DataOptions(**options))
    assert one.schema == other.schema
    for name, packed in one.parts.items():
        at = torch.arange(len(packed))
        for a, b in zip(packed.inputs_at(at), other.parts[name].inputs_at(at), strict=True):
            assert (a is None and b is None) or bool((a == b).all())


# While reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data.csv", "data.parquet", "data.txt"])
def test_a_file_that_changes_while_it_is_read_is_refused(name, tmp_path, monkeypatch):
    path = tmp_path / name
    if name.endswith("txt"):
        path.write_text(prose())
    else:
        getattr(sensors(), f"to_{name.split('.')[1]}")(path, index=False)
    stamps = iter([(1, 1), (1, 2)])
    monkeypatch.setattr(files, "stamp_of", lambda path: next(stamps))
    monkeypatch.setattr("stepscan.data.open.stamp_of", lambda path: next(stamps))
    with pytest.raises(DataError, match="changed while it was read; wait until it is whole"):
        open_dataset(path, DataOptions(target="y") if not name.endswith("txt") else None)


def test_a_file_that_stays_as_it_is_is_read(tmp_path):
    sensors().to_csv(tmp_path / "data.csv", index=False)
    assert open_dataset(tmp_path / "data.csv").findings == ()


# At prediction -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    made = {}
    given = {
        "events": (events_frame(), {}),
        "interactions": (interactions_frame(), {"minimum": 1}),
        "series": (sensors(), {"target": "y", "horizon": 6, "test": 24, "valid": 24}),
    }

    def get(kind):
        if kind not in made:
            frame, options = given[kind]
            out = tmp_path_factory.mktemp("runs") / kind
            made[kind] = ss.fit(frame, options=DataOptions(**options), out=out, **TINY)
        return made[kind]

    return get


RENAMED = {
    "events": (lambda m: m.predict_table(events_frame().rename(columns={"activity": "step"})),
               'no column "activity"'),
    "interactions": (
        lambda m: m.predict_table(interactions_frame().rename(columns={"item": "film"})),
        'no column "item"',
    ),
    "series": (lambda m: m.forecast(sensors().rename(columns={"y": "kwh"})), 'no column "y"'),
}  # fmt: skip


@pytest.mark.parametrize("kind", RENAMED)
def test_columns_that_are_called_otherwise_are_refused(kind, fitted):
    ask, said = RENAMED[kind]
    with pytest.raises(DataError, match=said) as caught:
        ask(fitted(kind))
    assert "Columns: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_training_never_showed_is_named(fitted):
    with pytest.raises(DataError, match=r"activity 'JFK>LAS' was never seen in training.*JFK>LAX"):
        fitted("events").predict(["JFK>LAS"])
    with pytest.raises(DataError, match="item 'film 99' was never seen"):
        fitted("interactions").predict(["film 99"])


def test_in_a_table_it_is_read_as_new_and_said(fitted):
    frame = events_frame(3)
    frame.loc[1, "activity"] = "JFK>LAS"
    with pytest.warns(UserWarning, match="1 rows hold what training never showed"):
        found = fitted("events").predict_table(frame)
    assert len(found) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted("events").predict_table(events_frame(3))


def test_times_out_of_order_are_refused(fitted):
    model = fitted("events")
    names = ["JFK>LAX", "LAX>JFK"]
    with pytest.raises(DataError, match="event 2 is before the one before it"):
        model.predict(names, times=["2024-01-02", "2024-01-01"])


@pytest.mark.parametrize("kind", ["events", "interactions", "series"])
def test_frames_without_rows_are_refused(kind, fitted):
    frame = {"events": events_frame(), "interactions": interactions_frame(), "series": sensors()}
    ask = "forecast" if kind == "series" else "predict_table"
    with pytest.raises(DataError, match="want rows and columns, got 0 x"):
        getattr(fitted(kind), ask)(frame[kind].head(0))
