"""DeltaNet and Gated DeltaNet: every option against the equations, and through the laws."""

import numpy as np
import pytest
import torch
from laws import causal_law, live_law, reset_law, rows_law, split_law

from stepscan import state as states
from stepscan.mixers.delta_net import DeltaNetConfig
from stepscan.mixers.gated_delta_net import GatedDeltaNetConfig

WIDTH, T = 16, 20
OPTIONS = {
    "published": {},
    "negative": {"eig_range": (-1.0, 1.0)},
    "range": {"eig_range": (-0.5, 0.75)},
    "product": {"n_householder": 3, "eig_range": (-1.0, 1.0)},
    "kaczmarz": {"step_size": "kaczmarz"},
    "both": {"step_size": "kaczmarz", "n_householder": 2, "window": 2},
    "one_head": {"heads": 1, "window": 1},
}
either = pytest.mark.parametrize("config", [DeltaNetConfig, GatedDeltaNetConfig])
SHARED = {
    "shared_keys": {"key_heads": 2},
    "one_key_head": {"key_heads": 1, "norm_eps": 0.1, "step_size": "kaczmarz", "n_householder": 2},
}
PAIRS = [(c, o) for c in (DeltaNetConfig, GatedDeltaNetConfig) for o in OPTIONS.values()]
every_option = pytest.mark.parametrize(
    ("config", "options"), PAIRS + [(GatedDeltaNetConfig, o) for o in SHARED.values()]
)


@every_option
def test_laws(config, options):
    mixer, x = config(**options).build(WIDTH).double(), torch.randn(3, T, WIDTH).double()
    state, resets, params = states.detach(mixer(x)[1]), torch.rand(3, T) < 0.15, mixer.parameters()
    step, params = lambda xs, state, resets: mixer(xs[0], state, resets), list(params)
    split_law(step, (x,), state, [0, 3, 4, 11], resets=resets, params=params)
    reset_law(step, (x,), state, resets, params=params)
    rows_law(step, (x,), state, resets=resets, params=params)
    causal_law(step, (x,), 9)
    live_law(mixer, x)


def oracle(mixer, x):
    """The equations of the papers for one sequence, token by token, in numpy and float64."""
    p = {name: t.detach().numpy() for name, t in mixer.named_parameters()}
    config, sigmoid = mixer.config, lambda z: 1 / (1 + np.exp(-z))
    n, H, (low, high) = config.n_householder, config.heads, config.eig_range
    filters, gated = p["inputs.conv.weight"], "gate.weight" in p
    values = p["out.weight"].shape[1]
    keys = (filters.shape[0] - n * values) // (1 + n)
    past, ys = np.zeros(filters.shape), []
    shared = H if getattr(config, "key_heads", None) is None else config.key_heads
    S = np.zeros((H, keys // shared, values // H))
    for x_t in x:
        past = np.concatenate([past[:, 1:], (p["inputs.qkv.weight"] @ x_t)[:, None]], 1)
        qkv = (past * filters).sum(1)
        qkv = qkv * sigmoid(qkv)
        owner = [h // (H // shared) for h in range(H)]
        q = qkv[:keys].reshape(shared, -1)[owner]
        k = qkv[keys : (1 + n) * keys].reshape(n, shared, -1)[:, owner]
        v = qkv[(1 + n) * keys :].reshape(n, H, -1)
        beta = p["inputs.strength.weight"] @ x_t + p.get("inputs.strength.bias", 0)
        beta = (1 - high) + (high - low) * sigmoid(beta).reshape(n, H)
        square = (k * k).sum(-1)
        if config.step_size == "kaczmarz":
            beta = beta / (square + 1e-6)
        else:
            k = k / np.sqrt(square + 1e-6)[..., None]
        q = q / np.sqrt((q * q).sum(-1, keepdims=True) + 1e-6) / np.sqrt(keys / shared)
        if gated:
            step = np.log1p(np.exp(p["decay.step.weight"] @ x_t + p["decay.step_bias"]))
            S = S * np.exp(-np.exp(p["decay.log_rate"]) * step)[:, None, None]
        for j in range(n):
            for h in range(H):
                S[h] += beta[j, h] * np.outer(k[j, h], v[j, h] - S[h].T @ k[j, h])
        y = np.einsum("hkv,hk->hv", S, q)
        eps = getattr(config, "norm_eps", 1e-5)
        y = y / np.sqrt((y * y).mean(-1, keepdims=True) + eps) * p["norm.weight"]
        gate = p["gate.weight"] @ x_t if gated else 1
        ys.append(p["out.weight"] @ (y.ravel() * (gate * sigmoid(gate) if gated else 1)))
    return np.stack(ys), S


@every_option
def test_equals_a_loop_over_the_equations(config, options):
    mixer, x = config(**options).build(WIDTH).double(), torch.randn(2, 70, WIDTH).double()
    y, state = mixer(x)
    for row in range(2):
        want, memory = map(torch.from_numpy, oracle(mixer, x[row].numpy()))
        torch.testing.assert_close(y[row], want, atol=1e-10, rtol=0)
        torch.testing.assert_close(state.memory[row], memory, atol=1e-10, rtol=0)


def test_kaczmarz_step_at_full_strength_stores_a_value_under_a_key_of_any_length():
    mixer = DeltaNetConfig(step_size="kaczmarz", heads=1).build(WIDTH).double()
    with torch.no_grad():
        mixer.inputs.strength.bias.fill_(100.0)
        mixer.inputs.qkv.weight.mul_(10)
    x = torch.randn(1, 1, WIDTH).double()
    inputs, _ = mixer.inputs(x)
    assert inputs.k.norm() > 2
    read = torch.einsum("bthk,bhkv->bthv", inputs.k, mixer(x)[1].memory)
    torch.testing.assert_close(read, inputs.v, rtol=1e-5, atol=0)


def test_published_initial_decays():
    gate = GatedDeltaNetConfig(heads=48).build(64).decay
    rate, step = gate.log_rate.exp(), torch.nn.functional.softplus(gate.step_bias)
    assert 0 < rate.min() < 4
    assert 12 < rate.max() < 16
    assert 1e-3 < step.min() < 3e-3
    assert 3e-2 < step.max() < 1e-1


@either
def test_a_zero_input_keeps_gradients_small(config):
    mixer, x = config().build(WIDTH), torch.zeros(1, 6, WIDTH, requires_grad=True)
    y, state = mixer(x)
    (y.sum() + state.memory.sum()).backward()
    assert x.grad.abs().max() < 1e4


@pytest.mark.plain
@either
def test_errors_say_what_to_fix(config):
    for change, match in (
        ({"heads": 5}, "heads=5 must divide"),
        ({"eig_range": (-2.0, 1.0)}, r"want -1 <= low < high <= 1, got \(-2.0, 1.0\)"),
        ({"eig_range": (0.5, 0.5)}, "eig_range"),
        ({"n_householder": 0}, "want 1 or more writes a token, got 0"),
        ({"step_size": "kaczmar"}, "Did you mean 'kaczmarz'"),
        ({"window": 0}, "want window at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=match):
            config(**change).build(WIDTH)


def test_key_heads_that_do_not_divide_are_refused():
    for change in ({"key_heads": 3}, {"key_heads": 0}, {"key_heads": 4, "key_ratio": 0.875}):
        with pytest.raises(ValueError, match=r"key_heads=\d must divide heads=4"):
            GatedDeltaNetConfig(**change).build(WIDTH)
