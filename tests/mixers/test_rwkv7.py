import dataclasses

import numpy as np
import pytest
import torch
from laws import causal_law, live_law, reset_law, rows_law, split_law, state_law

from stepscan import state as states
from stepscan.mixers.rwkv7 import RWKV7Config

WIDTH, T = 16, 20


def awake(config=None, dtype=torch.float64):
    """A mixer some way from its initial values, many of which are zero."""
    mixer = (config or RWKV7Config()).build(WIDTH).to(dtype)
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return mixer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_laws_away_from_the_initial_zeros(dtype, tmp_path):
    mixer, x = awake(dtype=dtype), torch.randn(3, T, WIDTH, dtype=dtype)
    state, resets, params = states.detach(mixer(x)[1]), torch.rand(3, T) < 0.15, mixer.parameters()
    step, params = lambda xs, state, resets: mixer(xs[0], state, resets), list(params)
    for cuts in ([0, 7], [3, 3, 9, T], list(range(1, T))):
        split_law(step, (x,), state, cuts, resets=resets, params=params)
    reset_law(step, (x,), state, resets, params=params)
    rows_law(step, (x,), state, resets=resets, params=params)
    state_law(step, (x,), state, tmp_path / "state")
    causal_law(step, (x,), 9)
    live_law(mixer, x)


def test_published_zeros_wake_up_one_after_the_other():
    mixer, x = RWKV7Config().build(WIDTH), torch.randn(2, T, WIDTH)
    optimizer = torch.optim.SGD(mixer.parameters(), lr=1.0)
    assert not mixer(x)[0].any()
    for _ in range(3):  # the output map, then what comes before it, then behind the zero low ranks
        optimizer.zero_grad()
        (mixer(x)[0] - x).square().mean().backward()
        optimizer.step()
    assert all(p.grad.any() and p.grad.isfinite().all() for p in mixer.parameters())


def oracle(mixer, x):
    """The equations of the paper for one sequence, token by token, in numpy and float64."""
    p = {name: t.detach().numpy() for name, t in mixer.named_parameters()}
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    H, K = p["bonus"].shape
    low = lambda name, z: p[f"{name}.up.weight"] @ z  # noqa: E731
    last, S, ys = np.zeros(WIDTH), np.zeros((H, K, K)), []  # S is V x K, as in the authors' code
    for x_t in x:
        x_r, x_w, x_k, x_v, x_a, x_g = x_t + p["mix"] * (last - x_t)
        last = x_t
        r, k, v = (
            p[f"{n}.weight"] @ z for n, z in (("receptance", x_r), ("key", x_k), ("value", x_v))
        )
        w = low("decay", np.tanh(p["decay.down.weight"] @ x_w)) + p["decay_bias"]
        w = np.exp(-np.exp(-0.5) * sigmoid(w))
        a = sigmoid(low("rate", p["rate.down.weight"] @ x_a) + p["rate_bias"])
        g = low("gate", sigmoid(p["gate.down.weight"] @ x_g))
        e = (k * p["key_scale"]).reshape(H, K)
        e = e / np.sqrt((e * e).sum(-1, keepdims=True) + 1e-6)
        k = k + k * (a - 1) * p["key_rate"]
        r, k, v, w, a = (z.reshape(H, K) for z in (r, k, v, w, a))
        for h in range(H):
            S[h] = S[h] * w[h] - np.outer(S[h] @ e[h], e[h] * a[h]) + np.outer(v[h], k[h])
        y = np.einsum("hvk,hk->hv", S, r)
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 64e-5)
        y = y.ravel() * p["norm_weight"] + p["norm_bias"]
        y = y + ((r * k * p["bonus"]).sum(-1, keepdims=True) * v).ravel()
        ys.append(p["out.weight"] @ (y * g))
    return np.stack(ys), S.swapaxes(-1, -2)


@pytest.mark.parametrize("heads", [1, 4, 8])
def test_equals_a_loop_over_the_equations(heads):
    mixer, x = awake(RWKV7Config(heads=heads)), torch.randn(2, 70, WIDTH).double()
    y, state = mixer(x)
    for row in range(2):
        want, memory = oracle(mixer, x[row].numpy())
        torch.testing.assert_close(y[row], torch.from_numpy(want), atol=1e-10, rtol=0)
        memory = torch.from_numpy(memory)
        torch.testing.assert_close(state.memory[row], memory, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("layer", "layers"), [(0, 1), (0, 12), (6, 12), (11, 12)])
def test_published_initial_values(layer, layers):
    mixer = RWKV7Config(heads=2, layer=layer, layers=layers).build(8)
    depth, rest = (layer / (layers - 1) if layers > 1 else 0), 1 - layer / layers
    for n, zigzag in ((0, -1), (3, 1), (4, -1), (7, 1), (5, -1 / 9)):  # heads of 4 channels
        at = lambda t, n=n: t[n].item()  # noqa: E731
        assert at(mixer.decay_bias) == pytest.approx(
            -6 + 6 * (n / 7) ** (1 + depth**0.3) + 0.5 + 2.5 * zigzag, abs=1e-5
        )
        line = n / 7 - 0.5
        assert at(mixer.rate_bias) == pytest.approx(-0.19 + 0.3 * zigzag + 0.4 * line, abs=1e-5)
        assert at(mixer.key_scale) == pytest.approx(0.71 - 0.1 * line, abs=1e-5)
        for mix, power in zip(mixer.mix, (0.2, 0.9, 0.7, 0.7, 0.9, 0.2), strict=True):
            assert at(mix) == pytest.approx(1 - (n / 8) ** (power * rest), abs=1e-5)
    assert (mixer.norm_weight == ((1 + layer) / layers) ** 0.7).all()
    assert (mixer.key_rate == 1.02).all()
    assert (mixer.bonus == -0.04).all()
    for rank in (mixer.decay, mixer.rate, mixer.gate):
        up = rank.up.weight
        torch.testing.assert_close(up.mT @ up, 0.01 * torch.eye(up.shape[1]))
        assert not rank.down.weight.any()
    for linear, bound in ((mixer.receptance, 0.5), (mixer.key, 0.05), (mixer.value, 0.5)):
        size = linear.weight.abs().max().item()
        assert 0.5 * bound < size * 8**0.5 <= bound
    assert not mixer.out.weight.any()


def test_low_ranks_are_the_published_ones_where_the_width_allows():
    ranks = lambda m: [r.down.weight.shape[0] for r in (m.decay, m.rate, m.gate)]  # noqa: E731
    assert ranks(RWKV7Config(heads=16).build(1024)) == [64, 64, 160]
    assert ranks(RWKV7Config().build(64)) == [32, 32, 32]
    assert ranks(RWKV7Config().build(16)) == [8, 8, 8]


def test_only_the_four_maps_decay():
    mixer = RWKV7Config().build(WIDTH)
    names = {n for n, p in mixer.named_parameters() if p.ndim > 1} - set(mixer.no_decay)
    assert names == {f"{n}.weight" for n in ("receptance", "key", "value", "out")}


@pytest.mark.plain
def test_errors_say_what_to_fix():
    for change in ({"heads": 3}, {"heads": 16}, {"heads": 0}):
        with pytest.raises(ValueError, match=f"heads={change['heads']} must divide width=16"):
            dataclasses.replace(RWKV7Config(), **change).build(16)
    with pytest.raises(ValueError, match="want 0 <= layer < layers, got 2 and 2"):
        RWKV7Config(layer=2, layers=2).build(16)
