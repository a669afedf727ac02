import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from stepscan.data import DataError, DataOptions, Table, draw, gather, read_schema
from stepscan.data.grid import Columns
from stepscan.data.series import series_dataset

DAYS, VALID, TEST = 160, 20, 25
SEASON, HORIZON = 7, 10  # the horizon is longer than the season: two seasons back are needed
COLUMNS = Columns("name", "day", ("y",), ("warm", "feast"), ("feast",))


def frame(seed=0, days=DAYS, series=3, calendar=True):
    """Daily series that begin late, with rows left out, values missing, in no order."""
    rng = np.random.default_rng(seed)
    rows = []
    for s in range(series):
        for day in range(s * 20, days):
            if rng.random() < 0.05:
                continue
            y = 5 * s + math.sin(day) + (day % SEASON) + rng.normal() / 5
            when = str(np.datetime64("2023-01-01") + day) if calendar else day
            missing = rng.random() < 0.05
            rows.append(
                (f"s{s}", when, np.nan if missing else y, rng.normal(), float(day % 5 == 0))
            )
    rows = pd.DataFrame(rows, columns=["name", "day", "y", "warm", "feast"])
    return rows.sample(frac=1, random_state=seed).reset_index(drop=True)


def build(data, columns=COLUMNS, **options):
    told = DataOptions(**{"horizon": HORIZON, "test": TEST, "valid": VALID} | options)
    return series_dataset(Table(data, "t"), told, columns, name="t")


def plain(data, dataset, series, calendar):
    """{day: value} of one series, and the first and last day that has one."""
    zero = np.datetime64("2023-01-01")
    own = data[(data.name == dataset.schema.names[series]) & data.y.notna()]
    day = [
        int((np.datetime64(d) - zero) / np.timedelta64(1, "D")) if calendar else int(d)
        for d in own.day
    ]
    values = dict(zip(day, own.y, strict=True))
    return values, min(values), max(values)


def base_of(values, first, t, h, season=SEASON):
    """The seasonal naive forecast of t + h made at t, straight from its definition."""
    place = t + h
    while place > t:
        place -= season
    for candidate in (place, place - season):
        if candidate in values:
            return values[candidate]
    seen = [d for d in values if first <= d <= t]
    return values[max(seen)]


@pytest.mark.parametrize("calendar", [True, False])
@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_steps_equal_a_plain_loop(part, calendar):
    data = frame(calendar=calendar)
    dataset = build(data, season=SEASON)
    schema, packed = dataset.schema, dataset.parts[part]
    every = torch.arange(len(packed))
    reals, future = packed.reals, packed.targets_at(every)["future"]
    series = packed.series_at(every)
    facts = [plain(data, dataset, s, calendar) for s in range(3)]
    over = max(last for *_, last in facts)
    feast = {(r.name, r.day): r.feast for r in data.itertuples(index=False)}
    for s, (values, first, last) in enumerate(facts):
        end = 1 + (over if calendar else last)  # a calendar is cut at one date for all series
        cuts = (first + 1, end - TEST - VALID, end - TEST, last + 1)
        i = ("train", "valid", "test").index(part)
        low, high = cuts[i], cuts[i + 1]
        own = every[series == s]
        # the first step read, and the last: nothing past the part
        days = list(range(high - len(own), high))
        assert packed.starts[own].tolist() == [True] + [False] * (len(own) - 1)
        for at, t in zip(own.tolist(), days, strict=True):
            wanted_base = [base_of(values, first, t, h) for h in range(1, HORIZON + 1)]
            torch.testing.assert_close(packed.base_at(torch.tensor(at)).tolist(), wanted_base)
            for h in range(1, HORIZON + 1):
                asked = low <= t + h < high and t >= low - 1 and t + h in values
                wanted = (values.get(t + h, 0) - wanted_base[h - 1]) / schema.spread[s]
                got = future[at, h - 1].item()
                assert math.isnan(got) if not asked else got == pytest.approx(wanted, abs=1e-5)
            value = (values[t] - schema.center[s]) / schema.scale[s] if t in values else 0.0
            both = t in values and t - SEASON in values
            change = (values[t] - values[t - SEASON]) / schema.spread[s] if both else 0.0
            head = [value, float(t not in values), change]
            assert reals[at, :3].tolist() == pytest.approx(head, abs=1e-4)
            shape = [(b - schema.center[s]) / schema.scale[s] for b in wanted_base]
            assert reals[at, 3 : 3 + HORIZON].tolist() == pytest.approx(shape, abs=1e-4)
            assert 2 * SEASON in schema.lags
            for n, lag in enumerate(schema.lags, start=1):
                forecast = [base_of(values, first, t, h, lag) for h in range(1, HORIZON + 1)]
                pairs = zip(forecast, wanted_base, strict=True)
                shape = [max(-10, min(10, (f - b) / schema.spread[s])) for f, b in pairs]
                place = 3 + n * HORIZON
                assert reals[at, place : place + HORIZON].tolist() == pytest.approx(shape, abs=1e-4)
            known = reals[at, -HORIZON:] * schema.covariate_scale[1] + schema.covariate_center[1]
            for h in range(1, HORIZON + 1):
                when = str(np.datetime64("2023-01-01") + t + h) if calendar else t + h
                if (f"s{s}", when) in feast:
                    assert known[h - 1].item() == pytest.approx(feast[f"s{s}", when], abs=1e-5)
        if calendar:
            stamps = packed.stamps_at(own) // (86_400 * 10**9)
            assert (stamps.diff() == 1).all()


@pytest.mark.parametrize("season", [0, SEASON, None])
def test_scales_and_training_inputs_come_from_the_training_part(season):
    data = frame()
    one = build(data, season=season)
    changed = data.copy()
    held = data.day >= str(np.datetime64("2023-01-01") + DAYS - TEST - VALID)
    changed.loc[held, ["y", "warm"]] *= 9
    two = build(changed, season=season)
    a, b = one.schema.to_dict(), two.schema.to_dict()
    assert a.pop("naive") != b.pop("naive"), "the divisor of MASE reads up to the test part"
    assert a == b
    batches = [draw(d.parts["train"], 3, rows=8, length=40, seed=0) for d in (one, two)]
    assert batches[0].reals.equal(batches[1].reals)
    torch.testing.assert_close(
        batches[0].targets, batches[1].targets, equal_nan=True, rtol=0, atol=0
    )
    assert not one.parts["test"].reals.equal(two.parts["test"].reals)
    last = data.day >= str(np.datetime64("2023-01-01") + DAYS - TEST)
    changed = data.assign(y=data.y.where(~last, 1e3))
    assert build(changed, season=season).schema == one.schema


def test_scales_equal_a_plain_computation():
    data = frame(calendar=False)
    dataset = build(data, season=SEASON)
    schema = dataset.schema

    def robust(sample):
        low, high = np.quantile(sample, (0.25, 0.75))
        return (high - low) / 1.349

    for s in range(3):
        values, _, last = plain(data, dataset, s, calendar=False)
        train = {d: y for d, y in values.items() if d < last + 1 - TEST - VALID}
        before = {d: y for d, y in values.items() if d < last + 1 - TEST}
        change, history = (
            [y - known[d - SEASON] for d, y in known.items() if d - SEASON in known]
            for known in (train, before)
        )
        assert schema.center[s] == pytest.approx(np.median(list(train.values())))
        assert schema.scale[s] == pytest.approx(robust(list(train.values())))
        assert schema.spread[s] == pytest.approx(robust(change))
        assert schema.naive[s] == pytest.approx(np.abs(history).mean())


@pytest.mark.parametrize("years", [1, 3])
def test_the_season_and_the_year_must_have_been_seen(years):
    """Weeks repeat in the training part; in the held-out part only days do, and louder."""
    hours = np.arange(years * 24 * 365)
    rng = np.random.default_rng(0)
    y = rng.normal(size=168)[hours % 168] + rng.normal(size=len(hours)) / 100
    held = hours >= len(hours) - 2 * 28 * 24
    y[held] = 1e3 * rng.normal(size=24)[hours[held] % 24]
    when = pd.Timestamp("2021-01-01") + pd.to_timedelta(hours, "h")
    data = pd.DataFrame({"when": when.astype(str), "y": y})
    columns = Columns(None, "when", ("y",), (), ())
    schema = build(data, columns, horizon=None, test=None, valid=None).schema
    assert schema.season == 168
    assert len(schema.periods) == (2 if years == 1 else 3), "day, week, and the year if seen twice"


def test_inputs_know_nothing_that_comes_later():
    """But the covariates said to be known ahead."""
    data = frame(series=1)
    dataset = build(data)
    schema, first = dataset.schema, plain(data, dataset, 0, True)[1]
    day = str(np.datetime64("2023-01-01") + first + 90)
    later = data.assign(
        y=data.y.where(data.day < day, -99), warm=data.warm.where(data.day < day, -99)
    )
    one, two = (schema.encode(Table(d, "t")).reals for d in (data, later))
    same = (one == two).all(1)
    assert same[:90].all()
    assert not same[91:].any()


def test_held_out_values_are_covered_once_by_the_origins():
    dataset = build(frame())
    for part, size in (("valid", VALID), ("test", TEST)):
        packed = dataset.parts[part]
        actual = packed.actual_at(packed.origins())
        every = packed.actual_at(torch.arange(len(packed)))[:, 0]
        assert (~actual.isnan()).sum() == (~every.isnan()).sum()
        assert 0.8 * 3 * size < (~actual.isnan()).sum() <= 3 * size
        assert actual[~actual.isnan()].equal(every[~every.isnan()])


def test_an_answer_of_zero_is_the_seasonal_naive_forecast():
    dataset = build(frame(), season=SEASON)
    packed = dataset.parts["test"]
    at = packed.origins()
    base, scale = packed.base_at(at), packed.scale_at(at)
    zero = torch.zeros(*base.shape, 3, dtype=torch.float64)
    torch.testing.assert_close(dataset.schema.decode(zero, base, scale)[..., 1], base)
    future = packed.targets_at(at)["future"].double()
    decoded = dataset.schema.decode(future[..., None], base, scale)[..., 0]
    torch.testing.assert_close(decoded, packed.actual_at(at), equal_nan=True, atol=1e-5, rtol=0)


def test_new_data_is_encoded_like_the_old_and_unseen_series_by_their_history():
    data = frame()
    dataset = build(data)
    schema = read_schema(json.loads(json.dumps(dataset.schema.to_dict())))
    assert schema == dataset.schema
    again = schema.encode(Table(data, "t"))
    train = dataset.parts["train"]
    for s in range(3):
        own = [p.reals[p.series_at(torch.arange(len(p))) == s] for p in (train, again)]
        inside = len(own[0]) - HORIZON  # the last ones see ahead past the training part
        assert own[0][:inside].equal(own[1][:inside])
    batch = gather(again, torch.arange(len(again))[None])
    assert batch.targets["future"].isnan().all()
    new = schema.encode(
        Table(data[data.name == "s1"].assign(name="new", y=lambda d: d.y * 100), "t")
    )
    assert new.names == ("new",)
    assert new.reals[:, 0].abs().max() < 10
    assert (new.reals[:, 1] == 0)[new.ends()].all(), "a series ends with its last value"


@pytest.mark.parametrize("known", [True, False])
def test_a_series_is_the_same_alone_and_among_others(known):
    data = frame()
    schema = build(data).schema
    if not known:
        data = data.assign(name="new " + data.name)
    together = schema.encode(Table(data, "t"))
    series = together.series_at(torch.arange(len(together)))
    for s, name in enumerate(together.names):
        alone = schema.encode(Table(data[data.name == name].reset_index(drop=True), "t"))
        assert alone.reals.equal(together.reals[series == s])
        at = torch.arange(len(alone))
        assert alone.scale_at(at).equal(together.scale_at(at + together.begins[s]))


def test_rows_without_values_tell_what_is_known_ahead():
    data = frame(series=1)
    schema = build(data).schema
    days = [str(np.datetime64("2023-01-01") + DAYS + h) for h in range(HORIZON)]
    more = pd.DataFrame({"name": "s0", "day": days, "y": np.nan, "warm": 0.0, "feast": 1.0})
    one = schema.encode(Table(data, "t"))
    two = schema.encode(Table(pd.concat([data, more], ignore_index=True), "t"))
    assert len(one) == len(two)
    known = two.reals[two.ends(), -HORIZON:] * schema.covariate_scale[1]
    missing = int(DAYS - 1 - max(plain(data, build(data), 0, True)[0]))
    torch.testing.assert_close(
        (known + schema.covariate_center[1])[0, missing:],
        torch.ones(HORIZON - missing),
    )


@pytest.mark.parametrize(
    ("freq", "count", "said", "season", "horizon"),
    [
        ("30min", 3000, "30-minute steps", 336, 48),
        ("h", 2000, "hours", 168, 48),
        ("10min", 6000, "10-minute steps", 1008, 144),
        ("D", 400, "days", 7, 14),
        ("W", 300, "weeks", 52, 13),
        ("ME", 200, "months", 12, 12),
        ("MS", 200, "months", 12, 12),
        ("QE", 120, "quarters", 4, 8),
        ("YE", 60, "years", 0, 4),
        ("h", 200, "hours", 24, 48),  # too short to see a week twice
    ],
)
def test_grids_seasons_and_horizons(freq, count, said, season, horizon):
    stamps = pd.date_range("2001-01-31", periods=count, freq=freq)
    period = season or 5
    rng = np.random.default_rng(0)
    y = rng.normal(size=period)[np.arange(count) % period] + rng.normal(size=count) / 50
    data = pd.DataFrame({"when": stamps.astype(str), "y": y}).drop(index=[50])
    dataset = build(
        data, Columns(None, "when", ("y",), (), ()), horizon=None, test=None, valid=None
    )
    schema = dataset.schema
    assert (schema.season, schema.horizon) == (season, horizon)
    assert f" x {count:,} {said}   " in dataset.said[0]
    assert dataset.said[0].endswith("gaps kept as missing: 1")
    assert schema.reals == dataset.parts["train"].reals.shape[1]
    train = dataset.parts["train"]
    ahead = schema.times_ahead(int(train.stamps_at(torch.tensor(0))))
    fine = {"30min": 16, "h": 16, "10min": 16, "D": 10, "W": 10}.get(freq, 7)
    assert ahead[0][:fine] == str(stamps[1])[:fine]
    assert len(ahead) == horizon


def test_irregular_times_are_steps_in_order():
    rng = np.random.default_rng(0)
    when = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.exponential(size=200).cumsum(), "h")
    data = pd.DataFrame({"when": when.astype(str), "y": rng.normal(size=200)})
    dataset = build(data, Columns(None, "when", ("y",), (), ()))
    assert any("irregular" in f for f in dataset.findings)
    assert dataset.parts["train"].value_at(torch.arange(130)).tolist() == data.y[:130].tolist()
    assert dataset.schema.times_ahead(0)[:2] == ["+1", "+2"]


@pytest.mark.parametrize("value", [0.0, 3.5])
def test_constant_and_mostly_missing_series_stay_finite(value):
    data = frame()
    data.loc[data.name == "s1", "y"] = value
    data.loc[(data.name == "s2") & (data.day < "2023-05-30"), "y"] = np.nan
    dataset = build(data)
    for part in dataset.parts.values():
        assert part.reals.isfinite().all()
        future = part.targets_at(torch.arange(len(part)))["future"]
        assert not future.isinf().any()
    assert any("1 constant series" in f for f in dataset.findings)
    assert any("1 series begin after the training part" in f for f in dataset.findings)


@pytest.mark.plain
def test_errors_say_what_to_fix():
    data = frame()
    for value, said in (("n/a", '"n/a" is not a number.*--missing n/a'), ("inf", "is infinite")):
        bad = data.astype({"y": str})
        bad.loc[41, "y"] = value
        with pytest.raises(DataError, match=rf't: row 42, column "y": .*{said}'):
            build(bad)
    with pytest.raises(
        DataError, match=r"longest series has \d+ days.*needs at least 400.*--horizon"
    ):
        build(data, horizon=100)
    with pytest.raises(DataError, match="leaves too little to learn"):
        build(data, test=125)
    double = pd.concat([data, data.iloc[[7]]], ignore_index=True)
    with pytest.raises(DataError, match=r'row \d+, column "day": this time of series "s\d" was'):
        build(double)
    with pytest.raises(DataError, match="holds no values"):
        build(data.assign(y=np.nan))
    nameless = data.assign(name=data.name.where(data.index != 5, None))
    with pytest.raises(DataError, match='row 6, column "name": no name'):
        build(nameless)
    with pytest.raises(DataError, match='row 1, column "day": "soon" is not a time'):
        build(data.assign(day=data.day.where(data.index != 0, "soon")))
