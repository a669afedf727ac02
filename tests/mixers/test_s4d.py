import math

import numpy as np
import pytest
import torch
from laws import assert_near, reset_law, split_law
from torch.nn import functional as F

from stepscan import state as states
from stepscan.mixers.s4d import S4DConfig


def by_hand(mixer, x):
    """The published recurrence in numpy, one token after the other; x: [T, D]."""
    p = {name: value.detach().numpy() for name, value in mixer.named_parameters()}
    A = -np.exp(p["log_decay"]) + 1j * p["frequency"]
    dt = np.exp(p["log_step"])[:, None]
    C = p["readout"][..., 0] + 1j * p["readout"][..., 1]
    h, ys = np.zeros_like(A), []
    for x_t in x:
        h = np.exp(dt * A) * h + (np.exp(dt * A) - 1) / A * x_t[:, None]
        y = 2 * (C * h).real.sum(-1) + p["skip"] * x_t
        y = 0.5 * y * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
        value, gate = np.split(p["out.weight"] @ y + p["out.bias"], 2)
        ys.append(value / (1 + np.exp(-gate)))
    return np.stack(ys)


@pytest.mark.parametrize("state_size", [2, 64])
def test_follows_the_published_recurrence(state_size):
    mixer = S4DConfig(state_size=state_size).build(6).double()
    x = torch.randn(2, 75, 6, dtype=torch.float64)
    want = np.stack([by_hand(mixer, row) for row in x.numpy()])
    assert_near(mixer(x)[0], torch.tensor(want), what="outputs")


def test_starts_as_s4d_lin():
    mixer = S4DConfig(step_min=0.01, step_max=0.1).build(500)
    assert torch.equal(mixer.log_decay.exp(), torch.full((500, 32), 0.5))
    assert_near(mixer.frequency, (math.pi * torch.arange(32.0)).expand(500, 32), what="frequency")
    steps = mixer.log_step.exp()
    assert 0.01 <= steps.min() < 0.0105
    assert 0.095 < steps.max() <= 0.1
    assert mixer.log_step.mean().sub(math.log(0.01 * 0.1) / 2).abs() < 0.1  # uniform in the log
    assert torch.view_as_complex(mixer.readout).abs().square().mean().sub(1).abs() < 0.05
    assert set(mixer.slow) == set(mixer.no_decay) <= dict(mixer.named_parameters()).keys()


def test_laws_over_several_chunks():
    mixer, x = S4DConfig().build(4).double(), torch.randn(2, 75, 4, dtype=torch.float64)
    step = lambda xs, state, resets: mixer(xs[0], state, resets)  # noqa: E731
    resets, params = torch.rand(2, 75) < 0.05, list(mixer.parameters())
    split_law(step, (x,), mixer.init_state(2), [5, 5, 40], resets=resets, params=params)
    reset_law(step, (x,), mixer.init_state(2), resets, params=params)


@pytest.mark.plain
@pytest.mark.parametrize(
    ("options", "message"),
    [({"state_size": 5}, "want an even state_size"), ({"step_min": 0.0}, "want 0 < step_min")],
)
def test_errors_say_what_to_fix(options, message):
    with pytest.raises(ValueError, match=message):
        S4DConfig(**options).build(16)


def test_liquid_is_its_recurrence_and_obeys_the_laws():
    """h = (a + b x) h + b x, written out; the input decides what is kept."""
    mixer = S4DConfig(state_size=6, liquid=True).build(4).double()
    x, resets = torch.randn(2, 12, 4).double(), torch.rand(2, 12) < 0.15
    dt = mixer.log_step.exp()[:, None]
    A = torch.complex(-mixer.log_decay.exp(), mixer.frequency)
    a, b = (dt * A).exp(), ((dt * A).exp() - 1) / A
    h, ys = torch.zeros(2, *A.shape, dtype=A.dtype), []
    for x_t, reset in zip(x.unbind(1), resets.unbind(1), strict=True):
        h = h.masked_fill(reset[:, None, None], 0.0)
        h = (a + b * x_t[..., None]) * h + b * x_t[..., None]
        ys.append(2 * (torch.view_as_complex(mixer.readout) * h).real.sum(-1))
    want = F.glu(mixer.out(F.gelu(torch.stack(ys, 1) + mixer.skip * x)), dim=-1)
    torch.testing.assert_close(mixer(x, None, resets)[0], want, atol=1e-12, rtol=0)
    step = lambda xs, state, resets: mixer(xs[0], state, resets)  # noqa: E731
    state = states.detach(mixer(x.flip(1))[1])
    split_law(step, (x,), state, [3, 3, 8], resets=resets, params=list(mixer.parameters()))
    reset_law(step, (x,), state, resets, params=list(mixer.parameters()))
