"""The mLSTM of xLSTM 7B, against a loop over its equations."""

import numpy as np
import pytest
import torch

from stepscan.mixers.mlstm_large import MLSTMLargeConfig

WIDTH, T = 16, 70
OPTIONS = {
    "published": {},
    "uncapped": {"gate_cap": None},
    "capped": {"gate_cap": 2.0, "heads": 2},
    "sizes": {"key_ratio": 1.5, "value_ratio": 0.5, "heads": 1, "norm_eps": 0.1},
}


def loop(mixer, x):
    """One sequence, token by token, in numpy: S and n as they are, not on a scale e^m.

    The published guard of the division, 1e-6, is on that scale; so m is followed all the same.
    """
    p, config = {name: t.detach().numpy() for name, t in mixer.named_parameters()}, mixer.config
    H, cap = config.heads, config.gate_cap
    S, n, m, ys = 0.0, 0.0, np.zeros((H, 1)), []
    for x_t in x:
        q, k, v, gate = np.split(p["inputs.weight"] @ x_t, np.cumsum(mixer.sizes)[:-1])
        q, k, v = q.reshape(H, -1), k.reshape(H, -1), v.reshape(H, -1)
        gates = p["gates.weight"] @ x_t + p["gates.bias"]
        gates = gates if cap is None else cap * np.tanh(gates / cap)
        i, f = np.exp(gates[:H, None]), 1 / (1 + np.exp(-gates[H:, None]))
        S = f[..., None] * S + (i * k)[..., None] * v[:, None]
        n = f * n + i * k
        m = np.maximum(np.log(f) + m, np.log(i))
        q = q / np.sqrt(q.shape[1])
        bound = np.maximum(np.abs((n * q).sum(1, keepdims=True)), 1) + 1e-6 * np.exp(m)
        h = np.einsum("hkv,hk->hv", S, q) / bound
        h = h - h.mean(1, keepdims=True)
        h = h / np.sqrt((h * h).mean(1, keepdims=True) + config.norm_eps)
        ys.append(p["out.weight"] @ (h.ravel() * p["norm"] / (1 + np.exp(-gate))))
    return np.stack(ys), S


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_a_loop_over_the_equations(options):
    mixer = MLSTMLargeConfig(**options).build(WIDTH).double()
    with torch.no_grad():
        mixer.gates.weight.normal_()
        mixer.gates.bias.normal_(std=2)
    x = torch.randn(2, T, WIDTH).double()
    y, state = mixer(x)
    for row in range(2):
        want, memory = map(torch.from_numpy, loop(mixer, x[row].numpy()))
        torch.testing.assert_close(y[row], want, atol=1e-9, rtol=0)
        held = state.memory[row, ..., :-1] * state.log_scale[row].exp()[:, None, None]
        torch.testing.assert_close(held, memory, atol=1e-9, rtol=1e-9)


def test_gates_are_bounded_whatever_the_input():
    """A token with a gate of 1e6 would wipe out all others; the cap leaves e^-2c of them."""
    x = torch.randn(1, 2, WIDTH).double()
    for cap, kept in ((None, False), (3.0, True)):
        mixer = MLSTMLargeConfig(gate_cap=cap, heads=1).build(WIDTH).double()
        with torch.no_grad():
            mixer.gates.weight.zero_()
            mixer.gates.weight[0] = 1e6 * x[0, 1]  # the input gate likes the second token
            mixer.gates.bias[1] = 50.0
        other = x.clone()
        other[:, 0] += 0.5
        moved = (mixer(x)[0][:, 1] - mixer(other)[0][:, 1]).abs().max()
        assert (moved > 1e-6) == kept


def test_published_initial_gates():
    bias = MLSTMLargeConfig().build(64).gates.bias
    assert bias[:4].tolist() == [-10.0] * 4
    assert bias[4:].tolist() == [3.0, 4.0, 5.0, 6.0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MLSTMLargeConfig(heads=3), "heads=3 must divide the keys=8 and values=16"),
        (MLSTMLargeConfig(gate_cap=0.0), "gate_cap above 0"),
        (MLSTMLargeConfig(layers=0), "layers at least 1"),
    ],
    ids=str,
)
def test_errors_say_what_to_fix(config, message):
    with pytest.raises(ValueError, match=message):
        config.build(WIDTH)
