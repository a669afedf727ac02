"""Mamba-3 against its published recurrence in plain numpy, and what its parts are for."""

import math

import numpy as np
import pytest
import torch
from laws import live_law, reset_law, split_law
from torch.nn import functional as F

from stepscan import state as states
from stepscan.mixers.mamba3 import Mamba3Config

WIDTH, T, H = 16, 12, 4
OPTIONS = (
    {"states": 6},
    {"states": 8, "rank": 3, "groups": 2},
    {"states": 5, "rank": 2, "rotary": 1.0, "rate": "heavy_tail"},
    {"states": 4, "rotary": 0.0, "trapezoid": False},
)
every_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o}")


def built(options):
    mixer = Mamba3Config(**options).build(WIDTH).double()
    with torch.no_grad():  # away from the ones and the equal parts that they start from
        for p in mixer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return mixer, torch.randn(2, T, WIDTH).double()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


def rms(x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)


def turned(x, phase):
    """The first 2 A channels as A complex numbers, by phase."""
    half = len(phase)
    pairs = (x[:half] + 1j * x[half : 2 * half]) * np.exp(1j * phase)
    return np.concatenate([pairs.real, pairs.imag, x[2 * half :]])


def published(mixer, u, config):
    """One row, head by head, token by token."""
    w = {name: p.detach().numpy() for name, p in mixer.named_parameters()}
    N, R, G, P = config.states, config.rank, config.groups, 2 * WIDTH // H
    A = int(N * config.rotary) // 2
    mix = H if config.trapezoid else 0
    parts = np.split(
        u @ w["inputs.weight"].T, np.cumsum([H * P, H * P, R * G * N, R * G * N, H, H, mix]), 1
    )
    z, x, B, C, step, rate, mix, angle = parts
    dt = softplus(step + w["step_bias"])
    heavy = np.maximum(rate, 0) + 1 / (1 - np.minimum(rate, 0))
    rate = heavy if config.rate == "heavy_tail" else softplus(rate)
    lam = sigmoid(mix) if config.trapezoid else np.ones((len(u), H))
    ones = np.ones((R, H, P))
    X, Z, O = (w.get(n, ones) for n in ("spread", "spread_gate", "gather"))  # noqa: E741
    ys = np.zeros((len(u), H * P))
    for h in range(H):
        S, last, phase = np.zeros((N, P)), np.zeros((N, P)), np.zeros(A)
        own = slice(h * P, (h + 1) * P)
        for t in range(len(u)):
            phase = phase + math.pi * np.tanh(angle[t]) * dt[t, h]
            keys = [p[t].reshape(R, G, N)[:, h * G // H] for p in (B, C)]
            keys = [
                np.stack(
                    [turned(rms(k[r]) * w[f"norm_{n}.weight"] + b[r, h], phase) for r in range(R)]
                )
                for k, n, b in zip(keys, "BC", (w["bias_B"], w["bias_C"]), strict=True)
            ]
            values = X[:, h] * x[t, own]
            write = keys[0].T @ values
            alpha = np.exp(-max(rate[t, h], 1e-4) * dt[t, h])
            S = alpha * (S + (1 - lam[t, h]) * dt[t, h] * last) + lam[t, h] * dt[t, h] * write
            last = write
            y = (keys[1] @ S + w["D"][h] * values) * (g := Z[:, h] * z[t, own]) * sigmoid(g)
            ys[t, own] = (O[:, h] * y).sum(0)
    return ys @ w["out.weight"].T


@every_option
def test_steps_as_published(options):
    mixer, x = built(options)
    for row in range(2):
        want = published(mixer, x[row].numpy(), mixer.config)
        np.testing.assert_allclose(mixer(x)[0][row].detach(), want, rtol=1e-9, atol=1e-9)


@every_option
def test_laws_of_every_option(options):
    mixer, x = built(options)
    step = lambda xs, state, resets: mixer(xs[0], state, resets)  # noqa: E731
    state, resets = states.detach(mixer(x)[1]), torch.rand(2, T) < 0.2
    params = list(mixer.parameters())
    split_law(step, (x,), state, [1, 5, 5], resets=resets, params=params)
    reset_law(step, (x,), state, resets, params=params)
    live_law(Mamba3Config(**options).build(WIDTH), x.float())


def test_more_writes_do_not_grow_the_memory():
    one, four = (Mamba3Config(rank=r).build(64).init_state(1) for r in (1, 4))
    assert one.memory.nbytes == four.memory.nbytes
    assert four.key.nbytes == 4 * one.key.nbytes


def test_published_initial_values():
    mixer = Mamba3Config(heads=64, rank=4).build(64)
    step = F.softplus(mixer.step_bias.detach())
    assert 0.99e-3 <= step.min() < step.max() <= 1.01e-1
    for name, value in (("bias_B", 1), ("bias_C", 1), ("D", 1), ("spread_gate", 1)):
        assert (getattr(mixer, name) == value).all()
    assert (mixer.spread == 0.25).all()
    assert (mixer.gather == 0.25).all()
    assert mixer.angles == 32
    assert [len(Mamba3Config().build(width).D) for width in (64, 512)] == [4, 16]


def test_phases_stay_exact_over_a_long_stretch():
    """In float32 a sum of 20,000 turns would be off by more than the tolerance of the laws."""
    mixer = Mamba3Config(states=8).build(WIDTH)
    with torch.no_grad():
        mixer.step_bias.fill_(1.0)
        angle, dt = torch.full((1, 20_000, 2), 3.0), torch.full((1, 20_000, H), 1.3)
        phase, last = mixer._phases(angle, dt, torch.zeros(1, H, 2), None)
    turns = 20_000 * (math.pi * torch.tensor(3.0).tanh() * torch.tensor(1.3)).double().item()
    assert abs(phase[0, -1, 0, 0, 0].item() - turns) < 1e-2 * turns * 1e-5
    assert 0 <= last.min() <= last.max() < 2 * math.pi


def test_a_turning_state_counts_modulo_3_without_drift():
    """By hand: a start token writes once, a symbol k turns the state by k / 3 of a circle."""
    config = Mamba3Config(expansion=1.0, states=2, heads=2, rotary=1.0)
    mixer = config.build(4)
    z, x, _, _, _, rate, mix, angle = mixer.inputs.weight.data.zero_().split(mixer.sizes)
    z.fill_(1.0)
    x[:, 3] = 1.0
    rate.fill_(-30.0)
    mix.fill_(30.0)
    symbols = torch.tensor([0.0, 1.0, 2.0])
    angle[:, :3] = torch.atanh(symbols / 3)  # pi tanh(w) dt with a step of 2
    with torch.no_grad():
        mixer.step_bias.fill_(math.log(math.expm1(2.0)))
        mixer.D.zero_()
        mixer.bias_B.copy_(torch.tensor([1.0, 0.0]).expand(1, 2, 2))
        mixer.bias_C.copy_(torch.eye(2)[None])
        mixer.out.weight.copy_(torch.eye(4))
        tokens = torch.randint(3, (4, 4096))
        tokens[:, 0] = 3
        y, _ = mixer(F.one_hot(tokens, 4).float())
    want = tokens.masked_fill(tokens == 3, 0).cumsum(1) % 3
    circle = 2 * math.pi / 3 * symbols
    score = y[..., :1] * circle.cos() - y[..., 2:3] * circle.sin()
    assert torch.equal(score.argmax(-1), want)


@pytest.mark.plain
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "heads=5 must divide the inner width 32"),
        ({"groups": 3}, "groups=3 the heads"),
        ({"rank": 0}, "rank=0"),
        ({"rotary": 1.5}, "rotary from 0 to 1, got 1.5"),
        ({"rate": "softplu"}, "Did you mean 'softplus'"),
    ],
    ids=str,
)
def test_configs_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        Mamba3Config(**options).build(WIDTH)
