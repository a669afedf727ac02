"""What the delta rule and negative eigenvalues are for, trained from nothing in seconds."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stepscan.ops.delta_rule import delta_rule
from stepscan.ops.linear_attention import linear_attention
from stepscan.ops.linear_scan import linear_scan

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


def parity(n, T):
    x = torch.randint(2, (n, T))
    return x, x.cumsum(1) % 2


class Diagonal(nn.Module):
    """h = a h + (1 - |a|) b, with a between `low` and 1."""

    def __init__(self, low, size=32):
        super().__init__()
        self.low = low
        self.logit, self.write = nn.Embedding(2, size), nn.Embedding(2, size)
        self.out = nn.Sequential(nn.Linear(size, 64), nn.GELU(), nn.Linear(64, 2))

    def forward(self, x):
        a = self.low + (1 - self.low) * torch.sigmoid(3 * self.logit(x))
        h, _ = linear_scan(a, (1 - a.abs()) * self.write(x))
        return self.out(h)


@pytest.mark.parametrize("seed", [0, 1])
def test_parity_wants_negative_eigenvalues(seed):
    """Trained at lengths up to 40, asked at 256."""
    torch.manual_seed(seed)
    found = {}
    for low in (-1.0, 0.0):
        model = Diagonal(low)
        lengths = itertools.cycle([5, 10, 20, 40])
        train(model, lambda it=lengths: parity(128, next(it)), steps=1500, rate=1e-2)
        x, answer = parity(500, 256)
        found[low] = accuracy(model, x, answer.masked_fill(torch.arange(256) < 255, -1))
    assert found[-1.0] >= 0.99, found
    assert found[0.0] <= 0.6, found


PERMUTATIONS = list(itertools.permutations(range(3)))
TABLE = torch.tensor(
    [[PERMUTATIONS.index(tuple(a[i] for i in b)) for b in PERMUTATIONS] for a in PERMUTATIONS]
)


def words(n, T):
    """Elements of S3 and their running products."""
    x = torch.randint(6, (n, T))
    product, answer = torch.zeros(n, dtype=torch.int64), []
    for x_t in x.unbind(1):
        product = TABLE[product, x_t]
        answer.append(product)
    return x, torch.stack(answer, 1)


class Product(nn.Module):
    """One layer, 4 heads of size 3, n writes a token, a learned initial state."""

    def __init__(self, writes, high):
        super().__init__()
        self.writes, self.high = writes, high
        self.key, self.value = (nn.Embedding(6, writes * 12) for _ in range(2))
        self.strength = nn.Embedding(6, writes * 4)
        self.query = nn.Parameter(torch.randn(4, 3))
        self.start = nn.Parameter(torch.randn(4, 3, 3))
        self.out = nn.Sequential(nn.Linear(12, 64), nn.GELU(), nn.Linear(64, 6))

    def forward(self, x):
        shape = (self.writes, 4, 3)
        k, v = F.normalize(self.key(x).unflatten(-1, shape), dim=-1), self.value(x)
        beta = self.high * torch.sigmoid(self.strength(x).unflatten(-1, shape[:2]))
        q = self.query.expand(*x.shape, 4, 3)
        state = self.start.expand(len(x), 4, 3, 3).contiguous()
        y, _ = delta_rule(q, k, 0.1 * v.unflatten(-1, shape), beta=beta, state=state)
        return self.out(y.flatten(2))


@pytest.mark.parametrize("seed", [0, 1])
def test_two_householder_steps_track_the_permutations_of_three_things(seed):
    torch.manual_seed(seed)
    found = {}
    for writes, high in ((2, 2.0), (1, 2.0), (2, 1.0)):
        model = Product(writes, high)
        train(model, lambda: words(64, 24), steps=1200, rate=1e-2)
        found[writes, high] = [accuracy(model, *words(300, T)) for T in (24, 96)]
    assert found[2, 2.0][0] == 1.0, found
    assert found[2, 2.0][1] >= 0.998, found
    assert found[1, 2.0][1] <= 0.5, found
    assert found[2, 1.0][1] <= 0.5, found
