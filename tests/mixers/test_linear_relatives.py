"""Relatives of linear attention: the published equations, token by token, in plain numpy."""

import math

import numpy as np
import pytest
import torch
from laws import causal_law, live_law, reset_law, rows_law, split_law

from stepscan import state as states
from stepscan.mixers.based import BasedConfig
from stepscan.mixers.fox import FoXConfig
from stepscan.mixers.gsa import GSAConfig
from stepscan.mixers.hgrn import HGRNConfig
from stepscan.mixers.lightnet import LightNetConfig
from stepscan.mixers.log_linear import LogLinearConfig
from stepscan.mixers.mesa import MesaConfig
from stepscan.mixers.rwkv6 import RWKV6Config

WIDTH, T = 16, 24
OPTIONS = (
    BasedConfig(key_size=3),
    FoXConfig(qk_norm=True, output_gate=True),
    GSAConfig(slots=3, heads=2),
    HGRNConfig(rotation=False),
    HGRNConfig(layer=2, layers=3),
    HGRNConfig(rotation=False, layer=1, layers=3),
    LogLinearConfig(levels=1),
    LogLinearConfig(levels=3, states=4),
    MesaConfig(steps=2),
    MesaConfig(steps=30, heads=1),
)


def built(config):
    mixer = config.build(WIDTH).double()
    x = torch.randn(1, T, WIDTH, dtype=torch.float64)
    with torch.no_grad():  # published zeros and tiny numbers would leave nothing to compare
        for p in mixer.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return mixer, {n: p.detach().numpy() for n, p in mixer.named_parameters()}, x, x[0].numpy()


def agree(mixer, x, want):
    np.testing.assert_allclose(mixer(x)[0][0].detach(), np.stack(want), rtol=1e-9, atol=1e-9)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return np.log1p(np.exp(x))


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def rms(x, eps=1e-5):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def unit(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def convolved(inputs, w):
    weight, bias = w["conv.weight"], w.get("conv.bias", 0)
    window = weight.shape[1]
    padded = np.concatenate([np.zeros((window - 1, len(weight))), inputs])
    return silu(
        np.stack([(padded[t : t + window].T * weight).sum(1) + bias for t in range(len(inputs))])
    )


@pytest.mark.parametrize("config", OPTIONS, ids=str)
def test_laws_with_options(config):
    mixer, _, x, _ = built(config)
    x, resets = torch.cat([x, x.flip(1)]), torch.rand(2, T) < 0.15
    state, params = states.detach(mixer(x)[1]), list(mixer.parameters())
    step = lambda xs, state, resets: mixer(xs[0], state, resets)  # noqa: E731
    split_law(step, (x,), state, [0, 3, 4, 11], resets=resets, params=params)
    reset_law(step, (x,), state, resets, params=params)
    rows_law(step, (x,), state, resets=resets, params=params)
    causal_law(step, (x,), 9)
    live_law(mixer, x)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("rotation", [True, False])
def test_hgrn_steps_as_published(rotation, layer):
    mixer, w, x, u = built(HGRNConfig(rotation=rotation, layer=layer, layers=3))
    parts = 2 if rotation else 1
    f, c, gate = np.split(u @ w["inputs.weight"].T, [WIDTH, (1 + parts) * WIDTH], 1)
    low = sigmoid(w["bound"]) if layer else 0
    alpha, c = low + (1 - low) * sigmoid(f), silu(c).reshape(T, WIDTH, parts)
    c = c[..., 0] + 1j * c[..., 1] if rotation else c[..., 0]
    turn = np.exp(1j * w["angle"]) if rotation else 1
    h, want = np.zeros(WIDTH), []
    for t in range(T):
        h = alpha[t] * turn * h + (1 - alpha[t]) * c[t]
        y = np.stack([h.real, h.imag], 1).ravel() if rotation else h
        want.append((rms(y) * w["norm.weight"] * silu(gate[t])) @ w["out.weight"].T)
    agree(mixer, x, want)


def test_hgrn_angles_start_as_those_of_rotary_positions():
    angle = HGRNConfig().build(8).angle.detach()
    torch.testing.assert_close(angle, 10000.0 ** (-torch.arange(8) / 8))


def taylor(a, b):
    s = a @ b.T / math.sqrt(a.shape[1])
    return 1 + s + s * s / 2


def test_based_is_an_average_weighed_by_a_polynomial_of_the_scores():
    mixer, w, x, u = built(BasedConfig(heads=2, key_size=5))
    q, k, v = np.split(u @ w["qkv.weight"].T, [10, 20], 1)
    heads = []
    for h in range(2):
        key, value = slice(5 * h, 5 * h + 5), slice(8 * h, 8 * h + 8)
        weights = np.tril(taylor(q[:, key], k[:, key]))
        heads.append(weights @ v[:, value] / weights.sum(1, keepdims=True))
    agree(mixer, x, np.concatenate(heads, 1) @ w["out.weight"].T)


def jrt(w, u, prefix_len):
    """The paper's sums: all of the past, and the prefix once more with its own keys and values."""
    q, k, v = np.split(u @ w["qkv.weight"].T, [10, 20], 1)
    prefix_k, prefix_v = np.split(u[:prefix_len] @ w["prefix.weight"].T, [10], 1)
    heads = []
    for h in range(2):
        key, value = slice(5 * h, 5 * h + 5), slice(8 * h, 8 * h + 8)
        past = np.tril(taylor(q[:, key], k[:, key]))
        prefix = taylor(q[:, key], prefix_k[:, key])
        y = past @ v[:, value] + prefix @ prefix_v[:, value]
        heads.append(y / (past.sum(1) + prefix.sum(1))[:, None])
    return np.concatenate(heads, 1) @ w["out.weight"].T


@pytest.mark.parametrize("prefix_len", [1, 7, T, T + 5])
def test_a_prefix_is_read_twice_as_published(prefix_len):
    mixer, w, x, u = built(BasedConfig(heads=2, key_size=5, prefix_len=prefix_len))
    assert not mixer.causal
    agree(mixer, x, jrt(w, u, prefix_len))
    segments = torch.zeros(1, T, dtype=torch.bool)
    segments[0, [4, 15]] = True
    want = [jrt(w, part, prefix_len) for part in np.split(u, [4, 15])]
    got = mixer(x, None, segments)[0][0].detach()
    np.testing.assert_allclose(got, np.concatenate(want), rtol=1e-9, atol=1e-9)


def test_behind_its_prefix_a_mixer_is_causal_and_inside_it_tokens_see_each_other():
    mixer, _, x, _ = built(BasedConfig(prefix_len=7))
    step = lambda xs, state, resets: mixer(xs[0], state, resets)  # noqa: E731
    x = torch.cat([x, x.flip(1)])
    for t in (7, 12):
        causal_law(step, (x,), t)
    changed = x.clone()
    changed[:, 5] += 1
    assert ((mixer(changed)[0] - mixer(x)[0]).abs().amax(-1) > 1e-6).all()
    resets = torch.zeros(2, T, dtype=torch.bool)
    resets[0, 9] = True
    params = list(mixer.parameters())
    split_law(step, (x,), None, [7], params=params)
    split_law(step, (x,), None, [16, 17, 18, T], resets=resets, params=params)
    reset_law(step, (x,), None, resets, params=params)
    rows_law(step, (x,), states.detach(mixer(x)[1]), resets=resets, params=params)
    live_law(mixer, x)


def test_rwkv6_steps_as_published():
    mixer, w, x, u = built(RWKV6Config(heads=2, layer=1, layers=3))
    before = np.concatenate([np.zeros((1, WIDTH)), u[:-1]]) - u
    seen = np.tanh((u + before * w["mix"][0]) @ w["mix_down.weight"].T).reshape(T, 5, -1)
    mixes = w["mix"][1:] + np.einsum("tnr,nrd->tnd", seen, w["mix_up"])
    x_w, x_k, x_v, x_r, x_g = (u + before * mixes[:, n] for n in range(5))
    low = np.tanh(x_w @ w["decay_down.weight"].T) @ w["decay_up.weight"].T
    decay = np.exp(-np.exp(w["decay_bias"] + low)).reshape(T, 2, 8)
    names = (("receptance", x_r), ("key", x_k), ("value", x_v))
    r, k, v = ((z @ w[f"{n}.weight"].T).reshape(T, 2, 8) for n, z in names)
    S, want = np.zeros((2, 8, 8)), []
    for t in range(T):
        y = []
        for h in range(2):
            present = np.outer(k[t, h], v[t, h])
            y.append((S[h] + w["bonus"][h][:, None] * present).T @ r[t, h])
            S[h] = decay[t, h][:, None] * S[h] + present
        y = np.stack(y)
        y = y - y.mean(1, keepdims=True)
        y = (y / np.sqrt(y.var(1, keepdims=True) + 64e-5)).ravel()
        y = y * w["norm_weight"] + w["norm_bias"]
        want.append((y * silu(x_g[t] @ w["gate.weight"].T)) @ w["out.weight"].T)
    agree(mixer, x, want)


def test_rwkv6_starts_as_published():
    low, high = (RWKV6Config(layer=n, layers=4).build(32) for n in (0, 3))
    assert [m.decay_bias[n].item() for m in (low, high) for n in (0, -1)] == [-6, -1, -6, -1]
    assert (high.decay_bias <= low.decay_bias).all()  # higher layers remember longer
    assert low.mix[0, 0] == 1
    torch.testing.assert_close(high.mix[3], high.mix[1] - 0.3)
    assert not low.out.weight.any()


def test_gsa_steps_as_published():
    mixer, w, x, u = built(GSAConfig(heads=2, slots=3))
    q, k, v, f = np.split(u @ w["inputs.weight"].T, [16, 32, 48], 1)
    q, k, v = (silu(a).reshape(T, 2, 8) for a in (q, k, v))
    alpha = sigmoid(f).reshape(T, 2, 3) ** (1 / 8)
    keys, values, want = np.zeros((2, 8, 3)), np.zeros((2, 3, 8)), []
    for t in range(T):
        y = []
        for h in range(2):
            a, s = alpha[t, h], 1 - alpha[t, h]
            keys[h] = keys[h] * a + np.outer(k[t, h], s)
            values[h] = a[:, None] * values[h] + np.outer(s, v[t, h])
            y.append(values[h].T @ softmax(keys[h].T @ q[t, h]))
        y = rms(silu(np.concatenate(y))) * w["norm.weight"]
        want.append(y @ w["out.weight"].T)
    agree(mixer, x, want)


def test_lightnet_is_a_softmax_over_the_past_for_each_key_channel():
    mixer, w, x, u = built(LightNetConfig(heads=2))
    q, k, v = np.split(u @ w["qkv.weight"].T, 3, 1)
    want = []
    for t in range(T):
        y = []
        for h in (slice(0, 8), slice(8, 16)):
            weights = np.stack([softmax(k[: t + 1, d]) for d in range(h.start, h.stop)])
            y.append((silu(q[t, h]) / math.sqrt(8)) @ weights @ v[: t + 1, h])
        gate = silu(u[t] @ w["gate.0.weight"].T @ w["gate.1.weight"].T)
        want.append((rms(np.concatenate(y)) * w["norm.weight"] * gate) @ w["out.weight"].T)
    agree(mixer, x, want)


def test_lightnet_stays_finite_with_keys_of_any_size():
    mixer = LightNetConfig().build(WIDTH)
    x = 1e4 * torch.randn(2, T, WIDTH)
    x.requires_grad_()
    y, state = mixer(x)
    (y.sum() + sum(part.sum() for part in state)).backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("pro", [False, True])
def test_fox_steps_as_published(pro):
    mixer, w, x, u = built(FoXConfig(heads=2, qk_norm=pro, output_gate=pro))
    q, k, v = (a.reshape(T, 2, 8) for a in np.split(u @ w["qkv.weight"].T, 3, 1))
    tiny = np.finfo(np.float64).eps
    if pro:
        q, k = rms(q, tiny) * w["q_norm.weight"], rms(k, tiny) * w["k_norm.weight"]
    log_f = np.log(sigmoid(u @ w["forget.weight"].T + w["forget.bias"]))
    want = []
    for t in range(T):
        y = []
        for h in range(2):
            decay = np.array([log_f[j + 1 : t + 1, h].sum() for j in range(t + 1)])
            weights = softmax(k[: t + 1, h] @ q[t, h] / math.sqrt(8) + decay)
            y.append(weights @ v[: t + 1, h])
        y = np.stack(y)
        if pro:
            y = rms(y, tiny) * w["norm.weight"]
            y = y.ravel() * sigmoid(u[t] @ w["gate.weight"].T)
        want.append(y.ravel() @ w["out.weight"].T)
    agree(mixer, x, want)


@pytest.mark.parametrize("steps", [None, 30])
def test_mesa_steps_as_published(steps):
    mixer, w, x, u = built(MesaConfig(heads=2, steps=steps))
    qkv = u @ w["qkv.weight"].T
    q, k = (unit(a.reshape(T, 2, 8)) for a in np.split(convolved(qkv[:, :32], w), 2, 1))
    v, gates = qkv[:, 32:].reshape(T, 2, 8), sigmoid(u @ w["gates.weight"].T + w["gates.bias"])
    ridge = softplus(w["ridge"]) + 0.25
    H, C, want = np.zeros((2, 8, 8)), np.zeros((2, 8, 8)), []
    for t in range(T):
        y = []
        for h in range(2):
            decay, beta = gates[t, h], gates[t, 2 + h]
            H[h] = decay * H[h] + beta * np.outer(k[t, h], k[t, h])
            C[h] = decay * C[h] + beta * np.outer(k[t, h], v[t, h])
            y.append(C[h].T @ np.linalg.solve(H[h] + np.diag(ridge[h]), q[t, h]))
        y = rms(np.stack(y)) * w["norm.weight"]
        want.append(y.ravel() @ w["out.weight"].T)
    agree(mixer, x, want)


def test_mesa_starts_with_a_ridge_of_one():
    ridge = torch.nn.functional.softplus(MesaConfig().build(WIDTH).ridge) + 0.25
    torch.testing.assert_close(ridge, torch.ones(4, 4))


def test_log_linear_is_mamba2_with_a_weight_per_block():
    mixer, w, x, u = built(LogLinearConfig(states=3, heads=2, levels=6))
    sizes = np.cumsum([32, 38, 2])
    z, inner, step, level = np.split(u @ w["inputs.weight"].T, sizes, 1)
    inner, B, C = np.split(convolved(inner, w), [32, 35], 1)
    dt = softplus(step + w["step_bias"])
    scale = softplus(level.reshape(T, 2, 7) * w["level"])
    values, want = inner.reshape(T, 2, 16), []
    for t in range(T):
        y = np.zeros((2, 16))
        for h in range(2):
            for j in range(t + 1):
                decay = np.exp(-np.exp(w["A_log"][h]) * dt[j + 1 : t + 1, h].sum())
                block = scale[t, h, (t ^ j).bit_length()]
                y[h] += block * decay * dt[j, h] * (C[t] @ B[j]) * values[j, h]
            y[h] += w["D"][h] * values[t, h]
        y = rms(y.ravel() * silu(z[t])) * w["norm.weight"]
        want.append(y @ w["out.weight"].T)
    agree(mixer, x, want)


@pytest.mark.plain
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BasedConfig(heads=3), "heads=3 must divide width=16"),
        (BasedConfig(prefix_len=-1), "prefix_len at least 0, got 16 and -1"),
        (FoXConfig(heads=3), "heads=3 must divide width=16"),
        (GSAConfig(slots=0), "slots at least 1"),
        (HGRNConfig(layer=1), "want 0 <= layer < layers, got 1 of 1"),
        (LightNetConfig(heads=3), "heads=3 must divide width=16"),
        (LogLinearConfig(levels=0), "levels=0"),
        (LogLinearConfig(heads=5), "heads must divide the inner width 32"),
        (MesaConfig(steps=0), "want steps at least 1, or None to solve, got 0"),
        (RWKV6Config(layer=2, layers=2), "want 0 <= layer < layers, got 2 and 2"),
    ],
    ids=str,
)
def test_configs_that_do_not_fit(config, message):
    with pytest.raises(ValueError, match=message):
        config.build(WIDTH)
