"""What gates are for, after SelectivBench: no gate, a gate, softmax on its four settings."""

from functools import cache

import pytest
import torch
from small_training import build, train
from torch.nn import functional as F

from stepscan.mixers.attention import AttentionConfig
from stepscan.mixers.gla import GLAConfig
from stepscan.mixers.linear_attention import LinearAttentionConfig
from stepscan.tasks.rule_grammar import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.plain]

SEEDS = range(4)
LADDER = {"ungated": LinearAttentionConfig(), "gated": GLAConfig(), "softmax": AttentionConfig()}
every_setting = pytest.mark.parametrize("setting", SETTINGS)


@cache
@torch.no_grad()
def learned(setting, name):
    """Legal answers (1 is all), and nats above the truth's own entropy: means over the seeds."""
    trained_on, tested_on = SETTINGS[setting]
    found = []
    for seed in SEEDS:
        model = build(
            (LADDER[name],) * 2, (trained_on.vocab,), answers=trained_on.symbols, seed=seed
        )
        with torch.enable_grad():
            train(model, trained_on.draw, steps=300, seed=seed)
        batch = tested_on.draw(512, torch.Generator().manual_seed(7))
        said = model(batch.input)[0]
        entropy = -torch.xlogy(batch.truth, batch.truth).sum(-1).mean()
        cost = -(batch.truth * F.log_softmax(said, -1)).sum(-1).mean()
        found.append((tested_on.score(said.argmax(-1), batch), (cost - entropy).item()))
    return torch.tensor(found).mean(0).tolist()


@every_setting
def test_a_gate_helps(setting, record_property):
    found = {name: learned(setting, name) for name in ("ungated", "gated")}
    record_property("score and excess nats", found)
    assert found["ungated"][0] < found["gated"][0]
    assert found["ungated"][1] > found["gated"][1]


@every_setting
@pytest.mark.xfail(
    strict=False,
    reason="gated ahead of softmax: complexity 0.997 against 0.973 (0.048, 0.169 nats), noise "
    "0.9988 against 0.9969 (0.021, 0.030), longer gaps 0.727 against 0.702 (1.06, 1.17); behind it "
    "with illegal gaps alone, 0.9223 against 0.9230 (0.322, 0.316)",
)
def test_softmax_helps_more(setting, record_property):
    found = {name: learned(setting, name) for name in ("gated", "softmax")}
    record_property("score and excess nats", found)
    assert found["gated"][0] < found["softmax"][0]
    assert found["gated"][1] > found["softmax"][1]
