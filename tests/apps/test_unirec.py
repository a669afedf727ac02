"""Times as inputs of recommenders, and UniRec: read, trained, asked, streamed, and neighbours."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_data import interactions_frame

from stepscan.apps.fit import fit
from stepscan.apps.interactions.answers import last_logits
from stepscan.apps.interactions.neighbours import item_variances, nearest, scores, tables
from stepscan.apps.interactions.presets import with_clock
from stepscan.apps.kinds import domain_of
from stepscan.apps.model import Model
from stepscan.cli import main
from stepscan.data.base import DataError, DataOptions
from stepscan.data.batches import draw
from stepscan.data.clock import components
from stepscan.data.interactions import CLOCK, InteractionSchema
from stepscan.data.open import open_dataset
from stepscan.models import Inputs, SequenceModel
from stepscan.models.heads.enhanced_item import EnhancedItem
from stepscan.train.cloze import cloze
from stepscan.train.config import TrainConfig
from stepscan.train.loop import Trainer

LAYERS = (
    "min_gru",
    "unirec[length=8, depth=1]",
    'unirec[mixer="mamba2", depth=1]',
    "bert4rec[length=8]",
)
TIMED = DataOptions(clock="yes")


def uneven_frame():
    frame = interactions_frame()
    gaps = np.random.default_rng(1).integers(3_600, 9 * 86_400, len(frame))
    return frame.assign(timestamp=1_600_000_000 + gaps.cumsum())


@pytest.fixture(scope="module")
def dataset():
    return open_dataset(uneven_frame(), TIMED)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unirec")
    uneven_frame().to_csv(folder / "w.csv", index=False)
    options = {"width": 16, "rows": 4, "steps": 3, "quiet": True}
    return fit(folder / "w.csv", layers='unirec[mixer="min_gru"]', out=folder / "run", **options)


def built(dataset, layers):
    torch.manual_seed(0)
    domain = domain_of(dataset)
    return domain, SequenceModel(domain.config(domain.pattern(layers), 16)).eval()


def test_times_become_inputs_by_hand(dataset):
    """The calendar of each interaction, and the time since the one before of the same user."""
    schema, packed = dataset.schema, dataset.parts["train"]
    frame = uneven_frame()
    frame = frame.sort_values(["user", "timestamp"])
    frame = frame[frame.groupby("user").cumcount(ascending=False) >= 2]
    since = frame.groupby("user")["timestamp"].diff()
    mean = since.mean()
    assert schema.unit == pytest.approx(mean * 1e9)
    calendar = components(frame["timestamp"].to_numpy() * 1_000_000_000).astype(np.float64)
    want = np.concatenate(
        [
            np.ones((len(frame), 1)),
            calendar - calendar.mean(0).round(2),
            (since.fillna(0) / mean).to_numpy()[:, None],
        ],
        1,
    )
    np.testing.assert_allclose(packed.reals, want, rtol=1e-4, atol=1e-3)
    assert dataset.inputs == ((13,), CLOCK)
    assert any(line.startswith("clock") for line in dataset.said)
    plain = open_dataset(uneven_frame(), DataOptions())
    assert plain.inputs == ((13,), 0)
    assert plain.parts["train"].reals is None
    assert InteractionSchema.from_dict(schema.to_dict()) == schema
    older = {
        k: v for k, v in plain.schema.to_dict().items() if k not in ("unit", "calendar", "middle")
    }
    assert not InteractionSchema.from_dict(older).unit, "saved before there were clocks"


@torch.no_grad()
@pytest.mark.parametrize("layers", LAYERS)
def test_with_times_a_history_says_what_it_says_alone(dataset, layers):
    domain, network = built(dataset, layers)
    model = Model(network, dataset.schema, {"reach": domain.reach})
    frame = uneven_frame().sort_values(["user", "timestamp"])
    packed, users = dataset.schema.encode(model.table(frame))
    seen = 0
    for which, logits in last_logits(network, packed, reach=domain.reach):
        for user, said in zip(which.tolist(), logits, strict=True):
            mine = frame[frame["user"] == users[user]]
            (offer,) = model.predict(mine, top=1)
            best = said.clone()
            best[0] = -torch.inf
            assert offer.what == dataset.schema.items[int(best.argmax()) - 1]
            assert offer.probability == pytest.approx(float(best.softmax(0).max()), rel=1e-4)
            (same,) = model.predict(list(mine["item"]), times=list(mine["timestamp"]), top=1)
            assert same == offer
            seen += 1
    assert seen == len(users)
    by_items = model.predict(list(frame["item"][:4]), top=12)
    assert by_items != model.predict(frame[:4], top=12), "times count"


@torch.no_grad()
@pytest.mark.parametrize("layers", LAYERS[:3])
def test_items_and_times_to_come_change_nothing(dataset, layers):
    _, network = built(dataset, layers)
    packed = dataset.parts["test"]
    at = torch.arange(int(packed.lengths[0]))[None]
    inputs = Inputs(*packed.inputs_at(at))
    before, _ = network(inputs)
    for column in (0, 1):
        later = Inputs(*(x.clone() for x in inputs))
        later[column][:, 3:] = (1 + later[column][:, 3:]) % 7
        after, _ = network(later)
        torch.testing.assert_close(before[:, :3], after[:, :3])
        assert not torch.allclose(before[:, 3:], after[:, 3:]), "they count once they are there"


@pytest.mark.parametrize("cut", [1, 4])
def test_a_stream_with_times_may_be_cut_anywhere(fitted, cut):
    frame = uneven_frame()
    mine = frame[frame["user"] == "u01"].sort_values("timestamp")
    whole, _ = fitted.stream(mine)
    first, state = fitted.stream(mine[:cut])
    rest, state = fitted.stream(list(mine["item"][cut:]), state, times=mine["timestamp"][cut:])
    torch.testing.assert_close(torch.cat([first, rest]), whole)
    offer = fitted.predict(mine, top=1)[0]
    logits = whole[-1].clone()
    logits[0] = -torch.inf
    assert offer.what == fitted.schema.items[int(logits.argmax()) - 1]
    with pytest.raises(DataError, match="with every piece"):
        fitted.stream(["film 1"], state)
    with pytest.raises(DataError, match="item 1 is before the one before"):
        fitted.stream(["film 1"], state, times=[1_500_000_000])
    without, plain = fitted.stream(list(mine["item"][:2]))
    more, _ = fitted.stream(list(mine["item"][2:]), plain)
    again, _ = fitted.stream(list(mine["item"]))
    torch.testing.assert_close(torch.cat([without, more]), again)


def test_one_name_turns_all_of_it_on(fitted):
    """Times are read, the branches are trained, and the folder comes back."""
    assert fitted.schema.unit > 0
    head = fitted.network.config.head
    assert isinstance(head, EnhancedItem)
    assert fitted.network.config.clock
    assert int(fitted.network.head.steps) >= 1
    again = Model.load(fitted.about["folder"])
    frame = uneven_frame()
    assert again.recommend_table(frame, top=2).equals(fitted.recommend_table(frame, top=2))
    assert again.recommend(frame[:3], top=2) == fitted.recommend(frame[:3], top=2)
    assert again.recommend([], top=1)
    assert again.evaluate(at=(10,))["HR@10"] == pytest.approx(fitted.about["test"]["HR@10"])
    assert with_clock("unirec[depth=1]", None).clock == "yes"
    assert with_clock("unirec", DataOptions(clock="no")).clock == "no"
    assert with_clock("sasrec", None) is None
    assert with_clock(None, TIMED) is TIMED


def test_the_command_says_what_is_read(tmp_path, capsys):
    uneven_frame().to_csv(tmp_path / "w.csv", index=False)
    small = ["--steps", "2", "--width", "8", "--rows", "2", "--length", "16"]
    ask = ["fit", str(tmp_path / "w.csv"), "--out", str(tmp_path / "run"), *small]
    assert main([*ask, "--mixer", 'unirec[mixer="min_gru", depth=1]']) == 0
    assert "the calendar and the time since the item before are read too" in capsys.readouterr().out
    assert main(["recommend", str(tmp_path / "run"), "film 1", "--top", "1"]) == 0
    capsys.readouterr()
    wrong = [*ask[:3], str(tmp_path / "odd"), *small, "--clock", "maybe"]
    assert main(wrong) == 2
    assert "clock: want yes, no or auto, got 'maybe'" in capsys.readouterr().err
    odd = uneven_frame().assign(timestamp=range(len(uneven_frame())))
    odd.to_csv(tmp_path / "odd.csv", index=False)
    assert main(["recommend", str(tmp_path / "run"), "--file", str(tmp_path / "odd.csv")]) == 2
    assert "want times in" in capsys.readouterr().err


@pytest.mark.parametrize(
    "layers", ["unirec[length=8, depth=1]", 'unirec[mixer="gated_delta_net"]', "bi_gla"]
)
def test_any_layers_train_with_times(dataset, layers):
    domain, network = built(dataset, layers)
    plan = TrainConfig(steps=3, rows=4, length=16)
    trainer = Trainer(network, dataset.parts["train"], plan, objective=domain.objective)
    before = [p.detach().clone() for p in network.parameters()]
    trainer.advance()
    moved = [not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)]
    assert sum(moved) >= len(moved) - 1, "all but a weight that one lucky step left"


def test_what_reads_both_ways_wants_another_head(dataset):
    domain, network = built(dataset, 'unirec[mixer="bi_gla"]')
    with pytest.raises(ValueError, match="reads both ways"):
        Trainer(network, dataset.parts["train"], TrainConfig(steps=1), objective=domain.objective)


def test_a_hidden_item_hides_its_time(dataset):
    _, network = built(dataset, "bi_gla")
    batch = draw(dataset.parts["train"], 0, rows=4, length=16, seed=0)
    torch.manual_seed(0)
    asked = cloze(batch, network.config.head)
    hidden = asked.targets["token"] >= 0
    assert hidden.any()
    assert (asked.reals[hidden] == 0).all()
    assert torch.equal(asked.reals[~hidden], batch.reals[~hidden])


def test_neighbours_are_those_of_a_plain_computation(dataset):
    """Users, pairs, intervals and variances in dictionaries."""
    train = dataset.parts["train"]
    counts = torch.tensor([0, *dataset.schema.counts])
    when = train.targets_at(torch.arange(len(train)))["when"].double().numpy() / 1e9
    users = {}
    for user, (begin, size) in enumerate(zip(train.begins, train.lengths, strict=True)):
        for at in range(int(begin), int(begin + size)):
            users.setdefault(user, {}).setdefault(int(train.tokens[at, 0]), when[at])
    takers, weight, between, seen = {}, {}, {}, {}
    for own in users.values():
        for i, a in own.items():
            takers[i] = takers.get(i, 0) + 1
            for j, b in own.items():
                if i != j:
                    weight[i, j] = weight.get((i, j), 0) + 1 / math.log(1 + len(own))
                    between.setdefault((i, j), []).append(abs(a - b))
    for at in range(len(train)):
        seen.setdefault(int(train.tokens[at, 0]), []).append(when[at])
    variance = {
        i: np.var(np.diff(sorted(t)), ddof=1) if len(t) > 2 else math.inf for i, t in seen.items()
    }
    want = {}
    for (i, j), w in weight.items():
        s = w / math.sqrt(takers[i] * takers[j])
        near = 1 / (1 + math.log(1 + np.mean(between[i, j])))
        even = 1 / (1 + math.log(1 + variance[j]))
        want[i, j] = 0.4 * s / (1 + s) + 0.8 * near + 0.5 * even
    found = tables(train, counts, calendar=True, kept=4)
    assert found.neighbours.shape == (13, 4)
    assert found.neighbours[0].tolist() == [0] * 4
    for i in range(1, 13):
        best = sorted((j for a, j in want if a == i), key=lambda j: -want[i, j])[:4]
        assert found.neighbours[i].tolist() == best + [i] * (4 - len(best))
    known = np.array([variance[i] for i in range(1, 13)])
    spread = (known - known.min()) / (known.max() - known.min())
    np.testing.assert_allclose(found.unevenness[1:], spread, rtol=1e-4, atol=1e-6)
    assert len(found.variances) == len(train.begins)


def test_an_item_that_nobody_took_has_no_neighbours():
    items, owner = torch.tensor([1, 2, 1]), torch.tensor([0, 0, 1])
    when = torch.tensor([0.0, 5.0, 7.0], dtype=torch.float64)
    variance = item_variances(items, when, 5)
    assert variance.isinf().all(), "fewer than two intervals say nothing"
    found = nearest(items, owner, when, variance, 5, 2)
    assert found.tolist() == [[0, 0], [2, 1], [1, 2], [3, 3], [4, 4]]
    alone = nearest(items[:1], owner[:1], when[:1], variance, 5, 2)
    assert alone.tolist() == [[i, i] for i in range(5)]
    worse = scores(*(torch.tensor([x], dtype=torch.float64) for x in (0.1, 100.0, 1.0)))
    for better in ((0.2, 100.0, 1.0), (0.1, 10.0, 1.0), (0.1, 100.0, 0.5)):
        assert scores(*(torch.tensor([x], dtype=torch.float64) for x in better)) > worse


def test_users_without_a_known_time_are_asked_by_their_items(fitted):
    frame = pd.DataFrame({"item": ["film 1", "film 2"]})
    assert fitted.recommend(frame, top=2) == fitted.recommend(["film 1", "film 2"], top=2)
    with pytest.raises(DataError, match="want one for each of 2 items, got 1"):
        fitted.predict(["film 1", "film 2"], times=[1_600_000_000])
