"""Labelled sequences: what is read, how it is split, what is asked, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_sequences import letters_frame, levels, sensors_frame, waves

from stepscan.data.base import DataError, DataOptions
from stepscan.data.labelled_dataset import frames_needed, labelled_dataset
from stepscan.data.open import open_dataset, read_schema
from stepscan.data.sequences import from_arrays, from_ts, joined, long_frame
from stepscan.data.tables import Table


def made(frame, tmp_path, name="sensors.csv", **options):
    frame.to_csv(tmp_path / name, index=False)
    return open_dataset(tmp_path / name, DataOptions(**options))


def from_lists(arrays, labels, **options):
    return labelled_dataset(from_arrays(arrays, labels), DataOptions(**options), name="lists")


def whole(packed):
    """(steps [T C], targets at each step) of every sequence."""
    at = torch.arange(len(packed))
    tokens, reals = packed.inputs_at(at)
    targets = packed.targets_at(at)
    for begin, length in zip(packed.begins.tolist(), packed.lengths.tolist(), strict=True):
        piece = slice(begin, begin + length)
        inputs = reals[piece] if tokens is None else tokens[piece]
        yield inputs, {k: v[piece] for k, v in targets.items()}


# Kinds and columns ------------------------------------------------------------------------------


def test_a_table_with_an_id_and_a_constant_label_is_told(tmp_path):
    dataset = made(sensors_frame(), tmp_path)
    schema = dataset.schema
    assert dataset.kind == "labelled"
    assert (schema.id, schema.time, schema.label) == ("recording", "t", "label")
    assert (schema.channels, schema.words) == (("x", "noise"), ())
    assert schema.classes == ("fast", "mid", "slow")
    assert 'the class "label" (3)' in dataset.said[1]


def test_a_label_that_changes_is_a_series_unless_told(tmp_path):
    frame = sensors_frame()
    frame.loc[frame["t"] > 10, "label"] = "other"
    frame["t"] = np.arange(len(frame))
    frame["day"] = pd.date_range("2020-01-01", periods=len(frame), freq="D").astype(str)
    frame["label"] = frame["t"] % 7
    frame["recording"] = "one"
    assert made(frame, tmp_path).kind == "series"


def test_any_column_can_be_the_label(tmp_path):
    frame = sensors_frame().rename(columns={"label": "gesture", "recording": "file name"})
    dataset = made(frame, tmp_path, label="gesture", id="file name", covariates=("x",))
    assert dataset.kind == "labelled"
    assert dataset.schema.channels == ("x",)


def test_every_step_is_scaled_by_the_training_part_and_asked_at_the_end(tmp_path):
    frame = sensors_frame()
    dataset = made(frame, tmp_path)
    schema = read_schema(json.loads(json.dumps(dataset.schema.to_dict())))
    assert schema == dataset.schema
    columns = frame[["x", "noise"]].to_numpy()
    by_id = {k: columns[rows] for k, rows in frame.groupby("recording").indices.items()}
    found, train = set(), []
    for part, packed in dataset.parts.items():
        for reals, targets in whole(packed):
            values = reals.double().numpy() * schema.scale + schema.center
            (name,) = [
                k
                for k, x in by_id.items()
                if x.shape == values.shape and np.allclose(x, values, atol=1e-5)
            ]
            found.add(name)
            label = targets["label"]
            assert (label[:-1] == -1).all()
            wanted = frame.loc[frame["recording"] == name, "label"].iloc[0]
            assert schema.classes[int(label[-1])] == wanted
            if part == "train":
                train.append(values)
    assert len(found) == 60
    stacked = np.concatenate(train)
    assert schema.center == pytest.approx(stacked.mean(0), abs=1e-6)
    assert schema.scale == pytest.approx(stacked.std(0), rel=1e-5)


def test_a_class_is_held_out_as_often_as_it_occurs(tmp_path):
    arrays, labels = waves(90)
    labels = ["rare" if i < 6 else x for i, x in enumerate(labels)]
    dataset = from_lists(arrays, labels)
    for part, share in (("train", 0.65), ("valid", 0.15), ("test", 0.2)):
        packed = dataset.parts[part]
        label = packed.targets_at(packed.begins + packed.lengths - 1)["label"]
        rare = dataset.schema.classes.index("rare")
        assert len(label) == pytest.approx(90 * share, abs=3)
        assert 1 <= int((label == rare).sum()) <= 4


def test_a_group_is_never_split(tmp_path):
    frame = sensors_frame()
    frame["person"] = frame["recording"].str[1:].astype(int) // 6
    dataset = made(frame, tmp_path, group="person")
    assert "person" not in dataset.schema.channels
    people = frame.groupby("recording")["person"].first()
    values = {k: x["x"].to_numpy() for k, x in frame.groupby("recording")}
    seen = []
    for packed in dataset.parts.values():
        own = set()
        for reals, _ in whole(packed):
            x = reals[:, 0].double().numpy() * dataset.schema.scale[0] + dataset.schema.center[0]
            own |= {
                people[k]
                for k, v in values.items()
                if len(v) == len(x) and np.allclose(v, x, atol=1e-5)
            }
        seen.append(own)
    assert all(seen)
    assert seen[0].isdisjoint(seen[1] | seen[2])
    assert seen[1].isdisjoint(seen[2])


def test_a_split_that_the_data_bring_is_kept(tmp_path):
    frame = sensors_frame()
    held_out = frame["recording"] >= "r050"
    frame["split"] = np.where(held_out, "test", "train")
    dataset = made(frame, tmp_path)
    assert len(dataset.parts["test"].begins) == 10
    assert len(dataset.parts["train"].begins) + len(dataset.parts["valid"].begins) == 50
    with pytest.raises(DataError, match="leave --test out"):
        made(frame, tmp_path, test=0.3)
    frame["split"] = np.where(held_out, "left", "right")
    assert len(made(frame, tmp_path).parts["test"].begins) == 12


def test_letters_are_categories(tmp_path):
    dataset = made(letters_frame(), tmp_path)
    schema = dataset.schema
    assert (schema.words, schema.channels, schema.tokens) == (("base",), (), (7,))
    steps = letters_frame()
    new, names = schema.encode(Table(steps.replace({"base": {"f": "never"}}), "new"))
    wanted = [0 if x == "f" else schema.values[0].index(x) + 1 for x in steps["base"]]
    assert new.tokens[:, 0].tolist() == wanted
    assert names[0] == "s000"


def test_numbers_are_asked_in_standard_units():
    arrays, numbers = levels()
    dataset = from_lists(arrays, numbers)
    schema = dataset.schema
    assert schema.answer == "number"
    found = [
        float(t["value"][-1, 0]) * schema.spread + schema.middle
        for packed in dataset.parts.values()
        for _, t in whole(packed)
    ]
    assert sorted(found) == pytest.approx(sorted(numbers), abs=1e-5)
    assert from_lists(arrays, [round(x) for x in numbers]).schema.answer == "class"
    assert (
        from_lists(arrays, [round(x) for x in numbers], answer="number").schema.answer == "number"
    )


def test_asked_after_every_step_if_wished():
    dataset = from_lists(*waves(), asked="every")
    for _, targets in whole(dataset.parts["valid"]):
        assert (targets["label"] == targets["label"][-1]).all()
        assert targets["label"][-1] >= 0


def test_missing_values_are_flagged_and_not_made_up(tmp_path):
    frame = sensors_frame()
    frame.loc[frame["t"] == 3, "x"] = np.nan
    dataset = made(frame, tmp_path)
    assert dataset.schema.flagged == ("x",)
    assert dataset.schema.reals == 3
    for reals, _ in whole(dataset.parts["test"]):
        assert reals[3].tolist()[::2] == [0.0, 1.0]
        assert reals[4, 2] == 0


def test_rows_of_a_sequence_may_come_in_any_order(tmp_path):
    frame = sensors_frame()
    there = made(frame, tmp_path)
    mixed = made(frame.sample(frac=1, random_state=1), tmp_path, "mixed.csv")
    assert mixed.parts["train"].reals.equal(there.parts["train"].reals)


def test_lists_tables_and_long_frames_say_the_same(tmp_path):
    arrays, labels = waves()
    from_list = from_lists(arrays, labels)
    from_frame = made(long_frame(arrays, labels), tmp_path)
    assert from_frame.kind == "labelled"
    assert from_frame.parts["train"].reals.allclose(from_list.parts["train"].reals)
    assert from_frame.schema.classes == from_list.schema.classes


def test_ts_files_bring_their_split(tmp_path):
    pytest.importorskip("sktime", reason="pip install 'stepscan[timeseries]'")
    head = "@problemName made\n@timestamps false\n@univariate false\n@dimensions 2\n"
    head += "@equalLength false\n@classLabel true a b\n@data\n"
    for part, count in (("TRAIN", 12), ("TEST", 5)):
        lines = [f"{i},{i + 1},{i + 2}:0,{i % 3},1:{'ab'[i % 2]}" for i in range(count)]
        (tmp_path / f"made_{part}.ts").write_text(head + "\n".join(lines) + "\n")
    found = from_ts(tmp_path / "made_TEST.ts")
    assert found.names[:2] == ["train-1", "train-2"]
    assert found.parts.tolist() == [0] * 12 + [2] * 5
    assert found.channels["1"][:6].tolist() == [0, 1, 2, 1, 2, 3]
    dataset = open_dataset(tmp_path / "made_TRAIN.ts")
    assert dataset.schema.classes == ("a", "b")
    assert len(dataset.parts["test"].begins) == 5
    (tmp_path / "bad.ts").write_text(head + "1,x,3:0:1:a\n")
    with pytest.raises(DataError, match=r"bad\.ts: not a readable \.ts file"):
        open_dataset(tmp_path / "bad.ts")
    (tmp_path / "none.ts").write_text(head.replace("@classLabel true a b", "@classLabel false"))
    with pytest.raises(DataError, match="want labels: @classLabel true"):
        open_dataset(tmp_path / "none.ts")


# What is noticed and refused --------------------------------------------------------------------


def test_classes_that_cannot_be_judged_are_said():
    arrays, labels = waves(60)
    dataset = from_lists(arrays, ["alone", *labels[1:]])
    assert any("single sequence" in f and "alone" in f for f in dataset.findings)
    packed = dataset.parts["test"]
    label = packed.targets_at(packed.begins + packed.lengths - 1)["label"]
    assert dataset.schema.classes.index("alone") not in label.tolist()


def test_a_class_that_training_never_shows_is_left_out_and_said():
    arrays, labels = waves(60)
    train = from_arrays(arrays[:40], labels[:40])
    test = from_arrays(arrays[40:], ["new", *labels[41:]])
    dataset = labelled_dataset(joined(train, test), DataOptions(), name="t")
    assert any(f.startswith("1 held-out sequences are of classes") for f in dataset.findings)
    assert len(dataset.parts["test"].begins) == 19


def test_sequences_without_a_label_are_left_out_and_counted():
    arrays, labels = waves(60)
    dataset = from_lists(arrays, [None, None, *labels[2:]])
    assert "2 sequences without a label left out" in dataset.findings


def test_a_leak_is_noticed_and_clean_data_are_silent():
    arrays, labels = waves(60)
    assert from_lists(arrays, labels).findings == ()
    train, test = from_arrays(arrays[:40], labels[:40]), from_arrays(arrays[:20], labels[:20])
    leaky = labelled_dataset(joined(train, test), DataOptions(), name="t")
    # of the 40, some were drawn for choosing: these are in the test part, not in training
    assert any("held-out sequences are in the training part too" in f for f in leaky.findings)


def test_constant_channels_are_left_out():
    arrays, labels = waves(60)
    arrays = [np.concatenate([x, np.full((len(x), 1), 7.0)], 1) for x in arrays]
    dataset = from_lists(arrays, labels)
    assert dataset.schema.channels == ("1", "2")
    assert any('"3" never changes' in f for f in dataset.findings)


def test_texts_need_enough_steps():
    assert [frames_needed(x) for x in ("", "a", "ab", "aab", "aaa")] == [0, 1, 2, 4, 5]
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(8, 2)) for _ in range(40)]
    texts = ["abc", "cab", "bca", "aabb"] * 10
    arrays[3] = arrays[3][:5]
    dataset = from_lists(arrays, texts, answer="text")
    assert any("shorter than their texts" in f for f in dataset.findings)
    schema = dataset.schema
    assert schema.classes == ("a", "b", "c")
    for _, targets in whole(dataset.parts["train"]):
        spelled = "".join(schema.classes[i - 1] for i in targets["symbol"].tolist() if i > 0)
        assert spelled in texts
        assert targets["end"].tolist() == [-1] * 7 + [8]


BAD = {
    "a label that changes": (
        lambda f: f.assign(label=f["t"] % 2),
        {"label": "label"},
        'row 2, column "label": sequence "r000" has "1" here and "0" before',
    ),
    "a word in a channel": (
        lambda f: f.astype({"x": object}).assign(x=["oops", *f["x"][1:]]),
        {},
        'row 1, column "x": "oops" is not a number',
    ),
    "one class": (lambda f: f.assign(label="a"), {}, 'every sequence has the label "a"'),
    "no such label": (lambda f: f, {"label": "klass"}, 'no column "klass" for the label'),
    "no such id": (lambda f: f, {"label": "label", "id": "who"}, 'no column "who" for the id'),
    "no id": (lambda f: f.drop(columns="recording"), {"label": "label"}, "name it with --id"),
    "no channels": (lambda f: f[["recording", "t", "label"]], {"label": "label"}, "want channels"),
    "too few": (lambda f: f[f["recording"] < "r005"], {}, "at least 6 labelled sequences, got 5"),
    "not numbers": (lambda f: f, {"answer": "number"}, 'label "slow" is not a number'),
    "answer": (lambda f: f, {"answer": "clas"}, "Did you mean 'class'"),
    "weights": (
        lambda f: f,
        {"label": "label", "class_weights": "balance"},
        "Did you mean 'balanced'",
    ),
    "asked": (lambda f: f, {"label": "label", "asked": "evry"}, "Did you mean 'every'"),
    "smoothing": (lambda f: f, {"label": "label", "smoothing": 1.0}, "0 <= smoothing < 1, got 1.0"),
    "fractions": (lambda f: f, {"valid": 0.6, "test": 0.5}, "fractions valid [+] test below 1"),
    "no group": (lambda f: f, {"label": "label", "group": "who"}, 'no column "who" for the group'),
}


@pytest.mark.plain
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, tmp_path):
    change, options, said = BAD[case]
    with pytest.raises(ValueError, match=said) as caught:
        made(change(sensors_frame()), tmp_path, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.plain
def test_bad_lists_are_one_line():
    arrays, labels = waves(20)
    cases = (
        ([], [], "at least one sequence"),
        (arrays, labels[:3], "one label a sequence, got 3 for 20"),
        ([*arrays[:9], arrays[9][:, :1], *arrays[10:]], labels, "sequence 10: want 2 channels"),
        (
            [*arrays[:9], np.zeros((0, 2)), *arrays[10:]],
            labels,
            "sequence 10: want .* at least one step",
        ),
        ([*arrays[:9], [[1, 2], [3]], *arrays[10:]], labels, "sequence 10: want the same number"),
        ([*arrays[:9], [["a", "b"]], *arrays[10:]], labels, "sequence 10: want numbers"),
        (
            [*arrays[:9], np.full((5, 2), np.inf), *arrays[10:]],
            labels,
            "sequence 10: step 1 is inf",
        ),
    )
    for given, told, said in cases:
        with pytest.raises(DataError, match=said):
            from_lists(given, told)


@pytest.mark.plain
def test_new_sequences_must_fit():
    schema = from_lists(*waves()).schema
    for wrong, said in (
        (
            np.zeros((5, 3)),
            r"sequence 1: want 2 channels of numbers at every step .1, 2., as in train.*3 of num",
        ),
        ("abc", "want numbers"),
        (
            ["a", "b"],
            "want 2 channels of numbers at every step .1, 2., as in training; got 1 of words",
        ),
        (pd.DataFrame({"1": [1.0], "b": [2.0]}), 'no column "2" for the channel. Columns: 1, b'),
    ):
        with pytest.raises(DataError, match=said):
            schema.encode([wrong])
    with pytest.raises(DataError, match="want a list of sequences"):
        schema.encode([])
    renamed = Table(sensors_frame().rename(columns={"x": "y"}), "new.csv")
    told = replace(schema, id="recording", channels=("x", "noise"))
    with pytest.raises(DataError, match=r'new.csv: no column "x" for the channel. Columns:.* y,'):
        told.encode(renamed)
