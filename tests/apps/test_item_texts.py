"""Items as text: what is computed, against hand-made numbers; what is learned, slowly."""

import dataclasses
import json

import pytest
import torch
from laws import assert_near
from made_up_catalogue import STYLES, catalogue, ratings
from torch.nn import functional as F

from stepscan import state as states
from stepscan.apps.candidate import Candidate
from stepscan.apps.fit import fit
from stepscan.apps.item_texts.contrast import HIDDEN, Contrast, hide, read_items
from stepscan.apps.item_texts.domain import COLD
from stepscan.apps.kinds import domain_of
from stepscan.apps.model import Model
from stepscan.apps.ranking import ranks
from stepscan.data.base import DataOptions
from stepscan.data.batches import draw
from stepscan.data.item_texts import CLOSE, KEY, MASK, VALUE, item_text_dataset
from stepscan.data.open import open_dataset
from stepscan.data.tables import Table
from stepscan.models import Inputs, SequenceModel
from stepscan.models.heads import from_dict, to_dict
from stepscan.models.heads.next_sentence import NextSentence
from stepscan.train.config import TrainConfig


def opened(folder, items, taken, **options):
    taken.to_csv(folder / "taken.csv", index=False)
    items.to_csv(folder / "items.csv", index=False)
    told = DataOptions(items=str(folder / "items.csv"), **options)
    return open_dataset(folder / "taken.csv", told)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("items")


@pytest.fixture(scope="module")
def domain(folder):
    items = catalogue()
    taken, _ = ratings(items, users=40, steps=6, new=0.34)
    return domain_of(opened(folder, items, taken))


@pytest.fixture(scope="module")
def network(domain):
    torch.manual_seed(0)
    return SequenceModel(domain.config("min_gru", 16)).double().eval()


@pytest.fixture(scope="module")
def model(domain, folder):
    return fit(
        folder / "taken.csv",
        options=DataOptions(items=str(folder / "items.csv")),
        out=folder / "run",
        steps=3,
        width=16,
        rows=4,
        length=32,
        quiet=True,
    )


def test_an_item_is_read_alone_whatever_is_read_beside_it(domain, network):
    items = read_items(network, domain.sentences)
    assert_near(items.norm(dim=1), torch.ones(len(items)).double(), what="length")
    for i in (1, 5, 200):
        words = domain.sentences[i][domain.sentences[i, :, 1] > 0]
        tokens = F.pad(words, (0, 1))  # by itself: at place 0
        said, _ = network(Inputs(tokens[None]))
        assert_near(items[i], said.item[0, -1], what=f"item {i}")


def test_the_contrast_is_cross_entropy_over_the_items_of_the_batch(domain, network):
    batch = draw(domain.dataset.parts["train"], 0, rows=4, length=48, seed=0)
    torch.manual_seed(0)  # hidden words are drawn: compute with the same ones
    found, state = Contrast(domain.sentences, words=0.0)(network, batch, None)
    torch.manual_seed(0)
    tokens, _ = hide(batch.tokens, network.config.tokens[0])
    said, after = network(Inputs(tokens), None, batch.resets)
    items = F.normalize(read_items(network, domain.sentences), dim=-1)
    candidates = sorted(
        {int(i) for name in ("token", "item") for i in batch.targets[name].flatten() if i > 0}
    )
    costs = []
    for b, t in (batch.targets["token"] > 0).nonzero().tolist():
        cosines = torch.stack([said.item[b, t] @ items[i] for i in candidates])
        log = (cosines / 0.05).log_softmax(0)
        costs.append(-log[candidates.index(int(batch.targets["token"][b, t]))])
    assert_near(found.mean, torch.stack(costs).mean(), what="contrast")
    assert int(found.sums["token"].count) == len(costs) > 4
    assert states.nbytes(state) == states.nbytes(after)


def test_a_batch_that_asks_nothing_costs_nothing(domain, network):
    batch = draw(domain.dataset.parts["train"], 0, rows=2, length=16, seed=0)
    nothing = {name: torch.full_like(target, -1) for name, target in batch.targets.items()}
    found, _ = Contrast(domain.sentences, words=0.0)(network, batch._replace(targets=nothing), None)
    assert found.mean.item() == 0
    assert int(found.sums["token"].count) == 0


def test_a_share_of_the_words_is_hidden_and_no_end(domain):
    batch = draw(domain.dataset.parts["train"], 0, rows=64, length=400, seed=0)
    words = domain.schema.tokens[0]
    torch.manual_seed(0)
    tokens, chosen = hide(batch.tokens, words)
    text = (batch.tokens[..., 1] == KEY) | (batch.tokens[..., 1] == VALUE)
    assert abs(chosen[text].float().mean() - HIDDEN) < 0.01
    assert not chosen[batch.tokens[..., 1] == CLOSE].any()
    assert torch.equal(tokens[..., 1:], batch.tokens[..., 1:])
    assert torch.equal(tokens[..., 0][~chosen], batch.tokens[..., 0][~chosen])
    masked = (tokens[..., 0][chosen] == MASK).float().mean()
    same = (tokens[..., 0][chosen] == batch.tokens[..., 0][chosen]).float().mean()
    assert abs(masked - 0.8) < 0.03
    assert abs(same - 0.1) < 0.03


def test_new_items_are_ranked_among_each_other(domain, network):
    """The figure, item by item, from the scores."""
    network = network.float()
    found = domain.score(network, "test")
    trained, hits = domain.schema.trained, []
    items = read_items(network, domain.sentences)
    packed = domain.dataset.parts["test"]
    for history, want in zip(packed.histories(), packed.pairs()[1].tolist(), strict=True):
        spelled = domain.schema.history(history)
        said, _ = network(spelled.inputs_at(torch.arange(len(spelled)))[0][None])
        cosine = said.item[0, -1] @ items[trained + 1 :].T
        hits.append(int((cosine > cosine[want - trained - 1]).sum()) < 10)
    assert found[COLD] == pytest.approx(sum(hits) / len(hits))
    network.double()


def test_the_head_comes_back_from_plain_data():
    head = NextSentence(words=9, temperature=0.1)
    assert from_dict(to_dict(head)) == head
    with pytest.raises(ValueError, match="temperature above 0"):
        NextSentence(words=9, temperature=0.0)


def test_a_fitted_model_comes_back_and_says_the_same(model):
    again = Model.load(model.about["folder"])
    history = list(model.schema.items[:4])
    assert again.predict(history) == model.predict(history)
    assert again.schema == model.schema


def test_predictions_leave_out_what_was_seen_on_request(model):
    history = list(model.schema.items[:4])
    everything = model.predict(history, top=len(model.schema.items))
    assert {p.what for p in everything} == set(model.schema.items)
    assert sum(p.probability for p in everything) == pytest.approx(1, abs=1e-4)
    rest = model.predict(history, top=len(model.schema.items), exclude_seen=True)
    assert {p.what for p in rest} == set(model.schema.items[4:])


def test_users_of_a_table_are_answered_as_one_by_one(model, folder):
    found = model.predict_table(folder / "taken.csv", top=2)
    frame = ratings(catalogue(), users=40, steps=6, new=0.34)[0]
    for user in ("u003", "u017"):
        own = frame[frame["user"] == user].sort_values("time")
        assert found[user] == model.predict(list(own["item"]), top=2)
    assert list(model.predict_frame(folder / "taken.csv").columns) == [
        "user",
        "place",
        "item",
        "probability",
    ]


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_stream_may_be_cut_between_any_items(model, cut):
    items = list(model.schema.items[:6])
    whole, _ = model.stream(items)
    first, state = model.stream(items[:cut])
    rest, _ = model.stream(items[cut:], state)
    assert whole.item.shape[0] == 6
    assert_near(torch.cat([first.item, rest.item]), whole.item, what="stream")


def test_further_items_are_offered_untrained(model):
    text = model.schema.texts[10]
    frame = catalogue().iloc[:1].assign(item="twin", title=text[0], style_name=text[1])
    more = model.with_items(frame)
    assert_near(more.items[-1], more.items[11], what="the same words, the same place")
    assert more.similar("twin", top=1)[0][0] == model.schema.items[10]
    assert "twin" not in model.schema.items
    assert len(more.predict(["twin"], top=5)) == 5


def test_an_item_that_is_not_known_is_named(model):
    with pytest.raises(ValueError, match="item 'nope' was never seen"):
        model.predict(["nope"])
    with pytest.raises(ValueError, match="at least one step"):
        model.predict([])


def test_new_items_have_a_figure_of_their_own_in_the_report(model, folder):
    assert COLD in model.about["test"]
    assert COLD in (folder / "run" / "report.html").read_text()
    assert COLD in json.dumps(json.loads((folder / "run" / "results.json").read_text()))


# What is learned (systems.md, row 68).

SEEDS = (0, 1)


def trained(domain, *, steps, seed, start=None, layers="gated_delta_net*2"):
    config = TrainConfig(steps=steps, rows=16, length=96, learning_rate=4e-3, seed=seed)
    candidate = Candidate(domain, domain.config(layers, 48, dropout=0.0), config)
    if start is not None:
        candidate.model.load_state_dict(start.state_dict())
    candidate.trainer.advance()
    return candidate.model.eval()


def by_ids(folder, seed, steps=150):
    """HR@10 of a model of ids, of the new items among each other."""
    dataset = open_dataset(folder / "taken.csv", DataOptions(minimum=1))
    domain = domain_of(dataset)
    config = TrainConfig(steps=steps, rows=16, length=16, learning_rate=4e-3, seed=seed)
    candidate = Candidate(domain, domain.config("gated_delta_net", 48, dropout=0.0), config)
    candidate.trainer.advance()
    packed, hits = dataset.parts["test"], []
    known = set(dataset.parts["train"].tokens[:, 0].tolist())
    new = torch.tensor([i for i in range(1, dataset.schema.tokens[0]) if i not in known])
    for begin, length in zip(packed.begins.tolist(), packed.lengths.tolist(), strict=True):
        tokens = packed.tokens[begin : begin + length].long()
        want = packed.targets_at(torch.tensor([begin + length - 1]))["token"]
        if int(want) in known:
            continue
        with torch.no_grad():
            logits, _ = candidate.model.eval()(Inputs(tokens[None]))
        scores = torch.cat([torch.zeros(1), logits[0, -1, new]])[None]
        hits.append(float(ranks(scores, (new == want).nonzero()[0] + 1)))
    return sum(rank <= 10 for rank in hits) / len(hits), 10 / len(new)


@pytest.fixture(scope="module")
def cold(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cold")
    items = catalogue()
    taken, _ = ratings(items, users=250, steps=9, new=0.34)
    return folder, domain_of(opened(folder, items, taken))


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_items_unseen_in_training_are_found_by_their_text(cold, seed, record_property):
    folder, domain = cold
    found = domain.score(trained(domain, steps=150, seed=seed))
    of_ids, chance = by_ids(folder, seed)
    record_property("measured", f"text {found}, ids {of_ids:.3f}, chance {chance:.3f}")
    assert found[COLD] >= 3 * chance
    assert found[COLD] > of_ids
    assert of_ids <= 2 * chance, "a model of ids can only guess"


@pytest.mark.slow
def test_what_was_learned_on_one_catalogue_helps_on_another(cold, record_property):
    """Other ids, other animals and styles partly; few users."""
    _, first = cold
    model = trained(first, steps=150, seed=0)
    animals = ["puffin", "stoat", "adder", "finch", "vole", "shrew"]
    colours = ["red", "green", "blue", "white", "black", "amber", "violet", "silver"]
    items = catalogue((STYLES, colours, animals), start=5000)
    taken, _ = ratings(items, users=40, steps=7, new=0.34, seed=5)
    second = domain_of(
        item_text_dataset(
            Table(taken, "taken"),
            Table(items, "items"),
            DataOptions(),
            {"user": "user", "item": "item", "time": "time"},
            name="second",
            bpe=first.schema.bpe,
        )
    )
    assert not set(first.schema.items) & set(second.schema.items)
    moved, fresh = [], []
    for seed in SEEDS:
        moved.append(second.score(trained(second, steps=30, seed=seed, start=model)))
        fresh.append(second.score(trained(second, steps=30, seed=seed)))
    for name in ("NDCG@10", COLD):
        a, b = (sum(s[name] for s in scores) / len(SEEDS) for scores in (moved, fresh))
        record_property(name, f"moved {a:.3f}, from scratch {b:.3f}")
        assert a > b


@pytest.mark.slow
def test_another_order_and_missing_attributes_are_tolerated(cold, record_property):
    _, domain = cold
    model = trained(domain, steps=150, seed=0)
    schema = domain.schema
    plain = domain.score(model)[COLD]

    def told(texts, fields):
        changed = dataclasses.replace(schema, fields=fields, texts=texts)
        parts = {
            name: type(part)(changed.sentences(), part._starts, part.items, part._wanted)
            for name, part in domain.dataset.parts.items()
        }
        return domain_of(dataclasses.replace(domain.dataset, schema=changed, parts=parts))

    turned = told(tuple(t[::-1] for t in schema.texts), schema.fields[::-1])
    holes = tuple(t if i % 5 else (t[0], "") for i, t in enumerate(schema.texts))
    found = {
        "plain": plain,
        "turned": turned.score(model)[COLD],
        "holes": told(holes, schema.fields).score(model)[COLD],
    }
    record_property("measured", found)
    chance = 10 / (len(schema.items) - schema.trained)
    assert found["turned"] >= 3 * chance
    assert found["holes"] >= 3 * chance
    assert found["holes"] >= 0.7 * plain
