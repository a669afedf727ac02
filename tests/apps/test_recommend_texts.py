"""`recommend` of items as text: as of ids, and of items that training never showed."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_catalogue import catalogue, ratings

from stepscan.apps.fit import fit
from stepscan.apps.model import Model
from stepscan.cli import main
from stepscan.data.base import DataOptions


@pytest.fixture(scope="module")
def taken():
    return ratings(catalogue(), users=30, steps=6, new=0.34)[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory, taken):
    folder = tmp_path_factory.mktemp("texts")
    taken.to_csv(folder / "taken.csv", index=False)
    catalogue().to_csv(folder / "items.csv", index=False)
    return fit(
        folder / "taken.csv",
        options=DataOptions(items=str(folder / "items.csv")),
        out=folder / "run",
        layers="min_gru",
        steps=3,
        width=16,
        rows=4,
        length=32,
        quiet=True,
    )


@pytest.fixture(scope="module")
def further(model):
    """Two items under new names, one of them with the words of a known one."""
    title, style = model.schema.texts[3]
    rows = [("new1", title, style), ("new2", "purple walrus", "cubist")]
    return pd.DataFrame(rows, columns=["item", "title", "style_name"])


def test_recommend_says_what_predict_says(model):
    history = list(model.schema.items[:4])
    found = model.recommend(history, top=5, exclude_seen=True)
    want = model.predict(history, top=5, exclude_seen=True)
    assert [offer.item for offer in found] == [p.what for p in want]
    assert [offer.score for offer in found] == pytest.approx([p.probability for p in want])
    every = model.recommend(history, top=9999)
    assert {offer.item for offer in every} == set(model.schema.items)
    assert sum(offer.score for offer in every) == pytest.approx(1, abs=1e-5)
    assert model.recommend(list(model.schema.items), exclude_seen=True) == []
    assert model.recommend(pd.DataFrame({"item": history}), top=3) == every[:3]


def test_a_table_is_answered_as_each_of_its_users(model, taken):
    found = model.recommend_table(taken.sample(frac=1, random_state=0), top=3, exclude_seen=True)
    assert list(found.columns) == ["user", "place", "item", "score"]
    assert list(found["user"].unique()) == sorted(taken["user"].unique())
    for user in ("u003", "u017"):
        mine, rows = taken[taken["user"] == user].sort_values("time"), found[found["user"] == user]
        alone = model.recommend(list(mine["item"]), top=3, exclude_seen=True)
        assert list(rows["item"]) == [offer.item for offer in alone]
        np.testing.assert_allclose(rows["score"], [offer.score for offer in alone], rtol=1e-5)
    own = model.recommend_table(users=["u003"], top=2, exclude_seen=True)
    assert list(own["item"]) == list(found[found["user"] == "u003"]["item"][:2])


def test_counts_are_those_of_the_training_part(model, taken):
    """By hand: everything but the last two of each user."""
    train = taken.sort_values(["user", "time"], kind="stable")
    train = train[train.groupby("user").cumcount(ascending=False) >= 2]
    counts = train["item"].value_counts()
    schema = model.schema
    assert dict(zip(schema.items, schema.counts, strict=True)) == {
        item: counts.get(item, 0) for item in schema.items
    }
    assert schema.trained == len(counts)
    popular = model.recommend([], top=3)
    assert [offer.score for offer in popular] == pytest.approx(
        sorted(counts / counts.sum())[:-4:-1], abs=1e-5
    )


def test_what_the_catalogue_does_not_have_is_left_out_of_a_table(model, taken):
    one = taken[taken["user"] == "u001"]
    odd = pd.concat([one, one.assign(item="x", time=one["time"].max() + 1)])
    odd = pd.concat([odd, one.assign(user="stranger", item="y")])
    with pytest.warns(UserWarning, match=r"12 of 18 rows .*the table of items does not have"):
        found = model.recommend_table(odd, top=4)
    for user, history in (("u001", list(one.sort_values("time")["item"])), ("stranger", [])):
        alone = model.recommend(history, top=4)
        assert list(found[found["user"] == user]["item"]) == [offer.item for offer in alone]
    with pytest.warns(UserWarning, match="12 of 18 rows"):
        predicted = model.predict_table(odd, top=1)
    assert predicted["stranger"][0].what == model.recommend([])[0].item


def test_items_that_training_never_showed_are_offered(model, further):
    more = model.with_items(further)
    history = list(model.schema.items[:4])
    offers = {offer.item: offer.score for offer in more.recommend(history, top=9999)}
    assert set(offers) == {*model.schema.items, "new1", "new2"}
    assert offers["new1"] == pytest.approx(offers[model.schema.items[3]], rel=1e-4), "same words"
    assert more.recommend(["new2"], top=3) != more.recommend([], top=3)
    assert more.recommend([], top=9999)[-1].score < 1e-6, "nobody took it"


def test_the_command_reads_a_table_of_further_items(model, further, taken, tmp_path, capsys):
    run = model.about["folder"]
    further.to_csv(tmp_path / "new.csv", index=False)
    known, *_ = model.schema.items
    ask = ["recommend", run, known, "new2", "--items", str(tmp_path / "new.csv")]
    assert main([*ask, "--top", "3", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    want = model.with_items(further).recommend([known, "new2"], top=3)
    assert [row["item"] for row in said] == [offer.item for offer in want]
    pd.concat([taken, taken[:1].assign(item="new2")]).to_csv(tmp_path / "ask.csv", index=False)
    listed = ["--file", str(tmp_path / "ask.csv"), "--users", "u001,u002", "--top", "2"]
    assert main(["recommend", run, *listed, *ask[4:], "--out", str(tmp_path / "out.csv")]) == 0
    assert list(pd.read_csv(tmp_path / "out.csv")["user"]) == ["u001", "u001", "u002", "u002"]
    further.rename(columns={"item": "colour"}).to_csv(tmp_path / "odd.csv", index=False)
    for wrong, message in (
        ([run, "new2"], "item 'new2' was never seen in training nor in the table of items"),
        ([run, known, "--items", str(tmp_path / "none.csv")], "none.csv: no such file"),
        ([run, known, "--items", str(tmp_path / "odd.csv")], "cannot tell the column"),
        ([run, known, "--file", "x.csv"], "not both"),
    ):
        assert main(["recommend", *wrong]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error


@pytest.mark.plain
def test_wrong_questions_say_who_answers_them(model, taken):
    for ask, message in (
        (lambda: model.recommend(["nope"]), "item 'nope' was never seen.*--items, or with_items"),
        (lambda: model.recommend("i0001"), "want items, got 'i0001'"),
        (lambda: model.recommend([], top=0), "want top >= 1, got 0"),
        (lambda: model.recommend(taken), "several users.*recommend_table"),
        (lambda: model.recommend_table(taken.assign(item="x")), "in the table of items.*right"),
        (lambda: model.evaluate, "evaluate: wants a model of interactions, this one is of item"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            ask()
        assert "\n" not in str(error.value)


def test_a_model_of_other_data_names_both_kinds(model):
    other = object.__new__(Model)
    other.__dict__["schema"] = type("Schema", (), {"kind": "text"})()
    with pytest.raises(ValueError, match="wants a model of interactions or item_texts, this one"):
        other.recommend(["a"])


def test_a_saved_model_offers_the_same(model):
    again = Model.load(model.about["folder"])
    history = list(model.schema.items[:2])
    assert again.recommend(history) == model.recommend(history)
    assert again.schema.counts == model.schema.counts
    assert torch.equal(again.items, model.items)
