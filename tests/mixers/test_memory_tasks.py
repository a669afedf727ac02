"""What several memories are for: small trainings, each against its single memory."""

from copy import deepcopy

import pytest
import torch
from small_training import build, judge, train

from stepscan.mixers.gated_delta_net import GatedDeltaNetConfig
from stepscan.mixers.memory_caching import MemoryCachingConfig
from stepscan.mixers.mixture_of_memories import MixtureOfMemories, MixtureOfMemoriesConfig
from stepscan.tasks.interleaved_recall import InterleavedRecall
from stepscan.tasks.recall import Recall

pytestmark = [pytest.mark.slow, pytest.mark.plain]

WIDTH = 32


def learned(config, task, *, steps, balance=0.0):
    """Two blocks of this mixer, trained."""
    model, losses, hooks = build((config, config), (task.vocab,), width=WIDTH), [], []
    for m in model.modules():
        if balance and isinstance(m, MixtureOfMemories):
            add = lambda m, args: losses.append(balance * m.balance_loss(args[0]))  # noqa: E731
            hooks.append(m.register_forward_pre_hook(add))

    def extra():
        total = sum(losses)
        losses.clear()
        return total

    train(model, task.draw, steps=steps, extra=extra, rate=5e-3)
    for hook in hooks:
        hook.remove()
    return model


def test_several_memories_keep_two_streams_apart(record_property):
    """Ten points above a single memory of the same size, with no memory left idle."""
    task = InterleavedRecall(pairs=6, keys=12)
    many = MixtureOfMemoriesConfig(heads=1, key_ratio=0.25, value_ratio=0.5)  # 5 x 8 x 16
    one = GatedDeltaNetConfig(heads=1, key_ratio=0.625, value_ratio=1.0)  # 20 x 32
    mixture = learned(many, task, steps=600, balance=0.01)
    single = learned(one, task, steps=600)
    found = judge(mixture, task.draw)[0], judge(single, task.draw)[0]
    shares = []
    for m in mixture.modules():
        if isinstance(m, MixtureOfMemories):
            used = lambda m, args: shares.append((m.route(args[0]) > 0).double().mean((0, 1)))  # noqa: E731
            m.register_forward_pre_hook(used)
    mixture(task.draw(64, torch.Generator().manual_seed(8)).input)
    record_property("mixture and single", found)
    record_property("shares", shares)
    assert min(share.min() for share in shares) / 2 > 0.05  # two memories a token
    assert found[0] >= found[1] + 0.1


TASK = Recall(pairs=16, keys=16)
SMALL = {"heads": 1, "key_ratio": 0.25, "value_ratio": 0.5}


@pytest.fixture(scope="module")
def by_segment():
    """Models with a small memory; without segments it is `gated_delta_net`."""
    found = {}
    for segment in (None, 16, 8):
        read = "residual" if segment is None else "gated"
        config = MemoryCachingConfig(segment=segment, read=read, **SMALL)
        found[segment] = learned(config, TASK, steps=600)
    return found


def test_more_copies_recall_more(by_segment, record_property):
    found = {segment: judge(model, TASK.draw)[0] for segment, model in by_segment.items()}
    record_property("recall by segment", found)
    assert found[None] <= found[16] <= found[8]


def test_a_cache_put_on_a_trained_memory_does_not_hurt(by_segment, record_property):
    found = {"none": judge(by_segment[None], TASK.draw)[0]}
    for read in ("residual", "mean"):
        model = deepcopy(by_segment[None])
        for block in model.blocks:
            cached = MemoryCachingConfig(segment=16, read=read, **SMALL).build(WIDTH)
            cached.load_state_dict(block.mixer.state_dict())
            block.mixer = cached
        found[read] = judge(model, TASK.draw)[0]
    record_property("put on afterwards", found)
    assert max(found["residual"], found["mean"]) >= found["none"]
