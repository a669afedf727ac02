"""What the delta rule is for, trained from nothing in seconds."""

import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stepscan.ops.delta_rule import delta_rule
from stepscan.ops.linear_attention import linear_attention
from stepscan.tasks.rebinding import Rebinding

pytestmark = pytest.mark.slow


def train(model, draw, *, steps, rate):
    """Cross-entropy at every token that has an answer (-1 is none)."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        x, answer = draw()
        loss = F.cross_entropy(model(x).flatten(0, 1), answer.flatten(), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def accuracy(model, x, answer):
    asked = answer >= 0
    return (model(x).argmax(-1) == answer)[asked].float().mean().item()


TASK = Rebinding(bound=6, times=3, keys=12, values=16)


def rebinding(n, rng):
    """Key and value side by side (a key asked for has the value 16); -1 where nothing is asked."""
    batch = TASK.draw(n, rng)
    told = 2 * TASK.bound * TASK.times
    key, value = batch.input[:, :told].unflatten(1, (-1, 2)).unbind(2)
    queries = batch.input[:, told:]
    x = torch.stack(
        [
            torch.cat([key, queries], 1),
            F.pad(value - TASK.keys, (0, TASK.bound), value=TASK.values),
        ],
        -1,
    )
    return x, F.pad(batch.target[:, told:] - TASK.keys, (key.shape[1], 0), value=-1)


class Memory(nn.Module):
    """Keys of 16 numbers, and one memory."""

    def __init__(self, delta):
        super().__init__()
        self.delta = delta
        self.key, self.value = nn.Embedding(TASK.keys, 16), nn.Embedding(TASK.values, 16)
        self.out = nn.Linear(16, TASK.values)

    def forward(self, x):
        k = F.normalize(self.key(x[..., 0]), dim=-1)[:, :, None]
        writes = (x[..., 1] < TASK.values).float()[..., None]
        v = (self.value(x[..., 1].clamp(max=TASK.values - 1)) * writes)[:, :, None]
        if self.delta:
            y, _ = delta_rule(k, k, v, beta=writes)
        else:
            y, _ = linear_attention(k, k, v)
        return self.out(y.squeeze(2))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_delta_rule_overwrites_where_linear_attention_adds(seed):
    torch.manual_seed(seed)
    rng, found = torch.Generator().manual_seed(seed), {}
    for delta in (True, False):
        model = Memory(delta)
        train(model, lambda: rebinding(64, rng), steps=500, rate=1e-2)
        found[delta] = accuracy(model, *rebinding(1000, rng))
    assert found[True] >= 0.99, found
    assert found[False] <= 0.45, found


@torch.no_grad()
def test_chunks_are_five_times_as_fast_as_the_loop(record_property):
    q, k, v = torch.randn(3, 1, 4096, 4, 32)
    k, beta = F.normalize(k, dim=-1), torch.rand(1, 4096, 4)
    best = {}
    for form in ("chunked", "recurrent") * 3:
        begin = time.perf_counter()
        delta_rule(q, k, v, beta=beta, form=form)
        best[form] = min(best.get(form, 1e9), time.perf_counter() - begin)
    record_property("seconds", best)
    assert best["recurrent"] >= 5 * best["chunked"]
