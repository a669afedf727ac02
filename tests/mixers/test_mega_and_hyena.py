"""MEGA, TCNCA and Hyena against their equations, and the check of TCNCA against MEGA."""

import math
import time

import numpy as np
import pytest
import torch
from laws import assert_near, reset_law, split_law
from torch import nn
from torch.nn import functional as F

from stepscan.layers.mlp import SwiGLU
from stepscan.mixers.hyena import HyenaConfig
from stepscan.mixers.mega import MegaConfig
from stepscan.mixers.tcnca import TCNCAConfig
from stepscan.ops.dilated_conv import dilated_conv
from stepscan.ops.ssm_conv import ssm_conv
from stepscan.tasks.recall import Recall


def numbers(mixer):
    with torch.no_grad():
        for p in mixer.parameters():  # published zeros would leave nothing to compare
            p.add_(0.3 * torch.randn_like(p))
    return {name: value.detach().numpy() for name, value in mixer.named_parameters()}


def sigmoid(y):
    return 1 / (1 + np.exp(-y))


def silu(y):
    return y * sigmoid(y)


def attend(p, x, m, chunk):
    """MEGA's gated attention over a whole row; softmax."""
    size = p["attention.scale"].shape[1]
    values = p["attention.value.bias"].size
    z, r, u, h = np.split(
        m @ p["attention.gates.weight"].T + p["attention.gates.bias"],
        np.cumsum([size, values, x.shape[1]]),
        axis=-1,
    )
    q, k = (silu(z) * p["attention.scale"][i] + p["attention.shift"][i] for i in (0, 1))
    v = silu(x @ p["attention.value.weight"].T + p["attention.value.bias"])
    y = np.zeros_like(v)
    for t in range(len(x)):
        seen = np.arange(t - t % chunk, t + 1)
        weights = np.exp(k[seen] @ q[t] / math.sqrt(size) + p["attention.bias"][0, t - seen])
        y[t] = weights @ v[seen] / weights.sum()
    h = silu(h + (silu(r) * y) @ p["attention.out.weight"].T + p["attention.out.bias"])
    return sigmoid(u) * (h - x)


def mega_by_hand(p, x):
    a, d, n = sigmoid(p["rate"]), sigmoid(p["damping"]), p["rate"].shape[1]
    h, m = np.zeros_like(a), []
    for x_t in x:
        h = (1 - a * d) * h + a * p["expand"] * x_t[:, None]
        m.append(silu((p["project"] * h).sum(1) / math.sqrt(n) + p["skip"] * x_t))
    return attend(p, x, np.stack(m), 7)


def tcnca_by_hand(p, x):
    m = x
    for b in range(2):
        weight, c = p[f"filters.{b}"], np.tile(p[f"biases.{b}"], (len(x), 1))
        for t in range(len(x)):
            for j in range(3):
                past = t - (2 - j) * 3**b
                c[t] += weight[:, j] * m[past] if past >= 0 else 0
        m = m + silu(c)
    return attend(p, x, m, 7)


def hyena_by_hand(p, x, mixer):
    D, projected = x.shape[1], x @ p["project.weight"].T + p["project.bias"]
    short = np.stack(
        [
            sum(p["conv.weight"][:, 2 - j] * projected[t - j] for j in range(min(3, t + 1)))
            for t in range(len(x))
        ]
    )
    parts = np.split(short + p["conv.bias"], 4, axis=1)
    kernels, z = mixer.filters().detach().numpy(), parts[3]
    for n in (0, 1):
        w = parts[2 - n] * z
        z = p["skip"][n] * w
        for t in range(len(x)):
            for lag in range(min(kernels.shape[2], t + 1)):
                z[t] += kernels[n, :, lag] * w[t - lag]
    assert D == z.shape[1]
    return (parts[0] * z) @ p["out.weight"].T + p["out.bias"]


@pytest.mark.parametrize(
    ("config", "by_hand"),
    [
        (MegaConfig(chunk=7, states=3), mega_by_hand),
        (TCNCAConfig(chunk=7, blocks=2, window=3), tcnca_by_hand),
    ],
    ids=["mega", "tcnca"],
)
def test_follows_the_published_equations(config, by_hand):
    mixer, x = config.build(6).double(), torch.randn(2, 25, 6, dtype=torch.float64)
    p = numbers(mixer)
    want = np.stack([by_hand(p, row) for row in x.numpy()])
    assert_near(mixer(x)[0], torch.tensor(want), what="outputs")


def test_hyena_follows_the_published_equations():
    mixer = HyenaConfig(order=3, length=12, bands=2, filter_width=8).build(4).double()
    p, x = numbers(mixer), torch.randn(2, 25, 4, dtype=torch.float64)
    want = np.stack([hyena_by_hand(p, row, mixer) for row in x.numpy()])
    assert_near(mixer(x)[0], torch.tensor(want), what="outputs")


def test_hyena_filters_fade_within_their_length():
    h = HyenaConfig(length=200).build(32).filters()[0].detach()
    assert h.shape == (32, 200)
    size = h.abs().max(1).values
    assert h[-1, 60:].abs().max() < 0.05 * size[-1]  # the fastest window: 1 % after 0.3 lengths
    assert h[0, 60:120].abs().max() > 0.1 * size[0]


@pytest.mark.parametrize(
    "config",
    [
        MegaConfig(chunk=9, attention="laplace"),
        MegaConfig(chunk=9, attention="relu2"),
        MegaConfig(chunk=1),
        TCNCAConfig(chunk=9, dilation=2, attention="laplace"),
        HyenaConfig(order=3, length=70),
        HyenaConfig(length=2),
    ],
    ids=str,
)
def test_laws_with_other_options(config):
    mixer, x = config.build(8).double(), torch.randn(2, 80, 8, dtype=torch.float64)
    step = lambda xs, state, resets: mixer(xs[0], state, resets)  # noqa: E731
    resets, params = torch.rand(2, 80) < 0.05, list(mixer.parameters())
    split_law(step, (x,), mixer.init_state(2), [5, 5, 40], resets=resets, params=params)
    reset_law(step, (x,), mixer.init_state(2), resets, params=params)


@pytest.mark.plain
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MegaConfig(states=0), "want states at least 1"),
        (MegaConfig(chunk=0), "chunk=0"),
        (MegaConfig(attention="laplac"), "Did you mean 'laplace'"),
        (TCNCAConfig(window=1), "window at least 2"),
        (HyenaConfig(length=1), "length at least 2"),
    ],
    ids=str,
)
def test_errors_say_what_to_fix(config, message):
    with pytest.raises(ValueError, match=message):
        config.build(16)


# TCNCA and MEGA -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(3, 4, 2), (4, 3, 3), (2, 5, 4)], ids=str)
def test_an_impulse_reaches_as_far_as_the_formula_says(sizes):
    blocks, window, dilation = sizes
    config = TCNCAConfig(blocks=blocks, window=window, dilation=dilation)
    formula = 1 + (window - 1) * (dilation**blocks - 1) // (dilation - 1)
    assert config.reach == formula
    mixer = config.build(4).double()
    with torch.no_grad():
        for weight in mixer.filters:
            weight.uniform_(0.5, 1)
    x = torch.zeros(1, formula + 20, 4, dtype=torch.float64)
    ends = []
    for value in (0.0, 1.0):
        x[:, 5] = value
        m = x
        for b, (weight, bias) in enumerate(zip(mixer.filters, mixer.biases, strict=True)):
            m = m + F.silu(dilated_conv(m, weight, bias, dilation=dilation**b)[0])
        ends.append(m)
    moved = (ends[1] - ends[0]).abs().amax((0, 2)).nonzero().flatten()
    assert (moved.min().item(), moved.max().item()) == (5, 5 + formula - 1)


def test_tcnca_streams_as_it_reads_a_batch():
    mixer, x = TCNCAConfig().build(16), torch.randn(2, 200, 16)
    whole, state, ys = mixer(x)[0], None, []
    with torch.no_grad():
        for x_t in x.split(1, 1):
            y, state = mixer(x_t, state)
            ys.append(y)
    assert (torch.cat(ys, 1) - whole).abs().max() < 1e-6


def best(run, rounds=3):
    spans = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        spans.append(time.perf_counter() - start)
    return min(spans)


@pytest.mark.slow
@pytest.mark.parametrize("T", [8192, 32768, 131072])
def test_dilated_convolutions_are_faster_than_the_average_by_spectra(T):
    """One row of 16 channels, forward; the convolutions reach 121 tokens, n is 16."""
    tcnca, mega, x = TCNCAConfig().build(16), MegaConfig().build(16), torch.randn(1, T, 16)

    def convolve():
        m = x
        for b, (weight, bias) in enumerate(zip(tcnca.filters, tcnca.biases, strict=True)):
            m = m + F.silu(dilated_conv(m, weight, bias, dilation=3**b)[0])

    def average():
        a, d = mega.rate.sigmoid(), mega.damping.sigmoid()
        system = {"log_a": torch.log1p(-a * d), "b": a * mega.expand, "c": mega.project / 4}
        ssm_conv(x, **system, form="fft")

    with torch.no_grad():
        ratio = best(average) / best(convolve)
    print(f"T {T}: {ratio:.2f} times as fast")  # noqa: T201
    assert ratio > 1


class Reader(nn.Module):
    """Two blocks over tokens."""

    def __init__(self, config, vocab, width=64):
        super().__init__()
        self.embed, self.head = nn.Embedding(vocab, width), nn.Linear(width, vocab)
        self.mixers = nn.ModuleList(config.build(width) for _ in range(2))
        self.mlps = nn.ModuleList(SwiGLU(width, 2) for _ in range(2))
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(5))

    def forward(self, tokens):
        x = self.embed(tokens)
        for i in range(2):
            x = x + self.mixers[i](self.norms[2 * i](x))[0]
            x = x + self.mlps[i](self.norms[2 * i + 1](x))
        return self.head(self.norms[4](x))


def recall(config, seed, steps=800):
    """Accuracy on associative recall after some training."""
    torch.manual_seed(seed)
    rng, task = torch.Generator().manual_seed(seed), Recall(pairs=6, keys=16)
    model = Reader(config, task.vocab)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        batch = task.draw(64, rng)
        loss = F.cross_entropy(model(batch.input)[batch.asked], batch.target[batch.asked])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        plan.step()
    batch = task.draw(500, rng)
    with torch.no_grad():
        right = model(batch.input).argmax(-1) == batch.target
    return right[batch.asked].float().mean().item()


@pytest.mark.slow
def test_tcnca_recalls_as_well_as_mega():
    found = {c.name: [recall(c, seed) for seed in (0, 1)] for c in (MegaConfig(), TCNCAConfig())}
    mega, tcnca = (sum(found[name]) / 2 for name in ("mega", "tcnca"))
    print(found)  # noqa: T201
    assert mega > 0.9, found
    assert tcnca > mega - 0.02, found
