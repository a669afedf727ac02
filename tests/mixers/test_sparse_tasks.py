"""What sparse attention is for: small trainings."""

import math

import pytest
import torch
from small_training import build, judge, train

from stepscan.mixers.routing_attention import RoutingAttentionConfig
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


def activation_rate(model, draw, monkeypatch):
    found = []
    for m in of_kind(model, SeqBoat):
        given = m.activation

        def watched(u, given=given):
            found.append((given(u) > 0.5).double().mean().item())
            return given(u)

        monkeypatch.setattr(m, "activation", watched)
    judge(model, draw)
    return sum(found) / len(found)


@pytest.mark.xfail(
    strict=False,
    reason="rates 1.000 (noise) and 0.9995 (recall), accuracy 0.996 and 1.000: nothing in the "
    "published loss makes attention cost anything, and it helps with both",
)
def test_attention_is_asked_for_where_it_helps(record_property, monkeypatch):
    recall, config = Recall(pairs=8, keys=16).draw, SeqBoatConfig(window=64)
    found = {}
    for name, draw in (("noise", noise), ("recall", recall)):
        model = train(build((config, config), (32,)), draw, steps=800)
        found[name] = (activation_rate(model, draw, monkeypatch), judge(model, draw)[0])
    record_property("activation rate and accuracy", found)
    assert found["noise"][0] <= 0.5
    assert found["recall"][0] > found["noise"][0]


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
