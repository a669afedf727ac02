"""Aaren, Taylor softmax, Sessa and MinMax: equations, laws of options, and what they learn."""

import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from laws import assert_near, causal_law, live_law, reset_law, rows_law, split_law
from torch import nn
from torch.nn import functional as F

from stepscan import state as states
from stepscan.layers.taylor import TaylorFeatures
from stepscan.mixers import MIXERS
from stepscan.mixers.causal_conv import CausalConvConfig
from stepscan.models import ModelConfig, NextToken, SequenceModel
from stepscan.ops.linear_attention import linear_attention
from stepscan.tasks.recall import Recall

WIDTH, T = 16, 20
OPTIONS = {
    "matrices": ("minmax", {"size": 4, "gate": False}),
    "wide": ("minmax", {"expansion": 1.5, "size": 3}),
    "heads": ("sessa", {"heads": 4}),
    "no positions": ("sessa", {"rotary": False, "max_gain": 0.5}),
    "norm": ("taylor_softmax", {"order": 3, "key_size": 3, "read": "norm"}),
    "gate": ("taylor_softmax", {"order": 1, "read": "gate"}),
    "fourth order": ("taylor_softmax", {"order": 4, "key_size": 2}),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_laws_hold_for_every_option(option):
    name, options = OPTIONS[option]
    config = MIXERS[name](**options)
    mixer, x = config.build(WIDTH).double(), torch.randn(3, T, WIDTH).double()
    resets, params = torch.rand(3, T) < 0.15, list(mixer.parameters())
    step = lambda xs, state, resets: mixer(xs[0], state, resets)  # noqa: E731
    state = states.detach(mixer(torch.randn(3, T, WIDTH).double(), None, resets)[1])
    split_law(step, (x,), state, [0, 3, 4, 11], resets=resets, params=params)
    reset_law(step, (x,), state, resets, params=params)
    rows_law(step, (x,), state, resets=resets, params=params)
    causal_law(step, (x,), 9)
    live_law(config.build(WIDTH), x.float())


# Equations, for one sequence, head by head and token by token ------------------------------------


def softmax_mean(scores, values):
    weights = [math.exp(s) for s in scores]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def aaren(mixer, x):
    k, v = ((x @ m.weight.T).unflatten(-1, (4, -1)) for m in (mixer.keys, mixer.values))
    scores = (mixer.query * k).sum(-1) / k.shape[-1] ** 0.5
    heads = [
        torch.stack([softmax_mean(scores[: t + 1, h], v[: t + 1, h]) for t in range(len(x))])
        for h in range(4)
    ]
    return torch.cat(heads, 1) @ mixer.out.weight.T


def taylor_softmax(mixer, x):
    config, rows = mixer.config, []
    q, k, v = (
        p.unflatten(-1, (config.heads, -1)) for p in (x @ mixer.qkv.weight.T).split(mixer.sizes, -1)
    )
    for t in range(len(x)):
        heads = []
        for h in range(config.heads):
            s = [(q[t, h] @ k[j, h]).item() / config.key_size**0.5 for j in range(t + 1)]
            kernel = [sum(a**n / math.factorial(n) for n in range(config.order + 1)) for a in s]
            y = sum(w * v[j, h] for j, w in enumerate(kernel))
            if config.read == "denominator":
                y = y / sum(kernel)
            if config.read == "norm":
                y = y / (y.square().mean() + torch.finfo(y.dtype).eps).sqrt() * mixer.norm.weight
            if config.read == "gate":
                y = y * torch.sigmoid(mixer.gate(x[t])[h])
            heads.append(y)
        rows.append(torch.cat(heads))
    return torch.stack(rows) @ mixer.out.weight.T


def sessa(mixer, x):
    a, g = mixer.inputs(x).chunk(2, -1)
    a = 0.5 * a * (1 + torch.erf(a / 2**0.5))
    q, k, v = (p.unflatten(-1, (mixer.config.heads, -1)) for p in mixer.qkv(a).chunk(3, -1))
    size = q.shape[-1]
    angle = torch.arange(len(x))[:, None] * 1e4 ** (-torch.arange(size // 2).double() / (size // 2))
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]
    q, k = (
        torch.cat([p.real, p.imag], -1)
        for p in (torch.complex(*p.chunk(2, -1)) * turn for p in (q, k))
    )
    q2, k2 = mixer.feedback(a).chunk(2, -1)
    out = []
    for t in range(len(x)):
        past = range(t + 1)
        f = [
            softmax_mean([(q[t, h] @ k[j, h]).item() / size**0.5 for j in past], v[: t + 1, h])
            for h in range(mixer.config.heads)
        ]
        s = torch.cat(f) if mixer.join is None else mixer.join.weight @ torch.cat(f)
        if t:
            gain = 0.999 * torch.tanh(mixer.gain.weight[0] @ a[t] + mixer.gain_bias)
            scores = [(q2[t] @ k2[j]).item() / WIDTH**0.5 for j in range(t)]
            s = s + gain * softmax_mean(scores, out)
        out.append(s)
    return mixer.out(torch.stack(out) * g)


def minmax(mixer, x):
    size, hidden, out = mixer.config.size, torch.zeros(mixer.inner, dtype=x.dtype), []
    for u in x:
        r, s = mixer.upper(u), mixer.lower(u)
        if size == 1:
            hidden = torch.maximum(torch.minimum(r, hidden), s)
        else:
            pairs = torch.minimum(r.view(-1, size, size), hidden.view(-1, 1, size))
            hidden = torch.maximum(pairs.max(-1).values.flatten(), s)
        out.append(hidden * torch.sigmoid(mixer.gate(u)))
    return torch.stack(out) @ mixer.out.weight.T


@pytest.mark.parametrize(
    ("equations", "options"),
    [
        (aaren, {}),
        (taylor_softmax, {"key_size": 3}),
        (taylor_softmax, {"key_size": 2, "order": 5, "read": "norm"}),
        (taylor_softmax, {"key_size": 2, "order": 1, "read": "gate"}),
        (sessa, {}),
        (sessa, {"heads": 2}),
        (minmax, {}),
        (minmax, {"size": 4}),
    ],
)
@torch.no_grad()
def test_follows_the_published_equations(equations, options):
    mixer = MIXERS[equations.__name__](**options).build(WIDTH).double()
    for p in mixer.parameters():
        p.add_(0.1 * torch.randn_like(p))
    x = torch.randn(2, 12, WIDTH).double()
    want = torch.stack([equations(mixer, row) for row in x])
    assert_near(mixer(x)[0], want, what=equations.__name__)


# Softmax as a sum of recurrent networks ----------------------------------------------------------


def test_the_series_becomes_softmax_by_order_16_and_falls_factorially():
    q, k, v = torch.randn(3, 2, 30, 2, 4, dtype=torch.float64)
    scores = torch.einsum("bthk,bshk->bhts", q, k)
    q = q * 2 / scores.abs().max()  # the largest product is 2
    scores = torch.einsum("bthk,bshk->bhts", q, k)
    hidden = torch.ones(30, 30, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    want = torch.einsum("bhts,bshv->bthv", weights, v)
    error = {}
    for order in (2, 4, 8, 12, 16):
        phi = TaylorFeatures(4, order).double()
        y, _ = linear_attention(phi(q), phi(k), v, normalize=True)
        error[order] = (y - want).abs().max().item()
    assert error[16] < 1e-8
    for order, found in error.items():  # the remainder: at most a few 2^(n + 1) / (n + 1)!
        assert found < 50 * 2 ** (order + 1) / math.factorial(order + 1) + 1e-9, error


def test_order_one_is_linear_attention_and_the_sum_of_the_values():
    q, k, v = torch.randn(3, 2, 30, 2, 4, dtype=torch.float64)
    phi = TaylorFeatures(4, 1).double()
    y, _ = linear_attention(phi(q), phi(k), v)
    assert_near(y, v.cumsum(1) + linear_attention(q, k, v)[0], what="order 1")


def test_the_parts_of_softmax_can_be_told_apart():
    """A denominator is a gate: with it the norm changes nothing but the length of y."""
    x = torch.randn(2, T, WIDTH).double()
    bare = MIXERS["taylor_softmax"](read="norm").build(WIDTH).double()
    full = MIXERS["taylor_softmax"]().build(WIDTH).double()
    full.load_state_dict(bare.state_dict(), strict=False)
    full.out.weight.data.copy_(torch.eye(WIDTH))
    bare.out.weight.data.copy_(torch.eye(WIDTH))
    y, z = (m(x)[0].unflatten(-1, (4, -1)) for m in (bare, full))
    assert_near(F.normalize(y, dim=-1), F.normalize(z, dim=-1), what="direction of y")


# What they are for: small training runs, numbers in docs/log.md ----------------------------------


def fit(model, loss_of, *, steps, rate):
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(step).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


class Tagger(nn.Module):
    """Says something after every token, from one mixer alone."""

    def __init__(self, config, vocab, classes, width=WIDTH):
        super().__init__()
        self.embed, self.mixer = nn.Embedding(vocab, width), config.build(width)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, tokens):
        return self.head(self.mixer(self.embed(tokens))[0])


PAIRS, VALUES, NOISE = 4, 8, 8


def sparse_pairs(n, lag, rng):
    """Four tokens, each a key with its value, somewhere in noise; then a key is asked for."""
    tokens = torch.randint(NOISE, (n, lag), generator=rng)
    at = torch.rand(n, lag, generator=rng).argsort(1)[:, :PAIRS]
    value = torch.randint(VALUES, (n, PAIRS), generator=rng)
    tokens.scatter_(1, at, NOISE + torch.arange(PAIRS) * VALUES + value)
    key = torch.randint(PAIRS, (n, 1), generator=rng)
    return torch.cat([tokens, NOISE + PAIRS * VALUES + key], 1), value.gather(1, key)[:, 0]


def retrieval(config, seed, *, lag=32, steps=600):
    """Accuracy at the lag of training and at four times that."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    model = Tagger(config, NOISE + PAIRS * VALUES + PAIRS, VALUES)

    def ask(n, lag):
        tokens, target = sparse_pairs(n, lag, rng)
        return model(tokens)[:, -1], target

    fit(model, lambda _: F.cross_entropy(*ask(64, lag)), steps=steps, rate=1e-2)
    found = []
    for far in (lag, 4 * lag):
        with torch.no_grad():
            said, target = ask(512, far)
        found.append((said.argmax(-1) == target).double().mean().item())
    return found


@pytest.mark.slow
def test_sessa_finds_sparse_pairs_at_four_times_the_lag():
    found = {
        name: [retrieval(MIXERS[name](**options), seed) for seed in range(2)]
        for name, options in (("sessa", {}), ("attention", {"heads": 1}), ("mamba", {}))
    }
    far = {name: sum(each[1] for each in runs) for name, runs in found.items()}
    assert far["sessa"] > max(far["attention"], far["mamba"]), found


def recall_accuracy(layers, *, seed, steps=1200, pairs=8, keys=16):
    torch.manual_seed(seed)
    rng, task = torch.Generator().manual_seed(seed), Recall(pairs=pairs, keys=keys)
    model = SequenceModel(
        ModelConfig(width=16, tokens=(task.vocab,), head=NextToken(vocab=task.vocab), layers=layers)
    )

    def ask(n):
        batch = task.draw(n, rng)
        return model(batch.input)[0][batch.asked], batch.target[batch.asked]

    fit(model, lambda _: F.cross_entropy(*ask(64)), steps=steps, rate=1e-2)
    with torch.no_grad():
        said, target = ask(512)
    return (said.argmax(-1) == target).double().mean().item()


@pytest.mark.slow
def test_recall_rises_with_the_order_towards_softmax():
    shift = CausalConvConfig(window=2)
    taylor, softmax = MIXERS["taylor_softmax"], MIXERS["attention"]
    found = {
        order: recall_accuracy((shift, taylor(order=order, key_size=4, read="norm")), seed=0)
        for order in (1, 2, 4)
    }
    found["softmax"] = recall_accuracy((shift, softmax(rotary=False)), seed=0)
    assert found[1] < found[2] < found[4] < found["softmax"] + 0.02, found


DATA = ("JapaneseVowels", "BasicMotions", "ItalyPowerDemand")


def read(name, part):
    """Series of sktime's embedded sets: dimensions between colons, the class at the end."""
    root = Path(find_spec("sktime").origin).parent / "datasets" / "data" / name
    lines = (root / f"{name}_{part}.ts").read_text().partition("@data")[2].split()
    rows, labels = [], []
    for line in lines:
        *dims, label = line.split(":")
        rows.append(torch.tensor([[float(x) for x in d.split(",")] for d in dims]).T)
        labels.append(label)
    return rows, labels


class Classifier(nn.Module):
    """Two blocks, and the mean of what they say at each step of the series."""

    def __init__(self, config, inputs, classes, width=32):
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.mixers = nn.ModuleList(config.build(width) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(2)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x, lengths):
        place, half = torch.arange(x.shape[1])[:, None], self.embed.out_features // 2
        angle = place * 1e4 ** (-torch.arange(half) / half)
        h = self.embed(x) + torch.cat([angle.sin(), angle.cos()], -1)
        for i, (mixer, mlp) in enumerate(zip(self.mixers, self.mlps, strict=True)):
            h = h + mixer(self.norms[2 * i](h))[0]
            h = h + mlp(self.norms[2 * i + 1](h))
        seen = place.T < lengths[:, None]
        return self.head((h * seen[..., None]).sum(1) / lengths[:, None])


def classify(config, name, seed, steps=300):
    (rows, labels), (test_rows, test_labels) = read(name, "TRAIN"), read(name, "TEST")
    classes = sorted(set(labels))
    every = torch.cat(rows)
    mean, scale = every.mean(0), every.std(0)

    def packed(rows, labels):
        lengths = torch.tensor([len(r) for r in rows])
        x = nn.utils.rnn.pad_sequence([(r - mean) / scale for r in rows], batch_first=True)
        return x, lengths, torch.tensor([classes.index(c) for c in labels])

    torch.manual_seed(seed)
    x, lengths, y = packed(rows, labels)
    model = Classifier(config, x.shape[-1], len(classes))

    def loss_of(_):
        some = torch.randint(len(x), (32,))
        return F.cross_entropy(model(x[some], lengths[some]), y[some])

    fit(model, loss_of, steps=steps, rate=3e-3)
    with torch.no_grad():
        x, lengths, y = packed(test_rows, test_labels)
        return (model(x, lengths).argmax(-1) == y).double().mean().item()


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("sktime"), reason="pip install 'stepscan[timeseries]'")
@pytest.mark.parametrize("name", DATA)
def test_aaren_classifies_as_well_as_causal_attention(name):
    found = {
        mixer: sum(classify(MIXERS[mixer](**options), name, seed) for seed in range(3)) / 3
        for mixer, options in (("aaren", {}), ("attention", {"rotary": False}))
    }
    print(name, found)  # noqa: T201
    assert found["aaren"] > found["attention"] - 0.02, found


@pytest.mark.plain
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("aaren", {"heads": 3}, "heads=3 must divide width=16"),
        ("minmax", {"size": 3}, "size=3 must divide the width of the states, 16"),
        ("sessa", {"heads": 16}, "rotary wants an even head size, width / heads is 1"),
        ("sessa", {"max_gain": 1.0}, "want max_gain between 0 and 1, got 1.0"),
        ("taylor_softmax", {"order": 3}, "take an even order, or read='norm' or 'gate'"),
        ("taylor_softmax", {"order": 0}, "want key_size and order at least 1, got 8 and 0"),
        ("taylor_softmax", {"order": 16}, "735,471 features per head are too many"),
        ("taylor_softmax", {"read": "sum"}, "want read one of"),
    ],
)
def test_errors_say_what_to_fix(name, options, message):
    with pytest.raises(ValueError, match=message):
        MIXERS[name](**options).build(WIDTH)
