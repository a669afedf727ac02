"""Curricula of memory: what happens to time constants and to earlier spans as N grows.

Source: Khajehabdollahi et al. 2024, arXiv:2309.12927, who train up to N = 100 with 500 units.
"""

from copy import deepcopy
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stepscan.mixers.leaky_rnn import LeakyRNNConfig
from stepscan.tasks.memory_span import draw_heads, multi_head, single_head
from stepscan.tasks.n_parity import NParity

pytestmark = [pytest.mark.slow, pytest.mark.plain]

SEEDS = range(4)
LARGEST = 10
BUDGET = 1000  # steps of the whole curriculum
LEARNED = 0.98  # accuracy that ends a stage, published
TASK = NParity(length=40)


class Network(nn.Module):
    """One leaky network with trained time constants, and a head for each N."""

    def __init__(self, width=64):
        super().__init__()
        self.embed = nn.Embedding(2, width)
        self.mixer = LeakyRNNConfig(longest=3.0).build(width)
        self.heads = nn.Linear(width, 2 * (LARGEST - 1))

    def forward(self, bits):
        h, _ = self.mixer(self.embed(bits))
        return self.heads(h).unflatten(-1, (LARGEST - 1, 2))

    def without(self, units):
        """A copy in which nothing hears these units."""
        model = deepcopy(self)
        for weight in (model.mixer.recurrent_weight, model.heads.weight):
            weight.data[:, units] = 0
        return model

    def mean_time(self):
        return self.mixer.log_time.exp().mean().item()


def right(model, stage, *, seed=7):
    """Accuracy of each head of a stage."""
    drawn = draw_heads(stage, 256, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        said = model(drawn.input)[:, :, [t.span - 2 for t in stage]].argmax(-1)
    hit = (said == drawn.target) & drawn.asked
    return (hit.sum((0, 1)) / drawn.asked.sum((0, 1))).tolist()


@cache
def learned(kind, seed):
    """Train stage by stage, on to the next N as soon as one is learned."""
    torch.manual_seed(seed)
    model, rng = Network(), torch.Generator().manual_seed(seed + 100)
    stages = {"single": single_head, "multi": multi_head}[kind](TASK, LARGEST)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0)
    reached, times, at = 1, [model.mean_time()], 0
    for step in range(1, BUDGET + 1):
        stage = stages[at]
        drawn = draw_heads(stage, 64, rng)
        said = model(drawn.input)[:, :, [t.span - 2 for t in stage]]
        loss = F.cross_entropy(said[drawn.asked], drawn.target[drawn.asked])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0 and min(right(model, stage, seed=step)) >= LEARNED:
            reached, at = stage[-1].span, at + 1
            times.append(model.mean_time())
            if at == len(stages):
                break
    return {"reached": reached, "steps": step, "mean tau": times, "model": model}


def told(found):
    return {key: value for key, value in found.items() if key != "model"}


def test_several_heads_reach_a_larger_span(record_property):
    """In equal steps, or as large a span in fewer; in the sum over seeds."""
    found = {kind: [learned(kind, seed) for seed in SEEDS] for kind in ("single", "multi")}
    record_property("runs", {kind: [told(run) for run in runs] for kind, runs in found.items()})
    total = {
        kind: (sum(run["reached"] for run in runs), -sum(run["steps"] for run in runs))
        for kind, runs in found.items()
    }
    assert total["multi"] > total["single"]


@pytest.mark.xfail(
    strict=False, reason="correlation of N and time constant -0.45 to -0.52, 4 seeds"
)
def test_one_head_grows_its_time_constants_and_several_do_not(record_property):
    """Growth of the mean tau from N = 2 on: above 0 with one head for all seeds (a sign test at
    1/16), within 15 % with several, and larger with one.
    """
    growth = {
        kind: [(t := learned(kind, seed)["mean tau"])[-1] / t[1] - 1 for seed in SEEDS]
        for kind in ("single", "multi")
    }
    record_property("growth", growth)
    assert min(growth["single"]) > 0
    assert max(abs(g) for g in growth["multi"]) <= 0.15
    assert all(a > b for a, b in zip(growth["single"], growth["multi"], strict=True))


def test_several_heads_forget_nothing_and_one_does(record_property):
    """Accuracy on every N before the last that was learned: 0.95 with several heads; with one, some
    N below 0.9.
    """
    least = {}
    for kind in ("single", "multi"):
        runs = [learned(kind, seed) for seed in SEEDS]
        least[kind] = [
            min(right(run["model"], multi_head(TASK, run["reached"])[-1][:-1])) for run in runs
        ]
    record_property("least accuracy on earlier spans", least)
    assert min(least["multi"]) >= 0.95
    assert max(least["single"]) <= 0.9


@pytest.mark.xfail(strict=False, reason="0.21 lost, at most 0.05 wanted")
def test_several_heads_bear_the_loss_of_a_tenth_of_the_units(record_property):
    """Six units of 64 silenced, ten draws: in the mean 0.05 of accuracy lost at most, and less than
    with one head, on the last N that was learned.
    """
    lost, rng = {}, torch.Generator().manual_seed(3)
    for kind in ("single", "multi"):
        each = []
        for seed in SEEDS:
            run = learned(kind, seed)
            last = multi_head(TASK, run["reached"])[-1][-1:]
            whole = right(run["model"], last)[0]
            for _ in range(10):
                dead = torch.randperm(64, generator=rng)[:6]
                each.append(whole - right(run["model"].without(dead), last)[0])
        lost[kind] = sum(each) / len(each)
    record_property("accuracy lost", lost)
    assert lost["multi"] <= 0.05
    assert lost["multi"] <= lost["single"]
