import numpy as np
import pytest
import torch
from laws import assert_near, causal_law, reset_law, split_law

from stepscan.mixers.slstm import SLSTMConfig

WIDTH, HEADS = 12, 3


def random_mixer(**options):
    """R and b away from their zeros, so that each of them counts."""
    mixer = SLSTMConfig(heads=HEADS, **options).build(WIDTH).double()
    for p in mixer.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return mixer


def by_hand(mixer, x):
    """The published equations in numpy, one token and one head after the other; x: [T, D]."""
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    p = {name: value.detach().numpy() for name, value in mixer.named_parameters()}
    size, seen = WIDTH // HEADS, x
    if "conv.weight" in p:
        W = p["conv.weight"].shape[1]
        padded = np.concatenate([np.zeros((W - 1, WIDTH)), x])
        seen = [(padded[t : t + W] * p["conv.weight"].T).sum(0) for t in range(len(x))]
        seen = np.stack(seen) + p["conv.bias"]
        seen = seen * sigmoid(seen)
    out = np.zeros_like(x)
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        y = c = n = m = np.zeros(size)
        for t in range(len(x)):
            i, f, z, o = (
                p["gates"][g, head] @ source[t, part]
                + p["recurrent"][head, :, g].T @ y
                + p["bias"][g, head]
                for g, source in enumerate([seen, seen, x, x])
            )
            log_f = -np.logaddexp(0, -f)
            new = i if t == 0 else np.maximum(i, log_f + m)
            i, f, m = np.exp(i - new), np.exp(log_f + m - new), new
            c, n = f * c + i * np.tanh(z), f * n + i
            y = sigmoid(o) * c / n
            out[t, part] = (y - y.mean()) / np.sqrt(y.var() + 1e-5) * p["norm"][head]
    return out


@pytest.mark.parametrize("window", [0, 1, 4])
def test_follows_the_published_equations(window):
    mixer, x = random_mixer(window=window), torch.randn(2, 20, WIDTH, dtype=torch.float64)
    want = np.stack([by_hand(mixer, row) for row in x.numpy()])
    assert_near(mixer(x)[0], torch.tensor(want), what="outputs")


@pytest.mark.parametrize("window", [0, 1])
def test_laws_without_a_convolution(window):
    mixer, x = random_mixer(window=window), torch.randn(3, 20, WIDTH, dtype=torch.float64)
    step = lambda xs, state, resets: mixer(xs[0], state, resets)  # noqa: E731
    resets, params = torch.rand(3, 20) < 0.15, list(mixer.parameters())
    split_law(step, (x,), mixer.init_state(3), [0, 1, 9], resets=resets, params=params)
    reset_law(step, (x,), mixer.init_state(3), resets, params=params)
    causal_law(step, (x,), 9)


def test_starts_as_published():
    ramp = torch.tensor([0, 1 / 3, 2 / 3, 1])
    for layer, power in ((0, 0.3), (1, 0.95), (2, 1.6)):
        mixer = SLSTMConfig(heads=HEADS, layer=layer, layers=3).build(WIDTH)
        assert_near(mixer.bias[1], (5 - 12 * ramp**power).expand(HEADS, -1), what="forget bias")
        assert not mixer.bias[[0, 2, 3]].any()
        assert not mixer.recurrent.any()
    wide = SLSTMConfig().build(128)
    assert wide.gates.std().sub((2 / (5 * 128)) ** 0.5).abs() < 1e-3
    assert_near(wide.bias[1, 0, [0, -1]], torch.tensor([5.0, -7.0]), what="ends of the ramp")


@pytest.mark.plain
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "heads=5 must divide width=16"),
        ({"heads": 16}, "2 or more channels"),
        ({"window": -1}, "want a window of 0"),
        ({"layer": 2, "layers": 2}, "want 0 <= layer < layers, got 2 of 2"),
    ],
)
def test_errors_say_what_to_fix(options, message):
    with pytest.raises(ValueError, match=message):
        SLSTMConfig(**options).build(16)
