"""What the laws cannot see: the published equations, in plain numpy, and the initial values."""

import math

import numpy as np
import pytest
import torch
from laws import split_law
from torch.nn import functional as F

from stepscan.mixers.hgrn2 import HGRN2Config
from stepscan.mixers.linear_attention import LinearAttentionConfig
from stepscan.mixers.mamba import MambaConfig
from stepscan.mixers.mamba2 import Mamba2Config
from stepscan.mixers.mlstm import MLSTMConfig
from stepscan.mixers.retnet import RetNetConfig

WIDTH, T = 16, 12


def built(config):
    mixer = config.build(WIDTH).double()
    weights = {name: p.detach().numpy() for name, p in mixer.named_parameters()}
    x = torch.randn(1, T, WIDTH, dtype=torch.float64)
    return mixer, weights, x, x[0].numpy()


def agree(mixer, x, want):
    np.testing.assert_allclose(mixer(x)[0][0].detach(), np.stack(want), rtol=1e-9, atol=1e-9)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return np.log1p(np.exp(x))


def rms(x, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def convolved(inputs, w, name="conv"):
    """silu of the causal window, channel by channel."""
    weight = w[f"{name}.weight"]
    bias = w.get(f"{name}.bias", np.zeros(len(weight)))
    window = weight.shape[1]
    padded = np.concatenate([np.zeros((window - 1, len(weight))), inputs])
    return silu(
        np.stack([(padded[t : t + window].T * weight).sum(1) + bias for t in range(len(inputs))])
    )


def test_linear_attention_is_an_average_weighed_by_features():
    mixer, w, x, u = built(LinearAttentionConfig(heads=2))
    q, k, v = np.split(u @ w["qkv.weight"].T + w["qkv.bias"], 3, 1)
    feature = lambda a: np.where(a > 0, a + 1, np.exp(a))  # noqa: E731
    want = []
    for t in range(T):
        heads = []
        for h in (slice(0, 8), slice(8, 16)):
            weights = feature(q[t, h]) @ feature(k[: t + 1, h]).T
            heads.append(weights @ v[: t + 1, h] / weights.sum())
        want.append(np.concatenate(heads) @ w["out.weight"].T + w["out.bias"])
    agree(mixer, x, want)


def test_retnet_is_the_parallel_form_of_the_paper():
    mixer, w, x, u = built(RetNetConfig(heads=2))
    q, k, v = (u @ w[f"{n}.weight"].T for n in ("query", "key", "value"))
    angle = np.arange(T)[:, None] * 10000.0 ** -(np.arange(4) / 4)
    heads = []
    for h in range(2):
        # a rotated pair is a complex number
        part = lambda a, h=h: a[:, 8 * h : 8 * h + 4] + 1j * a[:, 8 * h + 4 : 8 * h + 8]  # noqa: E731
        scores = (
            (part(q) * np.exp(1j * angle)) @ (part(k) * np.exp(1j * angle)).conj().T
        ).real / math.sqrt(8)
        age = np.subtract.outer(np.arange(T), np.arange(T))
        decay = np.where(age >= 0, (1 - 2.0 ** (-5 - h)) ** age.clip(0), 0)
        heads.append(rms((scores * decay) @ v[:, 16 * h : 16 * h + 16], 1e-6))
    want = (np.concatenate(heads, 1) * silu(u @ w["gate.weight"].T)) @ w["out.weight"].T
    agree(mixer, x, want)


@pytest.mark.parametrize("layer", [0, 2])
def test_hgrn2_steps_as_published(layer):
    config = HGRN2Config(heads=2, layer=layer, layers=3)
    mixer, w, x, u = built(config)
    low = sigmoid(w["bound"]) if layer else np.zeros(WIDTH)
    np.testing.assert_allclose(low, layer / 3, rtol=1e-6)
    q, f, v = np.split(u @ w["qfv.weight"].T, 3, 1)
    alpha, q = low + (1 - low) * sigmoid(f), silu(q) / math.sqrt(8)
    S, want = np.zeros((2, 8, 8)), []
    for t in range(T):
        for h in range(2):
            a = alpha[t, 8 * h : 8 * h + 8]
            S[h] = a[:, None] * S[h] + np.outer(1 - a, v[t, 8 * h : 8 * h + 8])
        y = np.concatenate([S[h].T @ q[t, 8 * h : 8 * h + 8] for h in range(2)])
        want.append((rms(y, 1e-5) * w["norm.weight"]) @ w["out.weight"].T)
    agree(mixer, x, want)
    step = lambda xs, state, resets: mixer(*xs, state, resets)  # noqa: E731
    split_law(step, (x,), None, [5], params=list(mixer.parameters()))


@pytest.mark.parametrize(
    "options", [{}, {"bias": True}, {"conv_bias": False}, {"selection_norm": 0.1}], ids=str
)
def test_mamba_steps_as_published(options):
    mixer, w, x, u = built(MambaConfig(states=3, step_rank=2, **options))
    eps = options.get("selection_norm")
    inner, z = np.split(u @ w["inputs.weight"].T + w.get("inputs.bias", 0), 2, 1)
    inner = convolved(inner, w)
    selected = np.split(inner @ w["selection.weight"].T, [2, 5], 1)
    step, B, C = selected if eps is None else (rms(part, eps) for part in selected)
    dt = softplus(step @ w["step.weight"].T + w["step_bias"])
    h, want = np.zeros((32, 3)), []
    for t in range(T):
        h = np.exp(-dt[t, :, None] * np.exp(w["A_log"])) * h + np.outer(dt[t] * inner[t], B[t])
        y = ((h @ C[t] + w["D"] * inner[t]) * silu(z[t])) @ w["out.weight"].T
        want.append(y + w.get("out.bias", 0))
    agree(mixer, x, want)


@pytest.mark.parametrize(
    ("groups", "options"),
    [(1, {}), (2, {}), (2, {"bias": True}), (1, {"conv_bias": False, "norm_eps": 0.1}),
     (1, {"step_min": 0.005, "step_max": 0.05})],
)  # fmt: skip
def test_mamba2_steps_as_published(groups, options):
    mixer, w, x, u = built(Mamba2Config(states=3, heads=4, groups=groups, **options))
    z, inner, step = np.split(
        u @ w["inputs.weight"].T + w.get("inputs.bias", 0), [32, 64 + 6 * groups], 1
    )
    inner, B, C = np.split(convolved(inner, w), [32, 32 + 3 * groups], 1)
    dt = softplus(step + w["step_bias"])
    if "step_max" in options:
        assert dt.min() < 0.005
        assert dt.max() > 0.05
        dt = dt.clip(0.005, 0.05)
    S, want = np.zeros((4, 3, 8)), []
    for t in range(T):
        y = []
        for h in range(4):
            g = slice(3 * (h * groups // 4), 3 * (h * groups // 4) + 3)
            value = inner[t, 8 * h : 8 * h + 8]
            S[h] = np.exp(-np.exp(w["A_log"][h]) * dt[t, h]) * S[h]
            S[h] += dt[t, h] * np.outer(B[t, g], value)
            y.append(S[h].T @ C[t, g] + w["D"][h] * value)
        eps = options.get("norm_eps", 1e-5)
        y = rms((np.concatenate(y) * silu(z[t])).reshape(groups, -1), eps).ravel()
        want.append((y * w["norm"]) @ w["out.weight"].T + w.get("out.bias", 0))
    agree(mixer, x, want)


def test_mlstm_steps_as_published():
    mixer, w, x, u = built(MLSTMConfig(heads=2))
    with torch.no_grad():  # gates that see their input, as they will after a step of training
        mixer.gates.weight.normal_()
    w["gates.weight"] = mixer.gates.weight.detach().numpy()
    inner, z = np.split(u @ w["up.weight"].T, 2, 1)
    seen = convolved(inner, w)
    blocks = lambda a, n: np.einsum("tbi,boi->tbo", a.reshape(T, 8, 4), w["qkv"][n]).reshape(T, -1)  # noqa: E731
    q, k, v = blocks(seen, 0), blocks(seen, 1), blocks(inner, 2)
    gates = np.concatenate([q, k, v], 1) @ w["gates.weight"].T + w["gates.bias"]
    S, n, m, want = np.zeros((2, 16, 16)), np.zeros((2, 16)), np.zeros(2), []
    for t in range(T):
        m, y = np.maximum(np.log(sigmoid(gates[t, 2:])) + m, gates[t, :2]), []
        for h in range(2):
            part, i, f = slice(16 * h, 16 * h + 16), np.exp(gates[t, h]), sigmoid(gates[t, 2 + h])
            S[h] = f * S[h] + i * np.outer(k[t, part], v[t, part])
            n[h] = f * n[h] + i * k[t, part]
            query = q[t, part] / math.sqrt(16)
            scale = np.exp(-m[h])
            y.append(S[h].T @ query * scale / (max(abs(n[h] @ query), 1) * scale + 1e-6))
        y = np.stack(y)
        y = y - y.mean(1, keepdims=True)
        y = (y / np.sqrt(y.var(1, keepdims=True) + 1e-5)).ravel() * w["norm"]
        want.append(((y + w["skip"] * seen[t]) * silu(z[t])) @ w["down.weight"].T)
    agree(mixer, x, want)


@pytest.mark.parametrize("config", [MambaConfig(), Mamba2Config()], ids=lambda c: c.name)
def test_steps_start_log_uniform(config):
    step = F.softplus(config.build(512).step_bias.detach())
    assert 0.99e-3 <= step.min() < step.max() <= 1.01e-1


def test_published_initial_values():
    mamba = MambaConfig().build(64)
    torch.testing.assert_close(-mamba.A_log.exp()[5], -torch.arange(1.0, 17.0))
    assert mamba.step.weight.shape == (128, 4)
    assert 0.45 < mamba.step.weight.abs().max() <= 0.5
    rates = Mamba2Config(heads=64).build(64).A_log.exp()
    assert 1 <= rates.min() < 3
    assert 14 < rates.max() <= 16
    assert [len(Mamba2Config().build(width).D) for width in (64, 512)] == [4, 16]
    gates = MLSTMConfig().build(64).gates
    torch.testing.assert_close(gates.bias[4:].detach(), torch.tensor([3.0, 4.0, 5.0, 6.0]))
    assert not gates.weight.any()
    deep, flat = (MLSTMConfig(layers=n).build(64).down.weight.std() for n in (10, 1))
    assert 9 < flat / deep < 11


@pytest.mark.plain
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LinearAttentionConfig(heads=3), "heads=3 must divide width=16"),
        (RetNetConfig(heads=16), "heads=16 must divide width=16 into even parts"),
        (HGRN2Config(heads=5), "heads=5 must divide width=16"),
        (HGRN2Config(layer=2, layers=2), "want 0 <= layer < layers, got 2 of 2"),
        (MambaConfig(states=0), "states=0"),
        (Mamba2Config(heads=5), "heads=5 must divide the inner width 32"),
        (Mamba2Config(groups=3), "groups=3 the heads"),
        (MLSTMConfig(block=5), "block=5 must divide inner width 32"),
        (MLSTMConfig(layers=0), "layers at least 1"),
    ],
    ids=str,
)
def test_configs_that_do_not_fit(config, message):
    with pytest.raises(ValueError, match=message):
        config.build(WIDTH)
