import numpy as np
import pandas as pd
import pytest
import torch
from made_up_students import students

from stepscan.data.base import DataError, DataOptions
from stepscan.data.open import open_dataset, read_schema
from stepscan.data.responses import NO_PAST, word_of
from stepscan.data.tables import Table


@pytest.fixture(scope="module")
def frame():
    return students(users=20, answers=20)[0]


@pytest.fixture(scope="module")
def dataset(frame):
    return open_dataset(frame.sample(frac=1, random_state=0), DataOptions())


def test_the_columns_are_told_by_their_names(dataset, frame):
    schema = dataset.schema
    assert dataset.kind == "responses"
    assert (schema.user, schema.question, schema.correct) == ("student", "question", "correct")
    assert (schema.skill, schema.time) == ("skill", "time")
    assert set(schema.questions) <= set(frame["question"])


def test_whole_users_are_held_out(dataset, frame):
    sizes = {part: len(packed.begins) for part, packed in dataset.parts.items()}
    assert sizes == {"train": 14, "valid": 2, "test": 4}
    assert sum(map(len, dataset.parts.values())) == len(frame)


def test_every_input_by_hand(dataset, frame):
    """A second, plain way to compute each step."""
    schema = dataset.schema
    packed, users = schema.encode(Table(frame, "frame"))
    tokens, reals = packed.inputs_at(torch.arange(len(packed)))
    right = packed.targets_at(torch.arange(len(packed)))["label"]
    unit = schema.unit
    at = 0
    for user in users:
        own = frame[frame["student"] == user].sort_values("time", kind="stable")
        last, met, count = None, {}, {}
        for row in own.itertuples():
            question = schema.questions.index(row.question) + 1
            skill = schema.skills.index(row.skill) + 1
            now = row.time.value
            pair = 0 if last is None else 1 + 2 * last[0] + last[2]
            skills = 0 if last is None else 1 + 2 * last[1] + last[2]
            assert tokens[at].tolist() == [question, skill, pair, skills]
            numbers = [
                0 if last is None else np.log1p((now - last[3]) / unit),
                np.log1p((now - met[skill]) / unit) if skill in met else 0,
                np.log1p(count.get(skill, 0)),
                float(skill in met),
                float(last is None),
            ]
            assert np.allclose(reals[at], numbers, atol=1e-5)
            assert right[at] == row.correct
            last, met[skill] = (question, skill, row.correct, now), now
            count[skill] = count.get(skill, 0) + 1
            at += 1
    assert at == len(packed)


def test_a_step_at_a_time_gives_the_same_inputs(dataset, frame):
    schema = dataset.schema
    own = frame[frame["student"] == "s0007"].sort_values("time", kind="stable")
    packed, _ = schema.encode(Table(own, "frame"))
    tokens, reals = packed.inputs_at(torch.arange(len(packed)))
    past = NO_PAST
    for i, row in enumerate(own.itertuples()):
        question = schema.questions.index(row.question) + 1
        token, real = schema.step(question, row.time.value, past)
        assert token == tokens[i].tolist()
        assert np.allclose(real, reals[i], atol=1e-5)
        past = schema.after(question, row.correct, row.time.value, past)


def test_no_step_holds_the_response_it_asks_for(dataset):
    """Turn one response around: nothing up to its step changes, the step after it does."""
    schema = dataset.schema
    packed = dataset.parts["train"]
    frame = students(users=20, answers=20)[0]
    own = frame[frame["student"] == frame["student"].iloc[0]].reset_index(drop=True)
    before, _ = schema.encode(Table(own, "frame"))
    own.loc[4, "correct"] = 1 - own.loc[4, "correct"]
    after, _ = schema.encode(Table(own, "frame"))
    at = torch.arange(len(before))
    same = [(a == b).all(1) for a, b in zip(before.inputs_at(at), after.inputs_at(at), strict=True)]
    assert (same[0] & same[1])[:5].all()
    assert not same[0][5]
    assert len(packed)


def test_without_skills_and_times_answers_are_counted(frame):
    found = open_dataset(frame[["student", "question", "correct"]], DataOptions())
    schema = found.schema
    assert (schema.skill, schema.time, schema.skills) == (None, None, ())
    assert schema.tokens[1] == 1
    _, reals = found.parts["train"].inputs_at(torch.arange(3))
    assert np.allclose(reals[:, 0], np.log1p([0, 1, 1]))
    assert any("there is no time" in line for line in found.findings)


def test_a_schema_comes_back_from_plain_data(dataset):
    assert read_schema(dataset.schema.to_dict()) == dataset.schema


@pytest.mark.parametrize(("cell", "want"), [("TRUE", 1), (0.0, 0), ("Right", 1), ("2", -1)])
def test_responses_may_be_words_or_numbers(cell, want):
    assert word_of(cell) == want


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.assign(correct=["2", *f["correct"][1:]]), "neither right nor wrong"),
        (lambda f: f.assign(correct=1), "every answer to learn from is right"),
        (lambda f: f.assign(student="one"), "want three users at least"),
        (lambda f: f.assign(question=None), "no row has both"),
    ],
)
def test_bad_answers_are_one_clear_line(frame, change, said):
    with pytest.raises(DataError, match=said):
        open_dataset(change(frame), DataOptions(kind="responses"))


def test_a_column_that_is_not_there_is_named(frame):
    with pytest.raises(DataError, match='no column "oops" for the correct'):
        open_dataset(frame, DataOptions(correct="oops"))
    with pytest.raises(DataError, match="name it with --correct"):
        open_dataset(frame.drop(columns="correct"), DataOptions(kind="responses"))
    with pytest.raises(DataError, match="fractions of users"):
        open_dataset(frame, DataOptions(test=3.0))


def test_rows_without_a_user_are_left_out_and_counted(frame):
    holes = frame.copy()
    holes.loc[[3, 9], "student"] = None
    found = open_dataset(holes, DataOptions())
    assert any(line.startswith("2 rows without a user") for line in found.findings)
    assert pd.Series([len(p) for p in found.parts.values()]).sum() == len(frame) - 2
