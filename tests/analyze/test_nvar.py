"""NVAR: exact where the equation is of degree two, and good where samples are few."""

from functools import cache

import pytest
import torch
from small_training import build_real, train

from stepscan.analyze.chaos import valid_time
from stepscan.analyze.nvar import NVAR
from stepscan.mixers.gru import GRUConfig
from stepscan.tasks import dynamics
from stepscan.tasks.base import Batch


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


SYSTEMS = {
    "lorenz": lambda: dynamics.lorenz(every=0.03),
    "roessler": lambda: dynamics.roessler(every=0.1),
    "lorenz96": lambda: dynamics.lorenz96(every=0.02),
    "kuramoto_sivashinsky": lambda: dynamics.kuramoto_sivashinsky(every=0.5),
}
SEEN, LENGTH, STEPS = 32, 64, 400


class Windows:
    """Next samples in windows of one long series, as a task draws them."""

    def __init__(self, x):
        self.x, self.channels, self.outputs = x.float(), x.shape[1], x.shape[1]

    def draw(self, n, rng):
        at = torch.randint(len(self.x) - LENGTH, (n, 1), generator=rng)
        rows = self.x[at + torch.arange(LENGTH + 1)]
        moved = rows[:, 1:] - rows[:, :-1]
        return Batch(rows[:, :-1], moved / moved.std(), torch.ones(n, LENGTH, dtype=torch.bool))


@cache
def held(name, samples):
    """Median valid time of NVAR and of two layers of gru, in Lyapunov times, over 40 starts."""
    system = SYSTEMS[name]()
    rng = torch.Generator().manual_seed(0)
    seen = dynamics.trajectories(system, 1, samples, rng)[0]
    truth = dynamics.trajectories(system, 40, SEEN + 300, rng)
    nvar = NVAR().fit(seen).forecast(truth[:, :SEEN], 300)
    task = Windows(system.standardized(seen))
    size = (task.x[1:] - task.x[:-1]).std()
    model = train(build_real((GRUConfig(),) * 2, task), task.draw, steps=STEPS)
    with torch.no_grad():
        x = system.standardized(truth[:, :SEEN]).float()
        moved, state = model(x)
        last, said = x[:, -1:], []
        for _ in range(300):
            last = last + size * moved[:, -1:]
            said.append(last)
            moved, state = model(last, state)
    mean, scale = (torch.tensor(m, dtype=torch.float64) for m in (system.mean, system.scale))
    gru = torch.cat(said, 1).double() * scale + mean
    return [valid_time(y, truth[:, SEEN:], system).median().item() for y in (nvar, gru)]


@pytest.mark.slow
@pytest.mark.plain
def test_few_samples_favour_nvar(record_property):
    """Of the four systems, three are held longer by NVAR at 500 samples."""
    found = {name: held(name, 500) for name in SYSTEMS}
    record_property("Lyapunov times of nvar and gru", found)
    assert sum(nvar > gru for nvar, gru in found.values()) >= 3


@pytest.mark.slow
@pytest.mark.plain
@pytest.mark.xfail(
    strict=False,
    reason="at 20,000 samples NVAR and gru hold lorenz 4.84 and 1.79 Lyapunov times, roessler 0.71 "
    "and 0.31, lorenz96 4.15 and 1.09, kuramoto_sivashinsky 0.84 and 0.86: closer in one of four",
)
def test_many_samples_let_a_network_close_up(record_property):
    """At 20,000 samples the network's share of NVAR's time has risen in three of four."""
    found = {name: {n: held(name, n) for n in (500, 20_000)} for name in SYSTEMS}
    record_property("Lyapunov times of nvar and gru, by samples", found)
    closer = sum(
        each[20_000][1] / max(each[20_000][0], 1e-9) > each[500][1] / max(each[500][0], 1e-9)
        for each in found.values()
    )
    assert closer >= 3
