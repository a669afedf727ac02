"""NVAR: exact where the equation is of degree two, and good where samples are few."""

import pytest
import torch

from stepscan.analyze.chaos import valid_time
from stepscan.analyze.nvar import NVAR
from stepscan.tasks import dynamics


def henon(steps):
    """x' = 1 - 1.4 x^2 + y, y' = 0.3 x: a map of degree two."""
    x = torch.tensor([0.1, 0.1], dtype=torch.float64)
    seen = []
    for _ in range(steps + 50):
        x = torch.stack([1 - 1.4 * x[0] ** 2 + x[1], 0.3 * x[0]])
        seen.append(x)
    return torch.stack(seen[50:])


def test_a_map_of_degree_two_is_found_exactly():
    x = henon(400)
    said = NVAR(delays=1, penalty=1e-12).fit(x[:300]).forecast(x[None, :300], 10)[0]
    torch.testing.assert_close(said, x[300:310], atol=1e-4, rtol=0)
    straight = NVAR(delays=1, penalty=1e6).fit(x[:300]).forecast(x[None, :300], 10)[0]
    assert (straight - x[300:310]).abs().max() > 0.1


def test_rows_are_forecast_alone_and_the_newest_sample_comes_first():
    """x_{t+1} = x_{t-1}: with two delays known exactly, with one not."""
    wave = torch.randn(2, 1, generator=torch.Generator().manual_seed(0)).repeat(100, 1)
    model = NVAR(penalty=1e-12).fit(wave)
    said = model.forecast(torch.stack([wave[:10], wave[1:11]]), 4)
    torch.testing.assert_close(said[0, :, 0], wave[10:14, 0].double(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(said[1, :, 0], wave[11:15, 0].double(), atol=1e-4, rtol=1e-4)


@pytest.mark.plain
def test_errors_say_what_to_fix():
    with pytest.raises(ValueError, match="want delays >= 1"):
        NVAR(delays=0)
    with pytest.raises(ValueError, match="more than 2 samples, got 2"):
        NVAR().fit(torch.zeros(2, 1))
    with pytest.raises(ValueError, match="call fit first"):
        NVAR().forecast(torch.zeros(1, 5, 1), 3)


def test_lorenz_is_forecast_from_500_samples():
    """For two Lyapunov times and more, where repeating the last step holds for less than half."""
    system, rng = dynamics.lorenz(every=0.03), torch.Generator().manual_seed(0)
    seen = dynamics.trajectories(system, 1, 500, rng)[0]
    truth = dynamics.trajectories(system, 40, 232, rng)
    said = NVAR().fit(seen).forecast(truth[:, :32], 200)
    step = (truth[:, 31:32] - truth[:, 30:31]) * torch.arange(1, 201)[:, None]
    assert valid_time(said, truth[:, 32:], system).median() > 2
    assert valid_time(truth[:, 31:32] + step, truth[:, 32:], system).median() < 0.5
