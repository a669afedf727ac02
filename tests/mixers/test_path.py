"""PaTH attention: its options, its equations, and what a path of reflections can follow."""

import itertools
from dataclasses import replace

import pytest
import torch
from laws import assert_near, causal_law, live_law, reset_law, rows_law, split_law
from small_training import build, train
from torch.nn import functional as F

from stepscan import state as states
from stepscan.mixers.attention import AttentionConfig
from stepscan.mixers.path import PathConfig
from stepscan.ops.path_attention import path_attention
from stepscan.tasks import TASKS

WIDTH, T = 16, 20
OPTIONS = ({"forget_gate": True}, {"qk_norm": True, "heads": 2}, {"window": 1})


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_laws_hold_for_every_option(options):
    config = PathConfig(**options)
    mixer, x = config.build(WIDTH).double(), torch.randn(3, T, WIDTH).double()
    resets, params = torch.rand(3, T) < 0.15, list(mixer.parameters())
    step = lambda xs, state, resets: mixer(xs[0], state, resets)  # noqa: E731
    state = states.detach(mixer(torch.randn(3, T, WIDTH).double(), None, resets)[1])
    split_law(step, (x,), state, [0, 3, 4, 11], resets=resets, params=params)
    reset_law(step, (x,), state, resets, params=params)
    rows_law(step, (x,), state, resets=resets, params=params)
    causal_law(step, (x,), 9)
    live_law(config.build(WIDTH), x.float())


def test_follows_the_published_equations():
    """For one sequence, head by head, with a matrix for every token."""
    mixer = PathConfig(forget_gate=True).build(WIDTH).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x = torch.randn(T, WIDTH, dtype=torch.float64)
    H, K = 4, WIDTH // 4
    q, k, v = (x @ mixer.qkv.weight.T).view(T, 3, H, K).unbind(1)
    low = F.pad(x @ mixer.down.weight.T @ mixer.up.weight.T, (0, 0, 2, 0))
    seen = torch.stack([(low[t : t + 3] * mixer.conv.weight.T).sum(0) for t in range(T)])
    w = F.silu(seen).view(T, H, K)
    w = w / (w.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    beta = 2 * torch.sigmoid(x @ mixer.strength.weight.T + mixer.strength.bias)
    g = F.logsigmoid(x @ mixer.forget.weight.T + mixer.forget.bias)
    ys = torch.zeros(T, H, K, dtype=torch.float64)
    for t, h in itertools.product(range(T), range(H)):
        scores, key_map = torch.empty(t + 1, dtype=torch.float64), torch.eye(K).double()
        for j in range(t, -1, -1):
            scores[j] = q[t, h] @ key_map @ k[j, h] / K**0.5 + g[j + 1 : t + 1, h].sum()
            key_map = key_map @ (torch.eye(K) - beta[j, h] * torch.outer(w[j, h], w[j, h]))
        ys[t, h] = scores.softmax(0) @ v[: t + 1, h]
    assert_near(mixer(x[None])[0][0], ys.flatten(1) @ mixer.out.weight.T, what="the equations")


def test_a_score_can_say_the_parity_of_all_tokens_since():
    """What no rotation by distance can: reflections by the ones, none by the zeros."""
    ones = torch.randint(2, (1, 300, 1)).double()
    axis = torch.ones(1, 300, 1, 1).double()
    start = F.one_hot(torch.tensor(0), 300).view(1, 300, 1, 1).double()
    y, state = path_attention(axis, 50 * start, start, w=axis, beta=2 * ones)
    odd = (ones[..., 0].cumsum(1) - ones[:, 0]) % 2 == 1  # a token does not turn itself
    assert ((y[..., 0, 0] < 0.5) == odd).all()
    assert state.keys[0, 0].item() == (-50 if odd[0, -1] else 50)


PARITY = TASKS["parity"](length=40)


def learn(config, seed):
    """One layer, trained up to 40 symbols; accuracy after the last one, there and beyond."""
    model = build((config,), (PARITY.vocab,), answers=PARITY.answers, width=WIDTH, seed=seed)
    turns = itertools.cycle((5, 10, 20, 40))
    draw = lambda n, rng: replace(PARITY, length=next(turns)).draw(n, rng)  # noqa: E731
    model = train(model, draw, steps=400, seed=seed, rate=1e-2, count=64)
    found = {}
    for length in (40, 80, 256):
        batch = replace(PARITY, length=length).draw(512, torch.Generator().manual_seed(7))
        with torch.no_grad():
            said = model(batch.input)[0][:, -1].argmax(-1)
        found[length] = (said == batch.target[:, -1]).double().mean().item()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_one_layer_learns_parity_and_rotary_positions_do_not(seed):
    """At the length of training; how far it carries depends on the seed, and is told."""
    path, rotary = learn(PathConfig(), seed), learn(AttentionConfig(), seed)
    print(f"parity, seed {seed}: path {path}, rotary {rotary}")  # noqa: T201
    assert path[40] >= 0.99, path
    assert rotary[40] <= 0.6, rotary


@pytest.mark.plain
def test_errors_say_what_to_fix():
    with pytest.raises(ValueError, match="heads=3 must divide width=16"):
        PathConfig(heads=3).build(WIDTH)
    with pytest.raises(ValueError, match="window at least 1, got 0"):
        PathConfig(window=0).build(WIDTH)
