"""Static columns of series, other inputs that are laid on a grid that is there, and bad input."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from stepscan.data import DataError, DataOptions, Table, open_dataset, read_schema
from stepscan.data.grid import read_rows
from stepscan.data.infer import series_columns
from stepscan.data.joining import joined, kept, rows_of
from stepscan.data.series import series_dataset

OPTIONS = DataOptions(horizon=4, test=12, valid=12)


def frame(series=6, steps=80):
    rng = np.random.default_rng(0)
    pieces = [
        pd.DataFrame(
            {
                "unique_id": f"s{i}",
                "ds": pd.date_range("2024-01-01", periods=steps),
                "y": rng.normal(size=steps) + i,
                "price": rng.normal(size=steps),
                "region": ("north", "south", "west")[i % 3],
                "size": float(3 + i % 2),
                "title": f"the series {i}",
                "country": "here",
            }
        )
        for i in range(series)
    ]
    return pd.concat(pieces, ignore_index=True)


def build(data, **options):
    told = DataOptions(**{"horizon": 4, "test": 12, "valid": 12} | options)
    table = Table(data, "t")
    columns, findings = series_columns(table, told)
    return series_dataset(table, told, columns, name="t", findings=findings)


def test_they_are_found_where_they_tell_groups_apart():
    schema = build(frame()).schema
    assert schema.static == ("region", "size"), "a title tells every series apart, a country none"
    assert schema.covariates == ("price",)
    assert schema.static_levels == (("north", "south", "west"), ())
    assert (schema.static_center[1], schema.static_scale[1]) == (3.5, 0.5)
    assert build(frame(), static=()).schema.static == ()
    assert build(frame(), static=("title",)).schema.static_levels == (
        tuple(f"the series {i}" for i in range(6)),
    )
    assert build(frame(), covariates=("price",)).schema.static == ()
    assert build(frame(), static=("size",)).schema.covariates == ("price",)


def test_they_are_inputs_at_every_step():
    dataset = build(frame())
    schema = read_schema(json.loads(json.dumps(dataset.schema.to_dict())))
    assert schema == dataset.schema
    for part in dataset.parts.values():
        assert part.reals.shape[1] == schema.reals
        series = part.series_at(torch.arange(len(part)))
        for s in range(6):
            told = part.reals[series == s][:, -4:]
            wanted = [float(s % 3 == i) for i in range(3)] + [2.0 * (s % 2) - 1]
            assert (told == torch.tensor(wanted)).all()
    plain = build(frame(), static=(), covariates=("price",)).parts["train"].reals
    assert plain.equal(dataset.parts["train"].reals[:, :-4]), "the other inputs are as they were"


def test_new_series_and_rows_to_come():
    """Of categories never seen and of missing values: zeros; rows to come may leave them out."""
    schema = build(frame()).schema
    new = frame(1).assign(unique_id="new", region="east", size=np.nan)
    assert (schema.encode(Table(new, "t")).reals[:, -4:] == 0).all()
    ahead = frame(1)[-3:].assign(ds=pd.date_range("2024-03-21", periods=3), y=np.nan, region=None)
    both = pd.concat([frame(1), ahead], ignore_index=True)
    for data in (frame(1), both, both.assign(size=both["size"].where(both["y"].notna()))):
        assert (
            schema.encode(Table(data, "t")).reals[:, -4:] == torch.tensor([1, 0, 0, -1.0])
        ).all()
    whole = frame(2).assign(code=[1] * 80 + [2] * 80)
    known = build(whole.assign(code=whole["code"].map("k{}".format)), static=("code",)).schema
    assert known.static_levels == (("k1", "k2"),)


def test_several_targets_share_them():
    data = frame(2).assign(z=lambda d: d["y"] * 2)
    dataset = build(data, target="y,z", static=("region",))
    assert dataset.schema.names == ("s0/y", "s1/y", "s0/z", "s1/z")
    told = dataset.parts["train"].panel.static
    assert told.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("change", "options", "wrong"),
    [
        (lambda f: f, {"static": ("price",)}, r'row 2, column "price": .* one value a series'),
        (lambda f: f, {"static": ("colour",)}, 'no column "colour" for the static'),
        (lambda f: f, {"static": ("y",), "target": "y"}, '"y" is static and something else'),
        (lambda f: f[:80].drop(columns="unique_id"), {"static": ("size",)}, "wants several series"),
        (lambda f: f.assign(region=None), {"static": ("region",)}, '"region" is empty; leave it'),
    ],
)
def test_what_is_wrong_with_them_is_said(change, options, wrong):
    with pytest.raises(DataError, match=wrong):
        build(change(frame()), **options)


def test_too_many_words_are_refused():
    many = pd.DataFrame(
        {
            "unique_id": np.repeat([f"s{i}" for i in range(600)], 20),
            "ds": np.tile(pd.date_range("2024-01-01", periods=20), 600),
            "y": 1.0,
        }
    )
    with pytest.raises(DataError, match="600 different words; want 500 or fewer"):
        build(many.assign(word=many["unique_id"] + "!"), static=("word",), test=4, valid=4)


def test_rows_come_back_from_a_panel():
    dataset = build(frame())
    packed, schema = dataset.parts["test"], dataset.schema
    back = rows_of(packed.panel, packed.names, schema)
    first = read_rows(Table(frame(), "t"), schema.columns)
    assert back.names == first.names
    assert (back.stamps == first.stamps).all()
    assert (back.y == first.y).all()
    assert back.covariates == pytest.approx(first.covariates, abs=1e-5)
    assert back.static["region"] == first.static["region"]
    assert [float(x) for x in back.static["size"]] == [float(x) for x in first.static["size"]]


def test_new_rows_are_joined_in_their_places():
    schema = build(frame()).schema
    rows = read_rows(Table(frame(), "t"), schema.columns)
    half = rows.stamps <= np.sort(rows.stamps)[len(rows.y) // 2]
    until = {name: int(rows.stamps[half].max()) for name in rows.names}
    again = joined(kept(rows, half), kept(rows, ~half), until, schema, "t")
    for field in ("series", "stamps", "y", "covariates"):
        assert (getattr(again, field) == getattr(rows, field)).all()
    waiting = kept(rows, ~half)
    waiting.y[:] = np.nan
    over = joined(again, kept(rows, ~half), until, schema, "t")
    assert len(over.y) == len(rows.y), "rows that waited for a value are replaced"
    with pytest.raises(DataError, match=r't: 6 rows were read before, such as that of "2024-02-10'):
        joined(kept(rows, half), kept(rows, rows.stamps >= max(until.values())), until, schema, "t")


def test_the_grid_and_the_scales_of_a_model_are_kept_for_new_data():
    old = build(frame(4), season=7).schema
    data = frame(6, 120).assign(y=lambda d: 9 * d["y"], region="elsewhere")
    table = Table(data, "t")
    new = series_dataset(table, OPTIONS, old.columns, name="t", like=old).schema
    assert new.names == (*old.names, "s4", "s5")
    assert new.center[:4] == old.center
    assert new.spread[:4] == old.spread
    assert new.naive[:4] != old.naive
    assert new.reals == old.reals
    fewer = series_dataset(
        Table(data[data["unique_id"] > "s3"], "t"), OPTIONS, old.columns, name="t", like=old
    )
    assert fewer.schema.names == ("s4", "s5", "s0", "s1", "s2", "s3")
    assert fewer.schema.center[2:] == old.center
    every = data[data["ds"].dt.dayofyear % 2 == 0]
    with pytest.raises(DataError, match="2-day steps, the model learned steps of days"):
        series_dataset(Table(every, "t"), OPTIONS, old.columns, name="t", like=old)


def write(data, tmp_path):
    data.to_csv(tmp_path / "s.csv", index=False)
    return tmp_path / "s.csv"


BAD = {
    "the same time twice": (
        lambda f: pd.concat([f, f.iloc[[5]]]),
        r's.csv: row 161, column "ds": this time of series "s0" was there before \(1 such rows\)',
    ),
    "a word as a target": (
        lambda f: f.assign(y=f["y"].astype(str).where(f.index != 41, "broken")),
        r's.csv: row 42, column "y": "broken" is not a number. Drop or fill it, or pass --missing',
    ),
    "an infinite target": (
        lambda f: f.assign(y=f["y"].where(f.index != 7, np.inf)),
        r's.csv: row 8, column "y": the value is infinite',
    ),
    "a time that is none": (
        lambda f: f.assign(ds=f["ds"].astype(str).where(f.index != 3, "soon")),
        r's.csv: row 4, column "ds": "soon" is not a time',
    ),
    "a series without a name": (
        lambda f: f.assign(unique_id=f["unique_id"].where(f.index != 9, "")),
        r's.csv: row 10, column "unique_id": no name of a series',
    ),
}


@pytest.mark.plain
@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_named(case, tmp_path):
    change, wrong = BAD[case]
    with pytest.raises(DataError, match=wrong):
        open_dataset(write(change(frame(2)), tmp_path), OPTIONS)


@pytest.mark.plain
def test_a_horizon_longer_than_the_data_says_how_long_it_may_be(tmp_path):
    path = write(frame(2), tmp_path)
    with pytest.raises(DataError, match=r"has 80 days; a horizon of 60 needs .* or --horizon 20"):
        open_dataset(path, DataOptions(horizon=60))
    short = write(frame(1)[:1].drop(columns=["region", "title", "country"]), tmp_path)
    with pytest.raises(DataError, match=r"longest series has 1 \w+; .* Give more data$"):
        open_dataset(short, DataOptions(horizon=4, target="y"))


def test_repairs_are_reported(tmp_path):
    shuffled = frame(2).sample(frac=1, random_state=0)
    dataset = open_dataset(write(shuffled, tmp_path), OPTIONS)
    assert any("out of order of time" in finding for finding in dataset.findings)
    sorted_ = open_dataset(write(frame(2), tmp_path), OPTIONS)
    assert not any("out of order" in finding for finding in sorted_.findings)
    assert dataset.parts["test"].reals.equal(sorted_.parts["test"].reals)


def test_a_series_of_one_value_takes_part_where_it_can():
    data = frame(3)
    data = data[(data["unique_id"] != "s2") | (data["ds"] == "2024-03-01")]
    dataset = build(data.reset_index(drop=True))
    assert dataset.schema.names == ("s0", "s1", "s2")
    for part in dataset.parts.values():
        assert part.reals.isfinite().all()
    again = dataset.schema.encode(Table(data.reset_index(drop=True), "t"))
    assert again.base_at(again.ends())[2].tolist() == [data["y"].iloc[-1]] * 4


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
@pytest.mark.parametrize("as_text", [True, False])
def test_days_of_a_zone_with_summer_time_are_days(zone, as_text):
    """As moments of UTC they are 23 to 25 hours apart, and would lie on no grid."""
    days = pd.date_range("2024-01-01", periods=300, tz=zone)
    data = pd.DataFrame({"ds": days.astype(str) if as_text else days, "y": np.sin(np.arange(300))})
    dataset = open_dataset(data, OPTIONS)
    assert " 300 days " in dataset.said[0]
    assert any("midnight in a zone" in finding for finding in dataset.findings)
    stamps = dataset.parts["train"].stamps_at(torch.tensor([0, 1]))
    assert stamps.numpy().astype("datetime64[ns]").astype(str).tolist() == [
        "2024-01-01T00:00:00.000000000",
        "2024-01-02T00:00:00.000000000",
    ]
    hours = pd.date_range("2024-03-20", periods=400, freq="h", tz=zone)
    data = pd.DataFrame({"ds": hours, "y": np.sin(np.arange(400))})
    assert " 400 hours " in open_dataset(data, OPTIONS).said[0], "moments stay moments"
