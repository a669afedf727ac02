"""The losses of recommenders against plain loops, and what the Cloze task hides."""

import math

import pytest
import torch

from stepscan.data.base import Batch
from stepscan.models import Cloze, ItemScores, NextItem
from stepscan.train.cloze import cloze
from stepscan.train.item_loss import item_loss
from stepscan.train.objectives import loss

V, B, T, D = 9, 3, 5, 4


def said(seed=0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(B, T, D, generator=rng, dtype=torch.float64)
    weight = torch.randn(V, D, generator=rng, dtype=torch.float64)
    bias = torch.randn(V, generator=rng, dtype=torch.float64)
    target = torch.randint(1, V, (B, T), generator=rng)
    target[0, 2] = target[2, 4] = -1
    return ItemScores(x, weight, bias), target


def logits(scores):
    return scores.x @ scores.weight.T + scores.bias


def wanted(target):
    return [(b, t) for b in range(B) for t in range(T) if target[b, t] >= 0]


def test_softmax_is_cross_entropy_over_all_items():
    scores, target = said()
    table = logits(scores)
    naive = [
        float(table[b, t].exp().sum().log() - table[b, t, target[b, t]]) for b, t in wanted(target)
    ]
    got = item_loss(NextItem(vocab=V), scores, target)
    assert got.tolist() == pytest.approx(naive)
    judged = item_loss(NextItem(vocab=V, loss="binary"), table, target)  # evaluation mode
    assert judged.tolist() == pytest.approx(naive)
    whole = loss(NextItem(vocab=V), scores, {"token": target})
    assert float(whole.mean) == pytest.approx(sum(naive) / len(naive))
    assert int(whole.sums["token"].count) == 13


def test_binary_is_the_sum_that_sasrec_descends():
    scores, target = said()
    table, count = logits(scores), 4
    torch.manual_seed(3)
    got = item_loss(NextItem(vocab=V, loss="binary", negatives=count), scores, target)
    torch.manual_seed(3)
    drawn = torch.randint(1, V, (len(got), count))
    for n, (b, t) in enumerate(wanted(target)):
        row = set(target[b].tolist())
        value = -math.log(torch.sigmoid(table[b, t, target[b, t]]))
        for j in drawn[n].tolist():
            if j not in row:
                value -= math.log(1 - torch.sigmoid(table[b, t, j]))
        assert float(got[n]) == pytest.approx(value)
    assert any(
        j in target[b].tolist()
        for (b, _), js in zip(wanted(target), drawn, strict=True)
        for j in js
    )


def test_sampled_tends_to_the_softmax_over_the_known_items():
    scores, target = said()
    table = logits(scores)[..., 1:]
    naive = [
        float(table[b, t].logsumexp(0) - table[b, t, target[b, t] - 1]) for b, t in wanted(target)
    ]
    torch.manual_seed(0)
    many = item_loss(NextItem(vocab=V, loss="sampled", negatives=40_000), scores, target)
    assert many.tolist() == pytest.approx(naive, abs=0.03)
    few = [item_loss(NextItem(vocab=V, loss="sampled", negatives=2), scores, target).mean()]
    assert abs(float(few[0]) - sum(naive) / 13) > 1e-3  # an estimate is not the thing


@pytest.mark.parametrize("kind", NextItem.asks)
def test_training_with_each_loss_finds_the_wanted_items(kind):
    torch.manual_seed(0)
    scores, target = said()
    x = torch.randn(B, T, 16, dtype=torch.float64)
    weight = torch.nn.Parameter(torch.zeros(V, 16, dtype=torch.float64))
    descent = torch.optim.Adam([weight], lr=0.05)
    head = NextItem(vocab=V, loss=kind, negatives=3)
    for _ in range(300):
        descent.zero_grad()
        item_loss(head, ItemScores(x, weight, None), target).mean().backward()
        descent.step()
    scores = x @ weight.T
    best = [
        all(scores[b, t, target[b, t]] > scores[b, t, j] for j in range(1, V) if j not in target[b])
        for b, t in wanted(target)
    ]
    assert sum(best) >= 12  # binary says nothing of the items that the same row asks for


def batch(rows=64, length=40):
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, V, (rows, length, 1), generator=rng)
    resets = torch.rand(rows, length, generator=rng) < 0.1
    return Batch(tokens, None, resets, {"token": torch.full((rows, length), -1)})


def test_cloze_asks_for_what_it_hides_and_for_nothing_else():
    before = batch()
    torch.manual_seed(0)
    after = cloze(before, Cloze(vocab=V, share=0.2))
    items, shown, target = before.tokens[..., 0], after.tokens[..., 0], after.targets["token"]
    hidden = target >= 0
    assert torch.equal(target[hidden], items[hidden])
    assert (shown[hidden] == 0).all()
    assert torch.equal(shown[~hidden], items[~hidden])
    assert not hidden[items == 0].any()
    assert float(hidden[items > 0].double().mean()) == pytest.approx(0.2, abs=0.02)
    assert before.tokens.equal(batch().tokens), "the batch itself stays as it was"
    again = cloze(before, Cloze(vocab=V, share=0.2))
    assert not torch.equal(again.tokens, after.tokens)


def test_cloze_can_hide_the_last_item_alone():
    before = batch()
    after = cloze(before, Cloze(vocab=V, share=0.0, last=1.0))
    ends = torch.cat([before.resets[:, 1:], torch.ones(64, 1, dtype=torch.bool)], 1)
    wanted = torch.where(ends & (before.tokens[..., 0] > 0), before.tokens[..., 0], -1)
    assert torch.equal(after.targets["token"], wanted)
    torch.manual_seed(0)
    mixed = cloze(before, Cloze(vocab=V, share=0.5, last=0.5)).targets["token"] >= 0
    alone = (mixed & ~ends).sum(1) == 0
    assert 0.3 < float(alone.double().mean()) < 0.7


@pytest.mark.plain
@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        (NextItem, {"vocab": 0}, "vocab >= 1"),
        (NextItem, {"vocab": 3, "loss": "softmx"}, "Did you mean 'softmax'"),
        (NextItem, {"vocab": 3, "negatives": 0}, "negatives >= 1"),
        (Cloze, {"vocab": 3, "share": 1.5}, "share from 0 to 1, got 1.5"),
        (Cloze, {"vocab": 3, "share": 0.0}, "nothing would be hidden"),
    ],
)
def test_heads_that_cannot_be(head, options, message):
    with pytest.raises(ValueError, match=message):
        head(**options)
