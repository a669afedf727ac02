import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from stepscan.data import DataError, DataOptions, Table, read_schema
from stepscan.data.events import event_dataset

ROLES = {"case": "case", "activity": "what", "time": "when"}
START = pd.Timestamp("2024-03-01 06:30")


def frame(cases=30, seed=0, clock=True):
    """Rows in a random order; case i begins i days after the start; some ties, some missing."""
    rng = np.random.default_rng(seed)
    rows = []
    for case in range(cases):
        hours = 24 * case + rng.integers(0, 4, rng.integers(1, 9)).cumsum()
        for hour in hours:
            when = str(START + pd.Timedelta(hours=int(hour))) if clock else str(hour)
            rows.append(
                (f"c{case:03d}", str(rng.choice(list("abcd"))), when, str(rng.choice(["x", "y"])))
            )
    rows = pd.DataFrame(rows, columns=["case", "what", "when", "who"])
    return rows.sample(frac=1, random_state=int(seed))


def build(data, **options):
    told = DataOptions(**options)
    return event_dataset(Table(data.reset_index(drop=True), "t"), told, ROLES, name="t")


def naive(dataset, data, part_cases, clock):
    """What the parts must hold, row by row, in plain Python."""
    schema = dataset.schema
    ids = {a: i for i, a in enumerate(schema.activities, 1)}
    tokens, reals, starts, token, gap = [], [], [], [], []

    def moment(row):
        return pd.Timestamp(row.when) if clock else float(row.when)

    def since(a, b):
        delta = moment(b) - moment(a)
        return (delta.total_seconds() if clock else delta) / schema.unit

    for case in part_cases:
        rows = [r for r in data.itertuples() if r.case == case]
        rows.sort(key=moment)
        for i, row in enumerate(rows):
            tokens.append(ids.get(row.what, 0))
            before = since(rows[i - 1], row) if i else 0.0
            circles = [0.0] * 4
            if clock:
                when = moment(row)
                day = (when - when.normalize()).total_seconds() / 86_400
                week = (when.day_of_week + day) / 7
                circles = [f(2 * math.pi * p) for p in (day, week) for f in (math.sin, math.cos)]
            reals.append([math.log1p(before), *circles, float(i == 0)])
            starts.append(i == 0)
            last = i == len(rows) - 1
            token.append(-1 if last else ids.get(rows[i + 1].what, 0))
            gap.append(math.nan if last else max(since(row, rows[i + 1]), schema.smallest))
    return tokens, reals, starts, token, gap


@pytest.mark.parametrize("clock", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_parts_equal_a_plain_loop_over_rows(clock, seed):
    data = frame(seed=seed, clock=clock)
    dataset = build(data)
    names = sorted(data.case.unique())  # cases begin in the order of their names
    cuts = {"train": names[:21], "valid": names[21:24], "test": names[24:]}
    for part, packed in dataset.parts.items():
        tokens, reals, starts, token, gap = naive(dataset, data, cuts[part], clock)
        every = packed.targets_at(torch.arange(len(packed)))
        assert packed.tokens[:, 0].tolist() == tokens
        assert packed.starts.tolist() == starts
        assert every["token"].tolist() == token
        torch.testing.assert_close(packed.reals, torch.tensor(reals), atol=1e-5, rtol=0)
        torch.testing.assert_close(every["gap"], torch.tensor(gap), equal_nan=True)
        assert (every["gap"][every["token"] >= 0] > 0).all()
        assert every["gap"].isnan().equal(every["token"] < 0)


def test_held_out_cases_change_nothing_learned():
    data = frame()
    held = data.case >= "c021"
    changed = data.assign(what=data.what.where(~held, "new"), who=data.who.where(~held, "z"))
    one, two = build(data, attributes=("who",)), build(changed, attributes=("who",))
    assert one.schema == two.schema
    assert one.parts["train"].tokens.equal(two.parts["train"].tokens)
    assert one.parts["train"].reals.equal(two.parts["train"].reals)
    assert not two.parts["test"].tokens[:, 0].any(), "never seen in training: id 0"
    assert any("of an activity the training part never shows" in f for f in two.findings)
    assert one.inputs == ((5, 3), 6)


def test_ties_keep_the_order_of_the_file_and_are_said():
    rows = [(f"c{i}", w, f"2024-01-{i + 1:02d}") for i in range(12) for w in "dbca"]
    dataset = build(pd.DataFrame(rows, columns=["case", "what", "when"]))
    names = dict(enumerate(dataset.schema.activities, 1))
    order = [names[i] for i in dataset.parts["test"].tokens[:, 0].tolist()]
    assert "".join(order) == "dbca" * 2
    assert any("36 events have the time of the one before" in f for f in dataset.findings)


def test_rows_without_a_case_are_left_out_and_said():
    data = frame()
    data.iloc[:3, 0] = [None, "", "NaN"]
    dataset = build(data)
    assert '3 rows without "case" or "what" left out' in dataset.findings
    assert sum(map(len, dataset.parts.values())) == len(data) - 3


def test_cases_can_be_held_out_by_name():
    data = frame()
    data["case"] = [f"c{29 - int(c[1:]):03d}" for c in data.case]  # now the last begin first
    by_time, by_name = build(data), build(data, split="name")
    count = {c: int((data.case == c).sum()) for c in data.case}
    assert len(by_name.parts["test"]) == sum(count[f"c{i:03d}"] for i in range(24, 30))
    assert len(by_time.parts["test"]) == sum(count[f"c{i:03d}"] for i in range(6))


def test_new_cases_are_encoded_like_the_old():
    data = frame()
    dataset = build(data, attributes=("who",))
    schema = read_schema(json.loads(json.dumps(dataset.schema.to_dict())))
    assert schema == dataset.schema
    held = data[data.case >= "c024"]
    packed, names = schema.encode(Table(held.reset_index(drop=True), "new"))
    assert names == [f"c{i:03d}" for i in range(24, 30)]
    assert packed.tokens.equal(dataset.parts["test"].tokens)
    assert packed.reals.equal(dataset.parts["test"].reals)


def test_a_history_without_times_is_spaced_by_the_median_gap():
    schema = build(frame()).schema
    packed = schema.prompt(["a", "never seen", "b"])
    assert packed.tokens[:, 0].tolist()[1] == 0
    torch.testing.assert_close(packed.reals[:, 0], torch.tensor([0, math.log(2), math.log(2)]))
    assert not packed.reals[:, 1:5].any()
    timed = schema.prompt(["a", "b"], ["2024-01-01 00:00", "2024-01-01 06:00"])
    torch.testing.assert_close(timed.reals[1, 1:3], torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)


@pytest.mark.plain
def test_errors_say_what_to_fix():
    with pytest.raises(DataError, match=r"at least 10 cases.*got 3.*--case"):
        build(frame(cases=3))
    data = frame()
    data.iloc[4, 2] = "soon"
    with pytest.raises(DataError, match=r't: row 5, column "when": "soon" is not a time'):
        build(data)
    with pytest.raises(DataError, match="at least two different activities, got 1"):
        build(frame().assign(what="a"))
    with pytest.raises(DataError, match=r"valid \+ test below 1, got 0.6 \+ 0.6"):
        build(frame(), valid=0.6, test=0.6)
    with pytest.raises(ValueError, match=r"unknown split 'times'. Did you mean 'time'"):
        build(frame(), split="times")
    schema = build(frame()).schema
    for change in ({"unit": "1"}, {"activities": [1]}, {"more": 1}, {"kind": "text"}):
        with pytest.raises(DataError, match="schema"):
            type(schema).from_dict(schema.to_dict() | change)
    with pytest.raises(DataError, match="want a kind, got 3"):
        read_schema({"kind": 3})
    assert replace(schema, unit=2.0) != schema
