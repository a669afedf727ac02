"""What the delta rule is for, trained from nothing in seconds."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stepscan.ops.delta_rule import delta_rule
from stepscan.ops.linear_attention import linear_attention

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


KEYS, VALUES, BOUND, TIMES = 12, 16, 6, 3


def rebinding(n):
    """6 keys, each bound 3 times in some order, then asked for: the last binding is right."""
    key = torch.rand(n, KEYS).argsort(1)[:, :BOUND]
    order = torch.rand(n, BOUND * TIMES).argsort(1) % BOUND
    told, value = key.gather(1, order), torch.randint(VALUES, (n, BOUND * TIMES))
    ask = key.gather(1, torch.rand(n, BOUND).argsort(1))
    last = (told[:, None] == ask[..., None]).long() * torch.arange(1, BOUND * TIMES + 1)
    answer = value.gather(1, last.argmax(-1))
    x = torch.stack([torch.cat([told, ask], 1), F.pad(value, (0, BOUND), value=VALUES)], -1)
    return x, torch.cat([torch.full_like(told, -1), answer], 1)


class Memory(nn.Module):
    """Keys of 16 numbers, and one memory."""

    def __init__(self, delta):
        super().__init__()
        self.delta = delta
        self.key, self.value = nn.Embedding(KEYS, 16), nn.Embedding(VALUES, 16)
        self.out = nn.Linear(16, VALUES)

    def forward(self, x):
        k = F.normalize(self.key(x[..., 0]), dim=-1)[:, :, None]
        writes = (x[..., 1] < VALUES).float()[..., None]
        v = (self.value(x[..., 1].clamp(max=VALUES - 1)) * writes)[:, :, None]
        if self.delta:
            y, _ = delta_rule(k, k, v, beta=writes)
        else:
            y, _ = linear_attention(k, k, v)
        return self.out(y.squeeze(2))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_delta_rule_overwrites_where_linear_attention_adds(seed):
    torch.manual_seed(seed)
    found = {}
    for delta in (True, False):
        model = Memory(delta)
        train(model, lambda: rebinding(64), steps=500, rate=1e-2)
        found[delta] = accuracy(model, *rebinding(1000))
    assert found[True] >= 0.99, found
    assert found[False] <= 0.45, found
