"""What several memories are for: small trainings, each against its single memory."""

from copy import deepcopy

import pytest
import torch
from small_training import build, judge, train

from stepscan.mixers.gated_delta_net import GatedDeltaNetConfig
from stepscan.mixers.memory_caching import MemoryCachingConfig
from stepscan.mixers.mixture_of_memories import MixtureOfMemories, MixtureOfMemoriesConfig
from stepscan.tasks.base import Batch
from stepscan.tasks.recall import Recall

pytestmark = [pytest.mark.slow, pytest.mark.plain]


def learned(config, draw, tokens, *, balance=0.0):
    """Two blocks of this mixer, trained."""
    model, losses, hooks = build((config, config), tokens), [], []
    for m in model.modules():
        if balance and isinstance(m, MixtureOfMemories):
            add = lambda m, args: losses.append(balance * m.balance_loss(args[0]))  # noqa: E731
            hooks.append(m.register_forward_pre_hook(add))

    def extra():
        total = sum(losses)
        losses.clear()
        return total

    train(model, draw, steps=STEPS, extra=extra)
    for hook in hooks:
        hook.remove()
    return model


PAIRS, ALPHABET = 8, 16
STEPS = 800


def two_streams(n, rng):
    """Two recalls over the same keys, merged token by token; column 1 says whose a token is."""
    task = Recall(pairs=PAIRS, keys=ALPHABET)
    parts = [task.draw(n, rng) for _ in range(2)]
    T = 3 * PAIRS
    whose = (torch.rand(n, 2 * T, generator=rng).argsort(1) >= T).long()
    at = torch.where(whose == 1, whose.cumsum(1) - 1, (1 - whose).cumsum(1) - 1)

    def merged(name):
        both = torch.stack([getattr(part, name) for part in parts], 1)  # [n 2 T]
        return both.flatten(1).gather(1, whose * T + at)

    return Batch(torch.stack([merged("input"), whose], -1), merged("target"), merged("asked"))


def test_several_memories_keep_two_streams_apart(record_property):
    """Ten points above a single memory of the same size, with no memory left idle."""
    tokens = (2 * ALPHABET, 2)
    many = MixtureOfMemoriesConfig(heads=2, key_ratio=0.5, value_ratio=1.0)
    one = GatedDeltaNetConfig(heads=2, key_ratio=1.125, value_ratio=2.25)  # 5 x 0.5 of 1.125 x 2.25
    mixture = learned(many, two_streams, tokens, balance=0.01)
    single = learned(one, two_streams, tokens)
    found = judge(mixture, two_streams)[0], judge(single, two_streams)[0]
    record_property("mixture and single", found)
    shares = []
    for m in mixture.modules():
        if isinstance(m, MixtureOfMemories):
            used = lambda m, args: shares.append((m.route(args[0]) > 0).double().mean((0, 1)))  # noqa: E731
            m.register_forward_pre_hook(used)
    mixture(two_streams(64, torch.Generator().manual_seed(8)).input)
    record_property("shares", shares)
    assert min(share.min() for share in shares) / 2 > 0.05  # two memories a token
    assert found[0] >= found[1] + 0.1


TASK = Recall(pairs=16, keys=32)
SMALL = {"heads": 1, "key_ratio": 0.25, "value_ratio": 0.5}


@pytest.fixture(scope="module")
def by_segment():
    """Models with a small memory; without segments it is `gated_delta_net`."""
    found = {}
    for segment in (None, 16, 4):
        read = "residual" if segment is None else "gated"
        config = MemoryCachingConfig(segment=segment, read=read, **SMALL)
        found[segment] = learned(config, TASK.draw, (TASK.vocab,))
    return found


def test_more_copies_recall_more(by_segment, record_property):
    found = {segment: judge(model, TASK.draw)[0] for segment, model in by_segment.items()}
    record_property("recall by segment", found)
    assert found[None] <= found[16] <= found[4]


def test_a_cache_put_on_a_trained_memory_does_not_hurt(by_segment, record_property):
    found = {"none": judge(by_segment[None], TASK.draw)[0]}
    for read in ("residual", "mean"):
        model = deepcopy(by_segment[None])
        for block in model.blocks:
            cached = MemoryCachingConfig(segment=16, read=read, **SMALL).build(64)
            cached.load_state_dict(block.mixer.state_dict())
            block.mixer = cached
        found[read] = judge(model, TASK.draw)[0]
    record_property("put on afterwards", found)
    assert max(found["residual"], found["mean"]) >= found["none"]
