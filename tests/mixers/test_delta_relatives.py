"""KDA, Comba, Gated DeltaProduct: the equations in plain numpy; what the delta rule is good for."""

import numpy as np
import pytest
import torch
from laws import assert_agree, outcome
from torch.nn import functional as F

from stepscan.mixers.comba import CombaConfig
from stepscan.mixers.gated_delta_net import GatedDeltaNetConfig
from stepscan.mixers.gated_delta_product import GatedDeltaProductConfig
from stepscan.mixers.kda import KDAConfig
from stepscan.ops.delta_rule import delta_rule

WIDTH, T = 16, 40


def built(config):
    mixer = config.build(WIDTH).double()
    x = torch.randn(1, T, WIDTH, dtype=torch.float64)
    return mixer, {n: p.detach().numpy() for n, p in mixer.named_parameters()}, x, x[0].numpy()


def agree(mixer, x, want):
    np.testing.assert_allclose(mixer(x)[0][0].detach(), np.stack(want), rtol=1e-10, atol=1e-10)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rms(x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)


def unit(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def delta_inputs(w, u, heads, keys):
    """q, k, v, beta of every token, as the papers have them."""
    qkv, filters = u @ w["inputs.qkv.weight"].T, w["inputs.conv.weight"]
    padded = np.concatenate([np.zeros((filters.shape[1] - 1, len(filters))), qkv])
    qkv = np.stack([(padded[t : t + filters.shape[1]].T * filters).sum(1) for t in range(T)])
    qkv = qkv * sigmoid(qkv)
    q, k, v = (a.reshape(T, heads, -1) for a in np.split(qkv, [keys, 2 * keys], 1))
    return unit(q) / np.sqrt(keys / heads), unit(k), v, sigmoid(u @ w["inputs.strength.weight"].T)


def test_kda_steps_as_published():
    mixer, w, x, u = built(KDAConfig(heads=2))
    q, k, v, beta = delta_inputs(w, u, 2, WIDTH)
    logits = (u @ w["decay.step.0.weight"].T @ w["decay.step.1.weight"].T).reshape(T, 2, 8)
    steps = np.log1p(np.exp(logits + w["decay.step_bias"]))
    alpha = np.exp(-np.exp(w["decay.log_rate"])[:, None] * steps)
    gate = sigmoid(u @ w["gate.0.weight"].T @ w["gate.1.weight"].T + w["gate.1.bias"])
    S, want = np.zeros((2, 8, 8)), []
    for t in range(T):
        for h in range(2):
            S[h] = alpha[t, h][:, None] * S[h]
            S[h] += beta[t, h] * np.outer(k[t, h], v[t, h] - S[h].T @ k[t, h])
        y = rms(np.einsum("hkv,hk->hv", S, q[t])) * w["norm.weight"]
        want.append(w["out.weight"] @ (y.ravel() * gate[t]))
    agree(mixer, x, want)


def test_comba_steps_as_published():
    mixer, w, x, u = built(CombaConfig(heads=2))
    with torch.no_grad():
        mixer.erase.normal_()
        mixer.correction.normal_()
    q, k, v, beta = delta_inputs(w, u, 2, 12)
    b, d = sigmoid(w["erase"])[:, None], w["correction"][:, None]
    q = q - d * b * k / np.sqrt(6)
    steps = np.log1p(np.exp(u @ w["decay.step.weight"].T + w["decay.step_bias"]))
    alpha = np.exp(-np.exp(w["decay.log_rate"]) * steps)
    gate = sigmoid(u @ w["gate.weight"].T)
    S, want = np.zeros((2, 6, 12)), []
    for t in range(T):
        for h in range(2):
            held = b[h] * (S[h].T @ k[t, h])  # before the decay
            S[h] = alpha[t, h] * S[h] + beta[t, h] * np.outer(k[t, h], v[t, h] - held)
        y = rms(np.einsum("hkv,hk->hv", S, q[t])) * w["norm.weight"]
        want.append(w["out.weight"] @ (y.ravel() * gate[t]))
    agree(mixer, x, want)


def test_published_initial_values():
    decay = KDAConfig(heads=4).build(64).decay
    rates, steps = decay.log_rate.exp(), F.softplus(decay.step_bias)
    assert 1 <= rates.min() <= rates.max() <= 16
    assert steps.shape == (4, 16)
    assert 0.99e-3 <= steps.min() < steps.max() <= 1.01e-1
    comba = CombaConfig(correction=0.02).build(64)
    torch.testing.assert_close(comba.correction, torch.full((4,), 0.02))
    assert (comba.erase == 1).all()


def test_gated_delta_product_is_gated_delta_net_with_other_defaults():
    product, want = GatedDeltaProductConfig(), {"eig_range": (-1.0, 1.0), "n_householder": 2}
    mixer, other = product.build(WIDTH), GatedDeltaNetConfig(**want).build(WIDTH)
    other.load_state_dict(mixer.state_dict())
    x = torch.randn(2, T, WIDTH)
    assert torch.equal(mixer(x)[0], other(x)[0])
    assert product != GatedDeltaNetConfig(**want)


def test_one_householder_step_is_the_plain_delta_rule():
    q, k, v = torch.randn(3, 2, T, 2, 5, dtype=torch.float64)
    k, beta = F.normalize(k, dim=-1), torch.rand(2, T, 2, dtype=torch.float64)
    plain = lambda x, s: delta_rule(x[0], x[1], x[2], beta=x[3], state=s)  # noqa: E731

    def product(x, s):
        k, v, beta = (part[:, :, None] for part in x[1:])
        return delta_rule(x[0], k, v, beta=beta, state=s)

    state = torch.randn(2, 2, 5, 5).double()
    got, want = (outcome(run, (q, k, v, beta), state) for run in (product, plain))
    assert_agree(got, want, what="n = 1")


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
def test_kaczmarz_recovers_a_linear_map_from_one_pass_over_orthogonal_keys(form):
    """Keys of length 0.3 to 3; a fixed step of 1 fits none of that."""
    d = 16
    k, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))
    k = (k * (0.3 + 2.7 * torch.rand(d, 1).double()))[None, :, None]
    M = torch.randn(d, d, dtype=torch.float64)
    v = k @ M
    run = lambda beta: delta_rule(k, k, v, beta=beta, form=form)[1][0, 0]  # noqa: E731
    kaczmarz = run(1 / k.square().sum(-1))
    torch.testing.assert_close(kaczmarz, M, atol=1e-13, rtol=0)
    assert (run(torch.ones(1, d, 1).double()) - M).abs().max() > 10
    same = F.normalize(k, dim=-1)
    ones = torch.ones(1, d, 1).double()
    steps = ones, 1 / same.square().sum(-1)
    unit, projected = (delta_rule(same, same, v, beta=s, form=form)[1] for s in steps)
    torch.testing.assert_close(unit, projected, atol=1e-12, rtol=0)


def test_kaczmarz_stays_bounded_where_a_fixed_step_diverges():
    """2000 noisy writes with keys that are not normalised."""
    k = torch.randn(1, 2000, 1, 16, dtype=torch.float64)
    v = k @ torch.randn(16, 16).double() / 4 + 0.1 * torch.randn(1, 2000, 1, 16).double()
    beta = 0.5 / (k.square().sum(-1) + 1e-6)
    assert delta_rule(k, k, v, beta=beta)[1].norm() < 10
    _, early = delta_rule(k[:, :100], k[:, :100], v[:, :100], beta=torch.ones(1, 100, 1).double())
    assert not early.norm() < 1e6


@pytest.mark.plain
def test_errors_say_what_to_fix():
    for config, match in (
        (KDAConfig(heads=5), "heads=5 must divide"),
        (KDAConfig(eig_range=(0.5, 0.5)), "eig_range"),
        (CombaConfig(heads=5), "heads=5 must divide"),
        (CombaConfig(window=0), "want window at least 1, got 0"),
        (GatedDeltaProductConfig(n_householder=0), "want 1 or more writes a token, got 0"),
    ):
        with pytest.raises(ValueError, match=match):
            config.build(WIDTH)
