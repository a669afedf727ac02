"""What sparse and switched attention is for: small trainings."""

import math

import pytest
import torch
from small_training import build, judge, train

from stepscan.mixers.attention import AttentionConfig
from stepscan.mixers.gla import GLAConfig
from stepscan.mixers.longvq import LongVQ, LongVQConfig
from stepscan.mixers.ngram_head import NgramHeadConfig
from stepscan.mixers.oryx import Oryx, OryxConfig
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


def test_attention_is_asked_for_where_it_helps(record_property, monkeypatch):
    recall, config = Recall(pairs=8, keys=16).draw, SeqBoatConfig(window=64)
    found = {}
    for name, draw in (("noise", noise), ("recall", recall)):
        model = train(build((config, config), (32,)), draw, steps=800)
        found[name] = (activation_rate(model, draw, monkeypatch), judge(model, draw)[0])
    record_property("activation rate and accuracy", found)
    assert found["noise"][0] <= 0.5
    assert found["recall"][0] > found["noise"][0]


def chains(n, rng, T=64, symbols=8):
    """Markov chains, each with transitions of its own: two or three symbols may follow each."""
    logits = torch.randn(n, symbols, symbols, generator=rng) * 3
    p = logits.softmax(-1)
    token = torch.randint(symbols, (n,), generator=rng)
    tokens = [token]
    for _ in range(T):
        row = p[torch.arange(n), token]
        token = torch.multinomial(row, 1, generator=rng)[:, 0]
        tokens.append(token)
    tokens = torch.stack(tokens, 1)
    return Batch(tokens[:, :-1], tokens[:, 1:], torch.ones(n, T, dtype=torch.bool))


def test_both_modes_of_one_model_are_as_good_as_models_of_their_own(record_property):
    def switch(model, mode):
        for m in of_kind(model, Oryx):
            m.mode = mode

    found = {}
    for mode in ("attention", "recurrent"):
        twin = train(build((OryxConfig(mode=mode),) * 2, (8,)), chains, steps=600)
        found[mode] = judge(twin, chains)[1]
    both = build((OryxConfig(),) * 2, (8,))
    modes = ("attention", "recurrent")
    train(both, chains, steps=1200, before=lambda step, _: switch(both, modes[step % 2]))
    for mode in modes:
        switch(both, mode)
        found[f"both, {mode}"] = judge(both, chains)[1]
    record_property("losses", found)
    for mode in modes:
        assert found[f"both, {mode}"] <= 1.02 * found[mode]


def test_routing_finds_what_a_window_of_the_same_cost_cannot(record_property):
    task = Recall(pairs=24, keys=32)
    local = AttentionConfig(window=9)  # a token of 72 meets about as many in one of 8 clusters
    routed = RoutingAttentionConfig(clusters=8, centroid_decay=0.99)
    found = {}
    for name, layer in (("window", local), ("routing", routed)):
        model = build((local, layer), (task.vocab,))
        seen = []
        for m in of_kind(model, RoutingAttention):
            keep = lambda m, args, seen=seen: seen.append((m, args[0].detach()))  # noqa: E731
            m.register_forward_pre_hook(keep)

        def learn(*_, seen=seen):
            while seen:
                m, x = seen.pop()
                m.learn_centroids(x)

        train(model, task.draw, steps=800, before=learn)
        found[name] = judge(model, task.draw)
    record_property("accuracy and loss", found)
    assert found["routing"][1] < found["window"][1]


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


@pytest.mark.xfail(strict=False, reason="1.61: the largest cluster grows faster than the mean one")
def test_work_grows_with_the_power_of_three_halves(record_property):
    slope = exponent_of_routing(filled=True)
    record_property("exponent", slope)
    assert slope <= 1.6


def test_attention_to_codes_retrieves_what_a_moving_average_cannot(record_property):
    task = Recall(pairs=8, keys=16)
    found = {}
    for name in ("average", "codes"):
        model = build((LongVQConfig(codes=32),) * 2, (task.vocab,))
        if name == "average":
            for m in of_kind(model, LongVQ):
                m.attended.weight.detach().zero_()
                m.attended.weight.requires_grad_(False)
        train(model, task.draw, steps=1000)
        found[name] = judge(model, task.draw)
    record_property("accuracy and loss", found)
    assert found["codes"][0] > found["average"][0]


def automata(n, rng, T=96, states=6, symbols=8):
    """Walks through random automata: two to four symbols leave each state. Also the truth."""
    leaves = 2 + torch.randint(3, (n, states, 1), generator=rng)
    order = torch.rand(n, states, symbols, generator=rng).argsort(-1).argsort(-1)
    p = torch.rand(n, states, symbols, generator=rng).masked_fill(order >= leaves, 0.0)
    p = p / p.sum(-1, keepdim=True)
    to = torch.randint(states, (n, states, symbols), generator=rng)
    row, state = torch.arange(n), torch.randint(states, (n,), generator=rng)
    tokens, truth = [], []
    for _ in range(T + 1):
        truth.append(p[row, state])
        tokens.append(torch.multinomial(truth[-1], 1, generator=rng)[:, 0])
        state = to[row, state, tokens[-1]]
    tokens, truth = torch.stack(tokens, 1), torch.stack(truth, 1)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.ones(n, T, dtype=torch.bool))
    return batch, truth[:, 1:]


def test_ngram_heads_learn_a_language_in_context(record_property):
    """The distance to the true next symbol's distribution falls by a fifth."""
    found = {}
    for name, layers in (
        ("gla", (GLAConfig(),) * 2),
        ("with heads", (GLAConfig(), NgramHeadConfig(), GLAConfig())),
    ):
        model = build(layers, (8,))
        train(model, lambda n, rng: automata(n, rng)[0], steps=800)
        batch, truth = automata(256, torch.Generator().manual_seed(9))
        with torch.no_grad():
            p = model(batch.input)[0].softmax(-1)
        found[name] = (p - truth).abs().sum(-1).mean().item() / 2
    record_property("total variation", found)
    assert found["with heads"] <= 0.8 * found["gla"]
