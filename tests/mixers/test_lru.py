import numpy as np
import pytest
import torch
from laws import assert_near

from stepscan.mixers.lru import LRUConfig


def by_hand(mixer, x):
    """The published recurrence in numpy, one token after the other; x: [T, D]."""
    p = {name: value.detach().numpy() for name, value in mixer.named_parameters()}
    lam = np.exp(-np.exp(p["log_nu"]) + 1j * np.exp(p["log_theta"]))
    B, C = (p[name][0] + 1j * p[name][1] for name in ("write", "read"))
    h, ys = np.zeros_like(lam), []
    for x_t in x:
        h = lam * h + np.exp(p["log_gamma"]) * (B @ x_t)
        ys.append((C @ h).real + p["skip"] * x_t)
    return np.stack(ys)


@pytest.mark.parametrize("expansion", [0.5, 2.0])
def test_follows_the_published_recurrence(expansion):
    mixer = LRUConfig(expansion=expansion).build(6).double()
    x = torch.randn(2, 75, 6, dtype=torch.float64)
    want = np.stack([by_hand(mixer, row) for row in x.numpy()])
    assert_near(mixer(x)[0], torch.tensor(want), what="outputs")


@pytest.mark.parametrize("radii", [(0.0, 1.0), (0.5, 0.99)])
def test_starts_uniform_on_a_ring_with_the_gain_that_belongs_to_it(radii):
    low, high = radii
    mixer = LRUConfig(radius_min=low, radius_max=high, phase_max=1.0).build(4000)
    radius = (-mixer.log_nu.exp()).exp()
    part = (radius.square() - low**2) / (high**2 - low**2)  # uniform in area
    assert part.min() >= -1e-5
    assert part.max() <= 1 + 1e-5
    assert (part.sort().values - torch.linspace(0, 1, 4000)).abs().max() < 0.05
    assert mixer.log_theta.exp().sub(0.5).mean().abs() < 0.02
    assert mixer.log_theta.exp().max() <= 1
    assert_near(mixer.log_gamma.exp(), (1 - radius.square()).sqrt(), what="gamma")
    assert all(p.isfinite().all() for p in mixer.parameters())


def test_hidden_state_starts_with_the_variance_of_the_input():
    mixer = LRUConfig(radius_max=0.9).build(64)
    _, state = mixer(torch.randn(200, 60, 64))
    assert torch.view_as_complex(state.hidden).abs().square().mean().sub(1).abs() < 0.1


@pytest.mark.plain
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expansion": 0.0}, "leaves no hidden state"),
        ({"radius_min": 1.0}, "radius_min < radius_max"),
        ({"radius_max": 1.1}, "radius_max <= 1"),
        ({"phase_max": 0.0}, "phase_max > 0"),
    ],
)
def test_errors_say_what_to_fix(options, message):
    with pytest.raises(ValueError, match=message):
        LRUConfig(**options).build(16)
