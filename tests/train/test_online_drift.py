"""Breathing that changes its pace: a network that goes on learning against one that has stopped.

A small phantom of Pohl et al. 2022 (arXiv:2207.00415 and later work on chest and liver cine MRI):
displacement fields of a breathing body, their principal components by SVD, and a recurrent network
that foretells the weights of the components. Where targets come h steps late, learning comes h
steps late too.
"""

import numpy as np
import pytest
import torch
from torch import nn

from stepscan.mixers import MIXERS
from stepscan.train.online import Online

CHANGE, STEPS = 500, 1000  # at ten frames a second
ORDER = 12  # of the linear forecast, in steps


def breathing(seed):
    """The weights of three principal components, [STEPS 3], of fields that follow two motions."""
    rng = np.random.default_rng(seed)
    pace = np.where(np.arange(STEPS) < CHANGE, 2 * np.pi / 38, 2 * np.pi / 22)
    phase = np.cumsum(pace * (1 + 0.05 * rng.standard_normal(STEPS)))
    lag = np.where(np.arange(STEPS) < CHANGE, 0.4, 1.4)  # belly and chest drift apart
    chest, belly = np.cos(phase / 2) ** 4, np.cos((phase - lag) / 2) ** 6
    place = np.linspace(0, 1, 40)
    fields = np.outer(chest, np.sin(np.pi * place)) + np.outer(belly, place**2)
    fields += 0.01 * rng.standard_normal(fields.shape)
    middle = fields[:CHANGE].mean(0)
    components = np.linalg.svd(fields[:CHANGE] - middle, full_matrices=False)[2][:3]
    weights = (fields - middle) @ components.T
    return torch.from_numpy(weights / weights[:CHANGE].std())[None]


class Forecaster(nn.Module):
    """The weights of the components, `ahead` steps from now, as a change from now."""

    def __init__(self, seed, width=10):
        super().__init__()
        torch.manual_seed(seed)
        self.into = nn.Linear(3, width, dtype=torch.float64)
        self.cell = MIXERS["gru"]().build(width).double()
        self.out = nn.Linear(width, 3, dtype=torch.float64)

    def forward(self, x, state=None, resets=None):
        y, state = self.cell(self.into(x), state)
        return x + self.out(y), state


def squared(outputs, target):
    return (outputs - target).square().mean()


def errors(method, ahead, seed):
    """Squared errors after the change, [frozen, learning on]; both learned online before it."""
    y = breathing(seed)
    found = []
    for learns in (False, True):
        model = Forecaster(seed)
        learner = Online(model, squared, torch.optim.Adam(model.parameters(), 5e-3), method=method)
        wrong = []
        for now in range(ahead, STEPS - ahead):
            if now == CHANGE and not learns:
                learner.optimizer = None
            known = now - ahead  # the last step whose target has come
            learner.step(y[:, known : known + 1], y[:, now : now + 1])
            with torch.no_grad():  # what the weights of now say of the steps since
                said, _ = model(y[:, known + 1 : now + 1], learner.state)
            if now >= CHANGE + 100:
                wrong.append((said[:, -1] - y[:, now + ahead]).square().mean().item())
        found.append(sum(wrong) / len(wrong))
    return found


def linear(ahead, seed):
    """Ridge regression on the last steps, fitted before the change: squared error after it."""
    y = breathing(seed)[0].numpy()
    rows = np.stack([y[t - ORDER + 1 : t + 1].ravel() for t in range(ORDER, STEPS - ahead)])
    wanted = y[ORDER + ahead : STEPS]
    before = CHANGE - ORDER - ahead
    x = rows[:before]
    weights = np.linalg.solve(x.T @ x + 1e-2 * np.eye(x.shape[1]), x.T @ wanted[:before])
    late = slice(CHANGE + 100 - ORDER, None)
    return float(((rows[late] @ weights - wanted[late]) ** 2).mean())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_learning_on_helps_after_a_change(seed, record_property):
    """At most 0.7 of the frozen network's error."""
    frozen, online = errors("rtrl", 6, seed)
    record_property("frozen, online, linear", (frozen, online, linear(6, seed)))
    assert online <= 0.7 * frozen


@pytest.mark.slow
@pytest.mark.parametrize("method", ["snap1", "uoro", "dni"])
def test_the_cheaper_methods_help_too(method):
    """Any help counts: they approximate."""
    frozen, online = errors(method, 6, 0)
    assert online < frozen


@pytest.mark.slow
def test_short_and_long_horizons():
    """Reported: whom a longer horizon favours."""
    ratios = {}
    for ahead in (1, 12):
        _, online = errors("rtrl", ahead, 0)
        ratios[ahead] = online / linear(ahead, 0)
    assert ratios[12] < ratios[1]
