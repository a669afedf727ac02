"""Every figure that a person will read equals a plain computation of what its definition says."""

import math

import numpy as np
import pytest
import torch

from stepscan.apps.baselines.ngram import NGram
from stepscan.apps.candidate import Candidate
from stepscan.apps.events.mixture import median
from stepscan.apps.kinds import DOMAINS
from stepscan.apps.ranking import ranks, summary
from stepscan.apps.series.domain import LEVELS
from stepscan.data.base import PARTS
from stepscan.models import Inputs
from stepscan.train.config import TrainConfig
from stepscan.train.loop import DivergedError

every_kind = pytest.mark.parametrize("kind", DOMAINS)


def sequences(packed):
    """Each sequence alone: its inputs as one row, its targets."""
    for begin, size in zip(packed.begins.tolist(), packed.lengths.tolist(), strict=True):
        at = torch.arange(begin, begin + size)
        tokens, reals = packed.inputs_at(at)
        yield (
            Inputs(*(None if x is None else x[None] for x in (tokens, reals))),
            packed.targets_at(at),
        )


@torch.no_grad()
def test_bits_per_byte(small):
    domain, model = small("text")
    nats, size = 0.0, 0
    for inputs, target in sequences(domain.dataset.parts["test"]):
        logits = model(inputs)[0][0].double()
        for step, token in enumerate(target["token"].tolist()):
            if token >= 0:
                nats -= float(logits[step, token] - logits[step].exp().sum().log())
                size += token < 256
    assert domain.score(model) == {"bits/byte": pytest.approx(nats / math.log(2) / size, rel=1e-4)}


def test_a_letter_never_seen_costs_the_n_gram_much_but_not_everything(small):
    domain, _ = small("text")
    (_, scores), *_ = domain.baselines()
    assert 0 < scores["bits/byte"] < 8
    rng = np.random.default_rng(0)
    model = NGram(rng.integers(0, 3, 3000), 5, 3)
    cost = -model.log_probabilities(np.array([0, 4, 1]))
    assert np.isfinite(cost).all()
    assert cost[1] > cost[0]


@torch.no_grad()
def test_the_figures_of_events(small):
    """Also those of scikit-learn, where it has them."""
    sklearn = pytest.importorskip("sklearn.metrics", reason="wants scikit-learn")
    domain, model = small("events")
    model.head.gap.bias.data.normal_()
    model.head.remaining.bias.data.normal_()
    right, near, nats, brier, wrong, left, came, said_ = [], [], [], [], [], [], [], []
    for inputs, target in sequences(domain.dataset.parts["test"]):
        said, _ = model(inputs)
        for step, token in enumerate(target["token"].tolist()):
            if not math.isnan(until := float(target["remaining"][step])):
                middle = bisect_median(said.remaining[0, step].double().numpy())
                left.append(abs(middle - until) * domain.schema.unit / 3600)
            if token < 0:
                continue
            logits = said.logits[0, step].double().numpy()
            chance = np.exp(logits) / np.exp(logits).sum()
            order = [i for i in np.argsort(-logits, kind="stable").tolist() if i != 0]
            right.append(order[0] == token)
            near.append(token in order[:3])
            nats.append(-np.log(chance[token]))
            brier.append(((chance - np.eye(len(chance))[token]) ** 2).sum())
            came.append(token)
            said_.append(order[0])
            if token != domain.schema.end:
                middle = bisect_median(said.gap[0, step].double().numpy())
                gap = float(target["gap"][step])
                wrong.append(abs(middle - gap) * domain.schema.unit / 3600)
    f1 = sklearn.f1_score(came, said_, average="macro", zero_division=0)
    naive = [np.mean(right), np.mean(near), f1, *map(np.mean, (brier, nats, wrong, left))]
    scores = domain.score(model)
    assert [m.name for m in domain.metrics] == list(scores)
    assert domain.schema.end in came
    assert list(scores.values())[:-1] == [pytest.approx(value, rel=1e-4) for value in naive]
    assert 0 <= scores["suffix similarity"] < 1
    units = {m.name: m.unit for m in domain.metrics if m.unit}
    assert units == {"gap error": "hours", "remaining error": "hours"}


def bisect_median(mixture):
    """Of a mixture of log-normals, from the error function."""
    low, high = -40.0, 40.0
    for _ in range(100):
        middle = (low + high) / 2
        below = sum(
            math.exp(w) * (1 + math.erf((middle - m) / math.exp(s) / math.sqrt(2))) / 2
            for w, m, s in mixture.T.tolist()
        )
        low, high = (middle, high) if below < 0.5 else (low, middle)
    return math.exp(low)


def test_the_median_of_one_log_normal_is_exact():
    mean = torch.tensor([-3.0, 0.0, 2.5])
    one = torch.stack([torch.zeros(3), mean, torch.tensor([-4.0, 0.0, 2.0])], -1)[..., None]
    torch.testing.assert_close(median(one), mean.exp(), rtol=1e-5, atol=0)
    torch.manual_seed(1)
    mixed = torch.randn(5, 3, 4)
    mixed[:, 0] = mixed[:, 0].log_softmax(-1)
    wanted = [bisect_median(m.double().numpy()) for m in mixed]
    torch.testing.assert_close(median(mixed), torch.tensor(wanted), rtol=1e-5, atol=0)


@torch.no_grad()
def test_full_ranking(small):
    domain, model = small("interactions")
    places = []
    for inputs, target in sequences(domain.dataset.parts["test"]):
        logits = model(inputs)[0][0].double().numpy()
        for step in np.flatnonzero(target["token"].numpy() >= 0):
            others = np.delete(logits[step], [0, int(target["token"][step])])
            own = logits[step][int(target["token"][step])]
            places.append(1 + (others > own).sum() + (others == own).sum() / 2)
    places = np.array(places)
    inside = places <= 10
    naive = (inside.mean(), (inside / np.log2(1 + places)).mean(), (1 / places).mean())
    scores = domain.score(model)
    assert list(scores.values()) == pytest.approx(naive, rel=1e-6)


def test_ties_share_places_and_the_unknown_is_never_found():
    scores = torch.tensor([[9.0, 1, 1, 1, 0], [9.0, 1, 2, 3, 4], [9.0, 1, 2, 3, 4]])
    rank = ranks(scores, torch.tensor([2, 0, 4]))
    assert rank.tolist() == [2.0, math.inf, 1.0]
    assert summary(rank)["MRR"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert math.isnan(summary(ranks(scores * torch.nan, torch.tensor([2, 1, 4])))["MRR"])


def quantiles_one_by_one(domain, model, packed, origins):
    """Each origin from the beginning of its series, in real units."""
    found = []
    for origin in origins.tolist():
        begin = int(packed.begins[packed.begins <= origin][-1])
        with torch.no_grad():
            said = model(packed.inputs_at(torch.arange(begin, origin + 1))[1][None])[0][0, -1]
        at = torch.tensor(origin)
        base, scale = packed.base_at(at).numpy(), float(packed.scale_at(at))
        found.append(base[:, None] + said.double().numpy() * scale)
    return np.array(found)


def scores_by_loop(domain, packed, origins, quantiles):
    """MASE, CRPS and the coverage gap, value by value."""
    mase, crps, inside = {}, {}, []
    for origin, table in zip(origins.tolist(), quantiles, strict=True):
        step = int(packed.steps[origin])
        series = int(packed.panel.series[step])
        end = int(packed.panel.end[series])
        for h, row in enumerate(table, start=1):
            value = float(packed.panel.y[step + h]) if step + h < end else math.nan
            if math.isnan(value):
                continue
            naive = domain.schema.naive[series]
            pinball = [
                max(q * (value - x), (q - 1) * (value - x))
                for q, x in zip(LEVELS, row, strict=False)
            ]
            mase.setdefault(series, []).append(abs(value - row[LEVELS.index(0.5)]) / naive)
            crps.setdefault(series, []).append(2 * np.mean(pinball) / naive)
            inside.append(row[LEVELS.index(0.1)] <= value <= row[LEVELS.index(0.9)])
    return {
        "MASE": np.mean([np.mean(v) for v in mase.values()]),
        "CRPS": np.mean([np.mean(v) for v in crps.values()]),
        "coverage gap": abs(np.mean(inside) - 0.8),
    }


def test_mase_and_crps(small):
    domain, model = small("series")
    packed = domain.packed("test")
    origins = packed.origins()
    held_out = 24 / domain.schema.horizon
    assert len(origins) == 2 * held_out
    naive = scores_by_loop(
        domain, packed, origins, quantiles_one_by_one(domain, model, packed, origins)
    )
    assert domain.score(model) == {k: pytest.approx(v, rel=1e-4) for k, v in naive.items()}


def test_the_scale_of_mase_is_the_seasonal_naive_error_before_the_test_part(datasets):
    schema, packed = datasets["series"].schema, datasets["series"].parts["test"]
    for series, naive in enumerate(schema.naive):
        y = packed.panel.y[int(packed.panel.begin[series]) : int(packed.panel.end[series])]
        y = y[: len(y) - 24].numpy()
        assert naive == pytest.approx(np.nanmean(np.abs(y[schema.season :] - y[: -schema.season])))


@torch.no_grad()
def test_accuracy_of_labelled_sequences(small):
    domain, model = small("labelled")
    right = [
        int(model(inputs)[0][0, -1].argmax()) == int(target["label"][-1])
        for inputs, target in sequences(domain.dataset.parts["test"])
    ]
    assert domain.score(model)["accuracy"] == pytest.approx(np.mean(right), abs=0.006)


def by_counting(packed, *, order, every=False):
    """(most likely first given the symbol before, wanted) for each question of a part."""
    train, test = packed["train"], packed["test"]
    counts, overall = {}, {}
    for inputs, target in sequences(train):
        for before, after in zip(
            inputs.tokens[0, :, 0].tolist(), target["token"].tolist(), strict=False
        ):
            if every:
                overall[before] = overall.get(before, 0) + 1
            if after >= 0:
                if not every:
                    overall[after] = overall.get(after, 0) + 1
                counts.setdefault(before, {}).setdefault(after, 0)
                counts[before][after] += 1
    total = sum(overall.values())
    for inputs, target in sequences(test):
        for before, after in zip(
            inputs.tokens[0, :, 0].tolist(), target["token"].tolist(), strict=False
        ):
            if after >= 0:
                here = counts.get(before, {}) if order else {}
                yield before, after, lambda i, h=here: h.get(i, 0) + overall.get(i, 0) / (total + 1)


@pytest.mark.parametrize(("order", "name"), [(0, "popularity"), (1, "Markov chain")])
def test_simple_recommendations(small, order, name):
    domain, _ = small("interactions")
    vocab = domain.schema.tokens[0]
    places = []
    for _, wanted, score in by_counting(domain.dataset.parts, order=order, every=not order):
        own = score(wanted)
        others = [score(i) for i in range(1, vocab) if i != wanted]
        places.append(1 + sum(s > own for s in others) + sum(s == own for s in others) / 2)
    places = np.array(places)
    assert dict(domain.baselines())[name]["MRR"] == pytest.approx((1 / places).mean())
    assert dict(domain.baselines())[name]["HR@10"] == pytest.approx((places <= 10).mean())


@pytest.mark.parametrize(("order", "name"), [(0, "most frequent"), (1, "Markov chain")])
def test_simple_next_events(small, order, name):
    domain, _ = small("events")
    vocab = domain.schema.tokens[0]
    right = []
    for _, wanted, score in by_counting(domain.dataset.parts, order=order):
        right.append(max(range(1, vocab), key=score) == wanted)
    assert dict(domain.baselines())[name]["accuracy"] == pytest.approx(np.mean(right))


def test_simple_forecasts(small):
    domain, _ = small("series")
    packed, y = domain.packed("test"), domain.packed("test").panel.y
    origins, season = packed.origins(), domain.schema.season
    for name, back in (("seasonal naive", season), ("last value", 0)):
        tables = []
        for origin in origins.tolist():
            step = int(packed.steps[origin])
            values = [float(y[step + h - back] if back else y[step]) for h in range(1, 7)]
            tables.append(np.repeat(np.array(values)[:, None], len(LEVELS), 1))
        naive = scores_by_loop(domain, packed, origins, np.array(tables))
        assert dict(domain.baselines())[name]["MASE"] == pytest.approx(naive["MASE"])


@every_kind
def test_examples_have_the_shape_that_the_report_wants(kind, small):
    domain, model = small(kind)
    for example in domain.examples({"ours": model}):
        match example["type"]:
            case "table":
                assert {len(row) for row in example["rows"]} == {len(example["columns"])}
                assert example["columns"][-1].startswith("ours")
            case "text":
                assert example["prompt"]
                assert example["samples"][0]["from"] == "ours"
            case "forecast":
                said = example["forecasts"][0]["quantiles"]["0.5"]
                assert len(said) == len(example["actual"]) == domain.schema.horizon
                assert len(example["times"]) == len(example["history"]) + domain.schema.horizon
                assert example["times"] == sorted(set(example["times"]))
        assert example["title"]


@every_kind
def test_training_helps(kind, small):
    domain, _ = small(kind)
    train = TrainConfig(steps=60, rows=8, length=64, learning_rate=0.01, evaluations=2)
    run = Candidate(domain, domain.config("min_gru", 16), train)
    before = run.look()[domain.metrics[0].name]
    run.trainer.advance()
    model = run.finish()
    after = domain.score(model, "valid")[domain.metrics[0].name]
    assert domain.metrics[0].wins(after, before)


def test_the_best_look_is_kept_and_a_broken_one_is_not(small, monkeypatch):
    domain, _ = small("events")
    train = TrainConfig(steps=4, rows=2, length=8, evaluations=4)
    run = Candidate(domain, domain.config("min_gru", 16), train)
    told = iter([math.nan, 0.5, 0.9, 0.7])
    kept = []

    def score(model, part, most):
        kept.append(model.norm.weight.detach().clone())
        return {"accuracy": next(told), "nats": 1.0}

    monkeypatch.setattr(domain, "score", score)
    run.trainer.advance()
    assert [look["score"] for look in run.curve] == [None, 0.5, 0.9, 0.7]
    assert torch.equal(run.finish().norm.weight, kept[2])
    broken = Candidate(domain, domain.config("min_gru", 16), train)
    monkeypatch.setattr(domain, "score", lambda *_: {"accuracy": math.nan, "nats": 1.0})
    broken.trainer.advance()
    with pytest.raises(DivergedError, match="never finite"):
        broken.finish()


@every_kind
def test_a_quick_look_reads_less(kind, small):
    domain, model = small(kind)
    left_out = {"suffix similarity"}  # event after event: of the test part alone
    looked = set(domain.score(model, "valid", 1500))
    assert looked == {m.name for m in domain.metrics} - left_out
    assert all(len(domain.dataset.parts[part]) for part in PARTS)


def test_hours_are_only_said_of_dates(small, datasets):
    schema = datasets["events"].schema
    plain = type(datasets["events"])(
        name="x",
        schema=type(schema).from_dict(schema.to_dict() | {"calendar": False}),
        parts=datasets["events"].parts,
        said=(),
    )
    assert {m.unit for m in DOMAINS["events"](plain).metrics} == {""}
    assert {m.unit for m in DOMAINS["events"](datasets["events"]).metrics} == {"", "hours"}
