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
    tokens, reals, starts, token, gap, remaining = [], [], [], [], [], []

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
            known = case != "c029"  # it may go on when the log ends
            after = len(ids) + 1 if known else -1
            token.append(after if last else ids.get(rows[i + 1].what, 0))
            gap.append(math.nan if last else max(since(row, rows[i + 1]), schema.smallest))
            remaining.append(max(since(row, rows[-1]), schema.smallest) if known else math.nan)
    return tokens, reals, starts, token, gap, remaining


@pytest.mark.parametrize("clock", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_parts_equal_a_plain_loop_over_rows(clock, seed):
    data = frame(seed=seed, clock=clock)
    dataset = build(data)
    names = sorted(data.case.unique())  # cases begin in the order of their names
    cuts = {"train": names[:21], "valid": names[21:24], "test": names[24:]}
    for part, packed in dataset.parts.items():
        tokens, reals, starts, token, gap, remaining = naive(dataset, data, cuts[part], clock)
        every = packed.targets_at(torch.arange(len(packed)))
        assert packed.tokens[:, 0].tolist() == tokens
        assert packed.starts.tolist() == starts
        assert every["token"].tolist() == token
        torch.testing.assert_close(packed.reals, torch.tensor(reals), atol=1e-5, rtol=0)
        torch.testing.assert_close(every["gap"], torch.tensor(gap), equal_nan=True)
        torch.testing.assert_close(every["remaining"], torch.tensor(remaining), equal_nan=True)
        more = (every["token"] >= 0) & (every["token"] != dataset.schema.end)
        assert (every["gap"][more] > 0).all()
        assert every["gap"].isnan().equal(~more)


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
    assert one.inputs == ((6, 3), 6), "new, four activities and the end; new, x and y"


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


def test_cases_can_be_held_out_by_name_or_by_chance():
    data = frame()
    data["case"] = [f"c{29 - int(c[1:]):03d}" for c in data.case]  # now the last begin first
    by_time, by_name, by_chance = (build(data, split=s) for s in ("time", "name", "random"))
    count = {c: int((data.case == c).sum()) for c in data.case}
    assert len(by_name.parts["test"]) == sum(count[f"c{i:03d}"] for i in range(24, 30))
    assert len(by_time.parts["test"]) == sum(count[f"c{i:03d}"] for i in range(6))
    assert by_chance.parts["test"].lengths.tolist() != by_name.parts["test"].lengths.tolist()
    assert [len(part.begins) for part in by_chance.parts.values()] == [21, 3, 6]
    again = build(data, split="random").parts["test"]
    assert torch.equal(again.tokens, by_chance.parts["test"].tokens)


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


def test_cases_end_or_do_not():
    data = frame()
    auto, yes, no = build(data), build(data, ends="yes"), build(data, ends="no")
    last = {k: d.parts["test"].targets_at(torch.tensor([-1])) for k, d in (("a", auto), ("y", yes))}
    assert int(last["a"]["token"]) == -1
    assert int(last["y"]["token"]) == yes.schema.end == 5
    assert last["a"]["remaining"].isnan().all()
    assert float(last["y"]["remaining"]) == pytest.approx(yes.schema.smallest)
    assert no.schema.end == -1
    assert no.inputs == ((5,), 6)
    assert "remaining" not in no.parts["test"].targets_at(torch.arange(3))
    assert auto.schema.longest == data[data.case < "c021"].groupby("case").size().max()
    assert any("1 that may go on when the log ends" in line for line in auto.said)
    # All cases go on until the log ends: nobody knows how they end.
    hours = [str(START + pd.Timedelta(hours=h)) for h in range(0, 90, 9)]
    rows = [
        (f"c{i}", "ab"[(i + t) % 2], h) for i in range(12) for t, h in enumerate(hours[i % 3 :])
    ]
    on = build(pd.DataFrame(rows, columns=["case", "what", "when"]))
    assert not on.schema.ends
    assert any("12 of 12 cases may go on when the log ends" in line for line in on.said)
    # Times that are counted from the beginning of each case say nothing of when the log ends.
    rows = [(f"c{i}", "ab"[t % 2], t) for i in range(12) for t in range(3 + i % 2)]
    relative = build(pd.DataFrame(rows, columns=["case", "what", "when"]))
    assert relative.schema.ends
    with pytest.raises(ValueError, match="unknown answer to ends 'maybe'"):
        build(data, ends="maybe")


def test_the_clock_goes_on_as_it_would_have_been_read():
    schema = build(frame()).schema
    times = ["2024-03-01 22:10:05", "2024-03-03 03:40:00", "2024-03-03 03:40:00.5"]
    reals = schema.prompt(["a", "b", "a"], times).reals
    hours = torch.tensor([29 + 29 / 60 + 55 / 3600, 0.5 / 3600])
    said = schema.after(reals[:2], hours * 3600 / schema.unit)
    torch.testing.assert_close(said, reals[1:], atol=2e-5, rtol=0)
    untimed = schema.prompt(["a", "b"]).reals
    torch.testing.assert_close(schema.after(untimed[:1], torch.ones(1)), untimed[1:])


def test_repairs_are_told():
    rows = [
        (f"c{i:02}", w, f"2024-01-{i + 1:02d} 0{t}:00")
        for i in range(12)
        for t, w in enumerate("abc")
    ]
    data = pd.DataFrame(rows, columns=["case", "what", "when"])
    assert not build(data).findings
    swapped = data.copy()
    swapped.loc[[0, 1]] = data.loc[[1, 0]].to_numpy()
    assert build(swapped).findings == (
        "1 events are earlier than the row before them in their case; cases are put in order of "
        "time",
    )
    assert build(swapped).parts["train"].tokens.equal(build(data).parts["train"].tokens)
    twice = pd.concat([data, data.loc[[4, 4, 9]]], ignore_index=True)
    assert any(
        "3 events repeat another in case, activity and time" in f for f in build(twice).findings
    )
    assert len(build(twice).parts["train"]) == len(build(data).parts["train"]) + 3
    emptied = data.assign(what=data.what.mask(data.case == "c03", ""))
    assert '3 rows without "case" or "what" left out' in build(emptied).findings
    assert "1 cases have no event left, and are left out" in build(emptied).findings
    stages = data.assign(**{"lifecycle:transition": ["start", "complete"] * 18})
    assert any("is complete, start: every row is an event" in f for f in build(stages).findings)


def test_times_with_offsets_are_the_same_instants_everywhere():
    data = frame()
    moments = pd.to_datetime(data.when)
    here = [str(m.tz_localize("UTC").tz_convert("Asia/Kolkata")) for m in moments]
    there = [str(m.tz_localize("UTC").tz_convert("America/New_York")) for m in moments]
    mixed = [h if i % 2 else t for i, (h, t) in enumerate(zip(here, there, strict=True))]
    wanted = build(data).parts["test"]
    for when in (here, mixed):
        got = build(data.assign(when=when)).parts["test"]
        assert got.tokens.equal(wanted.tokens)
        assert got.reals.equal(wanted.reals)


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
    with pytest.raises(DataError, match=r"no case of the train part has a second event.*--case"):
        build(data.assign(when=START).drop_duplicates("case"), ends="no")
    schema = build(frame()).schema
    renamed = Table(frame().rename(columns={"what": "action"}), "new.csv")
    with pytest.raises(
        DataError, match=r'new.csv: no column "what" for the activity. Columns: case'
    ):
        schema.encode(renamed)
    with pytest.raises(ValueError, match=r"unknown split 'times'. Did you mean 'time'"):
        build(frame(), split="times")
    schema = build(frame()).schema
    for change in ({"unit": "1"}, {"activities": [1]}, {"more": 1}, {"kind": "text"}):
        with pytest.raises(DataError, match="schema"):
            type(schema).from_dict(schema.to_dict() | change)
    with pytest.raises(DataError, match="want a kind, got 3"):
        read_schema({"kind": 3})
    assert replace(schema, unit=2.0) != schema
