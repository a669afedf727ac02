"""Bands as wide as the errors ask for, and paths that hang together."""

import json

import numpy as np
import pytest
import torch

from stepscan.apps.kinds import domain_of
from stepscan.apps.model import Model
from stepscan.apps.series.calibration import (
    at_levels,
    at_scores,
    calibrate,
    normal_scores,
    sample_paths,
    stretches,
)
from stepscan.apps.series.domain import LEVELS
from stepscan.models import Forecast, Inputs, ModelConfig, SequenceModel

SCORES = torch.special.ndtri(torch.tensor(LEVELS, dtype=torch.float64))


def quantiles(width, shape=(400, 6)):
    """Those of a normal distribution with this standard deviation around a moving middle."""
    middle = torch.sin(torch.arange(shape[0] * shape[1], dtype=torch.float64)).view(shape)
    return middle[..., None] + width * SCORES


def outcomes(said, rng, spread=1.0):
    return said[..., 3] + spread * torch.randn(said.shape[:-1], generator=rng, dtype=torch.float64)


def covered(said, actual, low=0.1, high=0.9):
    inside = (actual >= said[..., LEVELS.index(low)]) & (actual <= said[..., LEVELS.index(high)])
    return inside.double().mean().item()


@pytest.mark.parametrize("width", [0.4, 1.0, 3.0])
def test_bands_of_any_width_become_right(width):
    rng = torch.Generator().manual_seed(0)
    said = quantiles(width)
    seen, new = (outcomes(said, rng) for _ in range(2))
    factors = torch.tensor(stretches(said, seen, LEVELS), dtype=torch.float64)
    middle = said[..., 3:4]
    better = middle + (said - middle) * factors
    assert covered(better, new) == pytest.approx(0.8, abs=0.03)
    assert covered(better, new, 0.05, 0.95) == pytest.approx(0.9, abs=0.03)
    assert factors[3] == 1, "the median stays"
    assert np.delete(factors.numpy(), 3) == pytest.approx(1 / width, rel=0.15)
    if width != 1.0:  # the same check must see bands that were not corrected
        assert abs(covered(said, new) - 0.8) > 0.15


def test_lopsided_errors_move_each_side_on_its_own():
    rng = torch.Generator().manual_seed(1)
    said = quantiles(1.0)
    noise = outcomes(said, rng) - said[..., 3]
    seen = said[..., 3] + torch.where(noise > 0, 4 * noise, noise / 2)
    factors = stretches(said, seen, LEVELS)
    assert factors[-1] == pytest.approx(4, rel=0.15)
    assert factors[0] == pytest.approx(0.5, rel=0.15)


def test_the_rank_is_that_of_split_conformal_prediction():
    """With n values the next one lies below the upper edge with probability ceil((n+1)p)/(n+1)."""
    rng, n, hits = torch.Generator().manual_seed(2), 49, 0
    rounds = 4000
    said = quantiles(1.0, (n + 1, 1))
    for _ in range(rounds):
        y = outcomes(said, rng)
        factor = stretches(said[:n], y[:n], LEVELS)[5]  # level 0.9
        upper = said[n, 0, 3] + factor * (said[n, 0, 5] - said[n, 0, 3])
        hits += int(y[n, 0] <= upper)
    wanted = 45 / 50  # ceil(50 * 0.9) of 50
    assert hits / rounds == pytest.approx(wanted, abs=3 * (wanted * 0.1 / rounds) ** 0.5)


def test_too_few_values_leave_the_bands_alone():
    said = quantiles(1.0, (6, 6))
    actual = outcomes(said, torch.Generator().manual_seed(0))
    assert stretches(said[:6], actual, LEVELS) == [1.0] * 7
    actual[:] = torch.nan
    assert stretches(quantiles(1.0), actual[:1].expand(400, 6), LEVELS) == [1.0] * 7


def head_model(calibrated):
    head = Forecast(horizon=3, quantiles=LEVELS, calibrated=calibrated)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SequenceModel(ModelConfig(width=8, reals=4, head=head, layers="min_gru")).eval()


def test_a_head_that_keeps_factors_says_the_same_until_they_are_set():
    plain, kept = head_model(False), head_model(True)
    assert "head.stretch" not in plain.state_dict(), "models saved before can still be read"
    x = Inputs(reals=torch.randn(2, 5, 4))
    before, _ = plain(x)
    after, _ = kept(x)
    torch.testing.assert_close(before, after, rtol=0, atol=0)
    kept.head.stretch.copy_(torch.tensor([0.1, 3.0, 2.0, 1.0, 2.0, 0.0, 5.0]))
    wide, _ = kept(x)
    assert (wide.diff(dim=-1) >= 0).all(), "quantiles cannot cross, whatever the factors"
    torch.testing.assert_close(wide[..., 3], before[..., 3])
    torch.testing.assert_close(wide[..., 4] - wide[..., 3], 2 * (before[..., 4] - before[..., 3]))


def test_calibration_of_a_model_is_kept_with_it(models, tmp_path):
    model = Model.load(models("series").about["folder"])
    stretch = model.network.head.stretch
    assert (stretch != 1).any()
    assert stretch[3] == 1
    model.save(tmp_path / "copy")
    again = Model.load(tmp_path / "copy")
    assert again.network.head.stretch.equal(stretch)
    assert json.loads((tmp_path / "copy/config.json").read_text())["model"]["head"]["calibrated"]


def test_calibration_makes_the_validation_part_covered(small):
    """And leaves a head without factors as it is."""
    domain, model = small("series")
    valid = domain.packed("valid")
    at = valid.origins(1)
    actual, scale = valid.actual_at(at), valid.scale_at(at)
    calibrate(model, actual, scale, lambda: domain.forecast(model, valid, at))
    said = domain.forecast(model, valid, at)
    seen = ~actual.isnan()
    assert covered(said[seen], actual[seen]) == pytest.approx(0.8, abs=0.02)
    other = head_model(False)
    calibrate(other, actual, scale, lambda: pytest.fail("nothing to measure"))
    calibrate(model, actual, scale, lambda: domain.forecast(model, valid, at))
    torch.testing.assert_close(domain.forecast(model, valid, at), said)  # measured afresh


def test_scores_and_values_are_inverse_to_each_other():
    said = quantiles(2.0, (5, 3))
    z = torch.linspace(-3, 3, 11, dtype=torch.float64).expand(5, 3, -1)
    values = at_scores(said, z, LEVELS)
    torch.testing.assert_close(values, said[..., 3:4] + 2 * z)  # exact for a normal distribution
    back = normal_scores(said[..., None, :].expand(-1, -1, 11, -1), values, LEVELS)
    torch.testing.assert_close(back, z)


def test_levels_between_those_learned():
    said = quantiles(1.0, (4, 2))
    assert at_levels(said, LEVELS, LEVELS) is said
    torch.testing.assert_close(at_levels(said, [0.25, 0.5], LEVELS), said[..., 2:4])
    between = at_levels(said, [0.8], LEVELS)[..., 0] - said[..., 3]
    assert between.numpy() == pytest.approx(0.8416, abs=1e-4)
    with pytest.raises(ValueError, match=r"from 0.05 to 0.95, .* got 0.99; for the tails draw"):
        at_levels(said, [0.99], LEVELS)


@pytest.mark.parametrize("rho", [0.0, 0.7, 0.95])
def test_paths_have_the_marginals_and_the_persistence(rho):
    rng = torch.Generator().manual_seed(3)
    skewed = torch.tensor([-3.0, -1.5, -0.5, 0.0, 1.0, 4.0, 9.0], dtype=torch.float64)
    said = skewed + torch.arange(8, dtype=torch.float64)[None, :, None]
    paths = sample_paths(said, LEVELS, rho, 40_000, rng)
    assert paths.shape == (1, 8, 40_000)
    for i, level in enumerate(LEVELS):
        below = (paths[0] <= said[0, :, i : i + 1]).double().mean(1)
        assert below.numpy() == pytest.approx(level, abs=0.01)
    z = normal_scores(said[..., None, :].expand(1, 8, 40_000, 7), paths, LEVELS)[0]
    found = np.corrcoef(z.numpy())
    for lag in (1, 2, 5):
        assert np.diag(found, lag) == pytest.approx(rho**lag, abs=0.03)


def test_sums_over_a_path_are_wider_when_errors_persist():
    said = quantiles(1.0, (1, 10))
    rng = torch.Generator().manual_seed(0)
    loose, tied = (sample_paths(said, LEVELS, rho, 5000, rng).sum(1).std() for rho in (0.0, 0.9))
    assert tied > 2 * loose


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_persistence_is_found_again(small, rho):
    model = small("series")[1]
    rng = torch.Generator().manual_seed(0)
    said = quantiles(1.0, (500, 6))
    actual = sample_paths(said, LEVELS, rho, 1, rng)[..., 0]
    calibrate(model, actual, torch.ones(500, dtype=torch.float64), lambda: said)
    assert float(model.head.persistence) == pytest.approx(rho, abs=0.06)


def test_forecasts_as_samples(models):
    model = Model.load(models("series").about["folder"])
    drawn = model.forecast(samples=400, seed=1)
    assert list(drawn.columns) == ["series", "time", "sample", "value"]
    assert len(drawn) == 2 * 6 * 400
    assert drawn.equals(model.forecast(samples=400, seed=1))
    assert not drawn.equals(model.forecast(samples=400, seed=2))
    said = model.forecast().set_index(["series", "time"])
    share = drawn.set_index(["series", "time"])["value"]
    for level in (0.1, 0.5, 0.9):
        below = (share <= said[str(level)].reindex(share.index)).groupby(level=[0, 1]).mean()
        assert below.mean() == pytest.approx(level, abs=0.03)
    with pytest.raises(ValueError, match="want 1 sample or more, got 0"):
        model.forecast(samples=0)


def test_forecasts_as_bands_and_chosen_quantiles(models):
    model = Model.load(models("series").about["folder"])
    whole = model.forecast()
    bands = model.forecast(levels=(80,))
    name = model.name
    assert list(bands.columns) == ["unique_id", "ds", name, f"{name}-lo-80", f"{name}-hi-80"]
    for column, level in ((name, "0.5"), (f"{name}-lo-80", "0.1"), (f"{name}-hi-80", "0.9")):
        assert bands[column].to_numpy() == pytest.approx(whole[level].to_numpy())
    assert bands["ds"].astype(str).tolist() == whole["time"].tolist()
    short = model.forecast(horizon=2, quantiles=(0.3, 0.5))
    assert list(short.columns) == ["series", "time", "0.3", "0.5"]
    first = whole.groupby("series").head(2)
    assert short["0.5"].to_numpy() == pytest.approx(first["0.5"].to_numpy())
    for asked, said in (
        ({"horizon": 7}, "horizon from 1 to 6, what the model learned, got 7"),
        ({"horizon": 0}, "got 0"),
        ({"levels": (101,)}, "between 0 and 100 percent, got 101"),
        ({"levels": (80,), "samples": 2}, "one of quantiles, levels and samples"),
        ({"levels": (99,)}, "for the tails draw samples"),
    ):
        with pytest.raises(ValueError, match=said):
            model.forecast(**asked)


def test_every_domain_of_series_asks_for_calibrated_bands(datasets):
    assert domain_of(datasets["series"]).head.calibrated
