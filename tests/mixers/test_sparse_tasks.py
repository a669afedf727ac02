"""What sparse attention is for: small trainings."""

import math

import pytest
import torch
from small_training import build, judge, train

from stepscan.mixers.attention import AttentionConfig
from stepscan.mixers.longvq import LongVQ, LongVQConfig
from stepscan.mixers.routing_attention import RoutingAttention, RoutingAttentionConfig
from stepscan.mixers.seqboat import SeqBoat, SeqBoatConfig
from stepscan.ops.quantize import nearest
from stepscan.tasks.base import Batch
from stepscan.tasks.recall import Recall

pytestmark = [pytest.mark.slow, pytest.mark.plain]


def of_kind(model, kind):
    return [m for m in model.modules() if isinstance(m, kind)]


def noise(n, rng):
    """Which of four groups of symbols is drawn a little more often than the others?"""
    kind = torch.randint(4, (n, 1), generator=rng)
    symbol = torch.randint(32, (n, 48), generator=rng)
    biased = torch.rand(n, 48, generator=rng) < 0.3
    symbol = torch.where(biased, 8 * kind + symbol % 8, symbol)
    asked = torch.zeros(n, 48, dtype=torch.bool)
    asked[:, -1] = True
    return Batch(symbol, kind.expand(n, 48), asked)


def activations(model):
    """What every gate says from now on."""
    found = []
    for m in of_kind(model, SeqBoat):
        given = m.activation

        def watched(u, given=given):
            found.append(given(u))
            return found[-1]

        m.activation = watched
    return found


def rate_and_accuracy(draw, *, price, steps=800, free=500):
    """Share of active tokens of a model that pays `price` for the mean activation, at the end."""
    config = SeqBoatConfig(window=64)
    model = build((config, config), (32,))
    found, step = activations(model), 0

    def extra():
        nonlocal step
        cost = price * sum(p.mean() for p in found) * (step >= free)
        found.clear()
        step += 1
        return cost

    train(model, draw, steps=steps, extra=extra)
    found.clear()
    accuracy = judge(model, draw)[0]
    return sum((p > 0.5).double().mean().item() for p in found) / len(found), accuracy


@pytest.mark.parametrize(
    "price",
    [
        pytest.param(
            0.0,
            marks=pytest.mark.xfail(
                strict=False,
                reason="rates 1.000 (noise) and 0.9995 (recall), accuracy 0.996 and 1.000: nothing "
                "in the published loss makes attention cost anything, and it helps with both",
            ),
        ),
        pytest.param(
            0.03,
            marks=pytest.mark.xfail(
                strict=False,
                reason="rates 0.591 (noise) and 0.348 (recall), accuracy 0.988 and 0.161; from the "
                "first step on, at width 32: rates 0 and 0, accuracy 0.971 and 0.277",
            ),
        ),
    ],
)
def test_attention_is_asked_for_where_it_helps(price, record_property):
    """It is not: a token that is not active gives its gate no gradient, so nothing opens a gate
    again. Without a price none is ever shut; with one they are before attention has learned.
    """
    found = {
        name: rate_and_accuracy(draw, price=price)
        for name, draw in (("noise", noise), ("recall", Recall(pairs=8, keys=16).draw))
    }
    record_property("activation rate and accuracy", found)
    assert found["noise"][0] <= 0.5
    assert found["recall"][0] > found["noise"][0]
    assert min(accuracy for _, accuracy in found.values()) > 0.9


def test_routing_finds_what_a_window_of_the_same_cost_cannot(record_property):
    task = Recall(pairs=16, keys=32)
    local = AttentionConfig(window=7)  # a token of 48 meets about as many in one of 8 clusters
    routed = RoutingAttentionConfig(clusters=8, centroid_decay=0.99)
    found = {}
    for name, layer in (("window", local), ("routing", routed)):
        model = build((local, layer), (task.vocab,), width=32)
        seen = []
        for m in of_kind(model, RoutingAttention):
            keep = lambda m, args, seen=seen: seen.append((m, args[0].detach()))  # noqa: E731
            m.register_forward_pre_hook(keep)

        def learn(*_, seen=seen):
            while seen:
                m, x = seen.pop()
                m.learn_centroids(x)

        train(model, task.draw, steps=600, before=learn, rate=5e-3)
        found[name] = judge(model, task.draw)
    record_property("accuracy and loss", found)
    assert found["routing"][1] < found["window"][1]


def test_attention_to_codes_retrieves_what_a_moving_average_cannot(record_property):
    task, found = Recall(pairs=6, keys=16), {}
    for name in ("average", "codes"):
        model = build((LongVQConfig(codes=32),) * 2, (task.vocab,), width=32)
        if name == "average":
            for m in of_kind(model, LongVQ):
                m.attended.weight.detach().zero_()
                m.attended.weight.requires_grad_(False)
        train(model, task.draw, steps=600, rate=5e-3)
        found[name] = judge(model, task.draw)
    record_property("accuracy and loss", found)
    assert found["codes"][0] > found["average"][0] + 0.05


def exponent_of_routing(*, filled):
    """How the pairs of tokens that meet grow with the length, the centroids having learned where
    the keys are; `filled`: with rows filled up to the largest cluster, as they are worked on.
    """
    lengths, pairs = [512, 1024, 2048, 4096, 8192], []
    for n in lengths:
        config = RoutingAttentionConfig(clusters=round(math.sqrt(n)), heads=1, centroid_decay=0.3)
        mixer, x = config.build(32), torch.randn(1, n, 32)
        for _ in range(10):
            mixer.learn_centroids(x)
        sizes = nearest(mixer._keys_values(x)[0], mixer.centroids).flatten().bincount()
        pairs.append(len(sizes) * sizes.max() ** 2 if filled else (sizes**2).sum())
    return math.log(pairs[-1] / pairs[0]) / math.log(lengths[-1] / lengths[0])


def test_pairs_that_meet_grow_with_the_power_of_three_halves(record_property):
    slope = exponent_of_routing(filled=False)
    record_property("exponent", slope)
    assert slope <= 1.6


@pytest.mark.xfail(strict=False, reason="1.606: the largest cluster grows faster than the mean one")
def test_work_grows_with_the_power_of_three_halves(record_property):
    slope = exponent_of_routing(filled=True)
    record_property("exponent", slope)
    assert slope <= 1.6
