"""Recommendation as people ask for it: histories in, items out, nothing leaked, ids kept."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_data import interactions_frame

from stepscan.apps.fit import fit
from stepscan.apps.interactions.answers import last_logits, window
from stepscan.apps.interactions.domain import Interactions, fill_in_or_say_next
from stepscan.apps.kinds import domain_of
from stepscan.apps.model import Model
from stepscan.apps.ranking import measures, ranks
from stepscan.cli import main
from stepscan.data.base import DataError, DataOptions
from stepscan.data.batches import draw
from stepscan.data.open import open_dataset
from stepscan.models import Cloze, NextItem, SequenceModel
from stepscan.train.cloze import cloze

LAYERS = (
    "min_gru",
    "sasrec[length=8]",
    "bert4rec[length=8]",
    "bi_gla",
    'sasrec[mixer="mamba2"]',
    'bert4rec[mixer="bi_mamba"]',
    "sigma[keep=2]",
)
every_model = pytest.mark.parametrize("layers", LAYERS)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "watched.csv"
    interactions_frame().to_csv(file, index=False)
    return open_dataset(file)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    interactions_frame().to_csv(folder / "watched.csv", index=False)
    options = {"width": 16, "rows": 4, "steps": 4, "quiet": True}
    return fit(folder / "watched.csv", layers="sasrec[length=8]", out=folder / "run", **options)


def built(dataset, layers):
    torch.manual_seed(0)
    domain = domain_of(dataset)
    return domain, SequenceModel(domain.config(domain.pattern(layers), 16)).eval()


@torch.no_grad()
@every_model
def test_what_is_said_after_a_history_is_what_it_says_alone(dataset, layers):
    """Rows of different lengths, padded and cut, say what each says by itself."""
    domain, network = built(dataset, layers)
    model = Model(network, dataset.schema, {"reach": domain.reach})
    packed = dataset.parts["test"]
    seen = set()
    for which, logits in last_logits(network, packed, reach=domain.reach):
        for user, said in zip(which.tolist(), logits, strict=True):
            begin = int(packed.begins[user])
            items = packed.tokens[begin : begin + int(packed.lengths[user]), 0].long()
            most = window(network, domain.reach)
            items = items if most is None else items[-most:]
            if isinstance(network.config.head, Cloze):
                items = torch.cat([items, torch.zeros(1, dtype=torch.long)])
            alone = network(items[None])[0][0, -1]
            torch.testing.assert_close(said, alone, atol=1e-5, rtol=1e-5)
            names = [dataset.schema.items[i - 1] for i in items.tolist() if i]
            (offer,) = model.predict(names, top=1)
            assert offer.what == dataset.schema.items[int(alone[1:].argmax())]
            seen.add(user)
    assert seen == set(range(len(packed.begins)))


@torch.no_grad()
@every_model
def test_items_after_the_question_change_nothing(dataset, layers):
    """Of any user, the scores for the next item depend on the items before it alone."""
    domain, network = built(dataset, layers)
    packed = dataset.parts["test"]
    before = torch.zeros(len(packed.begins), dataset.schema.tokens[0])
    for which, logits in last_logits(network, dataset.parts["valid"], reach=domain.reach):
        before[which] = logits
    changed = packed.tokens.clone()
    ends = packed.begins + packed.lengths - 1  # the item that the validation part asks for
    changed[ends] = 1 + changed[ends] % (dataset.schema.tokens[0] - 1)
    cut = torch.ones(len(packed), dtype=torch.bool)
    cut[ends] = False
    assert torch.equal(packed.tokens[cut], dataset.parts["valid"].tokens)
    longer = type(packed)(packed.starts, tokens=changed)
    after = torch.zeros_like(before)
    for which, logits in last_logits(network, longer, reach=domain.reach):
        after[which] = logits
    assert not torch.allclose(before, after), "one more item was read: the check bites"
    whole = type(packed)(packed.starts[cut], tokens=changed[cut])
    for which, logits in last_logits(network, whole, reach=domain.reach):
        torch.testing.assert_close(logits, before[which])
    if network.causal:
        tokens = torch.randint(1, 12, (2, 8))
        other = tokens.clone()
        other[:, 5:] = torch.randint(1, 12, (2, 3))
        torch.testing.assert_close(network(tokens)[0][:, :5], network(other)[0][:, :5])


@pytest.mark.parametrize("layers", ["bert4rec[length=24, last=0.0]", "bi_gla"])
def test_a_hidden_item_never_sees_itself(dataset, layers):
    """Leak test: with the answer changed everywhere it is hidden, the training loss is asked of
    another item, but what the model says of it stays the same.
    """
    _, network = built(dataset, layers)
    head = network.config.head
    assert isinstance(head, Cloze)
    batch = draw(dataset.parts["train"], 0, rows=8, length=24, seed=0)
    torch.manual_seed(1)
    asked = cloze(batch, head)
    hidden = asked.targets["token"] >= 0
    assert hidden.any()
    other = batch.tokens.clone()
    other[hidden] = 1 + other[hidden] % 11
    torch.manual_seed(1)
    again = cloze(batch._replace(tokens=other), head)
    assert not torch.equal(again.targets["token"], asked.targets["token"])
    assert torch.equal(again.tokens, asked.tokens), "the answer is not in the input"
    shown, _ = network(asked.tokens, None, batch.resets)
    leaked, _ = network(batch.tokens, None, batch.resets)
    assert not torch.allclose(shown[hidden], leaked[hidden]), "a visible answer is noticed"


def test_training_hides_items_only_from_heads_that_ask_for_them(dataset):
    batch = draw(dataset.parts["train"], 0, rows=4, length=24, seed=0)
    for layers, count in (("min_gru", int((batch.targets["token"] >= 0).sum())), ("bi_gla", None)):
        _, network = built(dataset, layers)
        network.train()
        torch.manual_seed(0)
        found, _ = fill_in_or_say_next(network, batch, None)
        if count is None:
            assert 0 < int(found.sums["token"].count) < batch.tokens.shape[0] * 24
        else:
            assert int(found.sums["token"].count) == count


def test_heads_and_recipes_go_with_the_layers(dataset):
    domain = domain_of(dataset)
    heads = {
        layers: domain.config(domain.pattern(layers)).head
        for layers in (
            "gla",
            "bi_gla",
            "sasrec",
            'sasrec[loss="binary"]',
            "attention[causal=False]",
        )
    }
    assert isinstance(heads["gla"], NextItem)
    assert isinstance(heads["bi_gla"], Cloze)
    assert isinstance(heads["attention[causal=False]"], Cloze)
    assert heads['sasrec[loss="binary"]'].loss == "binary"
    assert domain.recipe_for(domain.config("gla")) == domain.recipe
    recipe = domain.recipe_for(domain.config("sasrec[length=30]"))
    assert (recipe.length, recipe.learning_rate, recipe.rows) == (30, 1e-3, 41)
    domain.recipe = type(domain.recipe)(**{**vars(domain.recipe), "rows": 7})
    assert domain.recipe_for(domain.config("sasrec")).rows == 7, "what was asked for wins"
    assert domain.config(domain.pattern('sasrec[mixer="mamba2"]')).positions == 0


def test_measures_equal_ir_measures():
    ir = pytest.importorskip("ir_measures", reason="pip install ir-measures")
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(size=(40, 30)))
    wanted = torch.from_numpy(rng.integers(1, 30, 40))
    ours = measures(ranks(scores, wanted), at=(1, 5, 10))
    qrels = [ir.Qrel(f"u{u}", f"i{int(w)}", 1) for u, w in enumerate(wanted)]
    run = [
        ir.ScoredDoc(f"u{u}", f"i{i}", float(scores[u, i])) for u in range(40) for i in range(1, 30)
    ]
    for k in (1, 5, 10):
        theirs = ir.calc_aggregate(
            [ir.nDCG @ k, ir.RR @ k, ir.Success @ k, ir.R @ k, ir.P @ k], qrels, run
        )
        pairs = {"NDCG": ir.nDCG, "MRR": ir.RR, "HR": ir.Success, "recall": ir.R, "precision": ir.P}
        for name, measure in pairs.items():
            assert ours[f"{name}@{k}"] == pytest.approx(theirs[measure @ k]), name


def test_measures_by_hand():
    rank = torch.tensor([1.0, 2.0, 4.0, torch.inf], dtype=torch.float64)
    at = measures(rank, at=(3,))
    assert at == {
        "HR@3": 0.5,
        "NDCG@3": pytest.approx((1 + 1 / np.log2(3)) / 4),
        "MRR@3": pytest.approx(1.5 / 4),
        "recall@3": 0.5,
        "precision@3": pytest.approx(0.5 / 3),
    }
    assert np.isnan(measures(torch.tensor([1.0, torch.nan]))["HR@10"])
    with pytest.raises(ValueError, match="lengths of at least 1, got 0"):
        measures(rank, at=(0,))


def test_recommend_offers_the_best_items_with_their_probabilities(fitted):
    history = ["film 1", "film 2"]
    every = fitted.recommend(history, top=99)
    assert {offer.item for offer in every} == set(fitted.schema.items)
    assert sum(offer.score for offer in every) == pytest.approx(1)
    assert [o.score for o in every] == sorted((o.score for o in every), reverse=True)
    assert fitted.recommend(history, top=3) == every[:3]
    left = fitted.recommend(history, top=99, exclude_seen=True)
    assert [o.item for o in left] == [o.item for o in every if o.item not in history]
    assert sum(offer.score for offer in left) == pytest.approx(1)
    assert fitted.recommend(list(fitted.schema.items), exclude_seen=True) == []
    frame = pd.DataFrame({"item": history})
    assert fitted.recommend(frame, top=3) == every[:3]


def test_a_new_user_gets_what_is_popular(fitted):
    train = Interactions(open_dataset(fitted.about["source"])).dataset.parts["train"]
    counts = np.bincount(train.tokens[:, 0], minlength=fitted.schema.tokens[0])[1:]
    offers = fitted.recommend([], top=4)
    assert [o.score for o in offers] == pytest.approx(
        sorted(counts / counts.sum())[:-5:-1], abs=1e-6
    )
    best = {name for name, n in zip(fitted.schema.items, counts, strict=True) if n == counts.max()}
    assert offers[0].item in best
    frame = pd.DataFrame({"user": [7, 8, 8], "item": ["a", "film 1", "b"], "timestamp": [1, 2, 3]})
    with pytest.warns(UserWarning, match="2 of 3 rows hold items that training never showed"):
        found = fitted.recommend_table(frame, top=4)
    assert list(found[found.user == 7].item) == [o.item for o in offers]
    assert list(found[found.user == 8].item) != [o.item for o in offers]


def test_recommend_table_equals_recommend_of_each_user_and_keeps_ids(fitted):
    frame = interactions_frame().sample(frac=1, random_state=0)
    found = fitted.recommend_table(frame, top=3, exclude_seen=True)
    assert list(found.columns) == ["user", "place", "item", "score"]
    fresh = len(fitted.schema.items) - frame.groupby("user")["item"].nunique()
    assert len(found) == fresh.clip(upper=3).sum()
    for user, rows in found.groupby("user"):
        mine = frame[frame.user == user].sort_values("timestamp", kind="stable")
        alone = fitted.recommend(list(mine["item"]), top=3, exclude_seen=True)
        assert list(rows.place) == [1, 2, 3][: len(alone)]
        assert list(rows["item"]) == [o.item for o in alone]
        np.testing.assert_allclose(rows.score, [o.score for o in alone], rtol=1e-4)
    own = fitted.recommend_table(users=["u03", "u01"], top=2)
    assert sorted(own.user.unique()) == ["u01", "u03"]
    again = fitted.recommend_table(frame, users=["u01"], top=2)
    pd.testing.assert_frame_equal(again, own[own.user == "u01"].reset_index(drop=True))


@pytest.mark.parametrize("kind", [int, float, str])
def test_ids_may_be_numbers_or_text(tmp_path, kind):
    frame = interactions_frame()
    number = {"user": frame.user.str[1:].astype(int), "item": frame["item"].str[5:].astype(int)}
    frame = frame.assign(**number)
    frame.to_csv(tmp_path / "n.csv", index=False)
    model = fit(
        tmp_path / "n.csv", layers="min_gru", width=8, steps=2, out=tmp_path / "run", quiet=True
    )
    assert set(model.schema.items) == set(map(str, frame["item"].unique()))
    asked = frame.astype({"user": kind, "item": kind})
    found = model.recommend_table(asked, top=1)
    want = model.recommend_table(frame, top=1)
    assert list(found["item"].astype(float)) == list(want["item"].astype(float))
    if kind is int:
        assert pd.api.types.is_integer_dtype(found["item"].dtype)
        assert list(found.user) == sorted(frame.user.unique(), key=str)
    assert model.recommend([kind(3), kind(4)]) == model.recommend(["3", "4"])


def test_everything_can_train(tmp_path):
    interactions_frame().to_csv(tmp_path / "w.csv", index=False)
    whole = interactions_frame()
    usual = open_dataset(tmp_path / "w.csv")
    for options, left, said in (
        (DataOptions(test=0), 1, "nothing for the test"),
        (DataOptions(test=0, valid=0), 0, "which were trained on"),
    ):
        found = open_dataset(tmp_path / "w.csv", options)
        users = whole.user.nunique()
        assert len(found.parts["train"]) == len(whole) - left * users
        assert len(usual.parts["train"]) == len(whole) - 2 * users
        assert said in found.said[-1]
        for part in ("valid", "test"):  # the last item is asked for in both
            packed, last = found.parts[part], usual.parts["test"]
            ends = packed.begins + packed.lengths - 1
            wanted = last.targets_at(last.begins + last.lengths - 1)["token"]
            assert torch.equal(packed.targets_at(ends)["token"], wanted)
    for options, message in (
        (DataOptions(test=0.2), "want test 0 or left out, got 0.2"),
        (DataOptions(valid=0), "valid=0 wants test=0 too"),
    ):
        with pytest.raises(DataError, match=message):
            open_dataset(tmp_path / "w.csv", options)


def test_epochs_and_patience_end_a_run(tmp_path):
    interactions_frame().to_csv(tmp_path / "w.csv", index=False)
    small = {"layers": "min_gru", "width": 8, "rows": 4, "length": 16, "quiet": True}
    size = len(open_dataset(tmp_path / "w.csv").parts["train"])
    model = fit(tmp_path / "w.csv", epochs=3, out=tmp_path / "a", **small)
    records = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    looks = [r for r in records if r["event"] == "evaluation"]
    assert len(looks) == 3
    assert looks[-1]["step"] == -(-3 * size // 64)
    assert model.about["metric"] == "HR@10"
    low = fit(
        tmp_path / "w.csv", epochs=50, patience=2, learning_rate=1e-9, out=tmp_path / "b", **small
    )
    records = [json.loads(line) for line in (tmp_path / "b/metrics.jsonl").read_text().splitlines()]
    assert sum(r["event"] == "evaluation" for r in records) <= 6
    assert low.recommend(["film 1"])
    for wrong, message in (
        ({"epochs": 0}, "epochs above 0"),
        ({"epochs": 1, "steps": 3}, "want epochs or steps, not both"),
        ({"epochs": 1, "patience": 0}, "want patience >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(tmp_path / "w.csv", out=tmp_path / "c", **small, **wrong)
    assert not (tmp_path / "c").exists()


def test_evaluate_reads_the_test_part_again(fitted):
    at = fitted.evaluate(at=(10,))
    assert at["HR@10"] == pytest.approx(fitted.about["test"]["HR@10"])
    assert at["NDCG@10"] == pytest.approx(fitted.about["test"]["NDCG@10"])


@pytest.mark.plain
@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: m.recommend(["film 77"]), "item 'film 77' was never seen in training"),
        (lambda m: m.recommend("film 1"), "want items, got 'film 1'"),
        (lambda m: m.recommend(["film 1"], top=0), "want top >= 1, got 0"),
        (lambda m: m.recommend(interactions_frame()), "several users.*recommend_table"),
        (
            lambda m: m.recommend_table(interactions_frame().rename(columns={"item": "film"})),
            'no column "item" for the item. Columns: user, film, timestamp',
        ),
        (
            lambda m: m.recommend_table(interactions_frame().assign(item="x")),
            'none of the items in column "item" was seen in training.*right column',
        ),
        (lambda m: m.recommend_table(users=["u01", "nobody"]), "no user nobody in column"),
        (lambda m: m.recommend_table("nowhere.csv"), "nowhere.csv: no such file"),
        (
            lambda m: m.recommend_table(interactions_frame().iloc[:0]),
            "want rows and columns, got 0 x 3",
        ),
        (lambda m: m.forecast(), "forecast: wants a model of series"),
    ],
)
def test_bad_questions_are_answered_in_one_line(fitted, ask, message):
    with pytest.raises(ValueError, match=message) as error:
        ask(fitted)
    assert "\n" not in str(error.value)


def test_the_command(fitted, tmp_path, capsys):
    run = fitted.about["folder"]
    assert main(["recommend", run, "film 1", "film 2", "--top", "2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    want = fitted.recommend(["film 1", "film 2"], top=2)
    assert [(row["place"], row["item"]) for row in said] == [(1, want[0].item), (2, want[1].item)]
    assert main(["recommend", run, "--top", "1"]) == 0
    assert fitted.recommend([])[0].item in capsys.readouterr().out
    file, out = tmp_path / "ask.csv", tmp_path / "lists.csv"
    interactions_frame().to_csv(file, index=False)
    ask = [
        "recommend",
        run,
        "--file",
        str(file),
        "--users",
        "u01,u02",
        "--exclude-seen",
        "--top",
        "3",
    ]
    assert main([*ask, "--out", str(out)]) == 0
    assert capsys.readouterr().out == ""
    lists = pd.read_csv(out)
    assert list(lists.columns) == ["user", "place", "item", "score"]
    assert len(lists) == 6
    for wrong, message in (
        (["recommend", run, "film 1", "--file", str(file)], "not both"),
        (["recommend", run, "film 77"], "never seen in training"),
        (["recommend", str(tmp_path / "none"), "film 1"], "none"),
    ):
        assert main(wrong) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error
