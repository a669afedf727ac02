import math

import pytest

from stepscan.analyze.intervals import mean_interval, paired_difference, t_quantile


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),  # scipy.stats.t.ppf of scipy 1.17.1
    [
        (0.975, 1, 12.706204736174694),
        (0.975, 2, 4.302652729749462),
        (0.975, 3, 3.1824463052837078),
        (0.975, 4, 2.7764451051977934),
        (0.975, 9, 2.262157162798205),
        (0.995, 2, 9.924843200918287),
        (0.95, 30, 1.697260886593957),
        (0.025, 5, -2.5705818356363155),
        (0.5, 3, 0.0),
    ],
)
def test_quantiles_equal_scipy(probability, freedom, expected):
    assert t_quantile(probability, freedom) == pytest.approx(expected, abs=1e-11)


def test_many_degrees_approach_the_normal_distribution():
    assert t_quantile(0.975, 10_000) == pytest.approx(1.959963984540054, abs=3e-4)


OURS, THEIRS = [1.934, 1.951, 1.940], [1.972, 1.981, 1.969]


def test_mean_interval_equals_scipy():
    mean, half, count = mean_interval(OURS)  # scipy.stats.t.interval(0.95, 2, mean, sem)
    assert (mean - half, mean + half) == pytest.approx((1.9202492309493224, 1.9630841023840104))
    assert count == 3


@pytest.mark.parametrize(
    ("level", "low", "high"),  # scipy.stats.ttest_rel(...).confidence_interval(level)
    [
        (0.95, -0.04458729367926002, -0.020079372987406783),
        (0.90, -0.040649455911605153, -0.024017210755061656),
    ],
)
def test_paired_difference_equals_scipy(level, low, high):
    pair = paired_difference(OURS, THEIRS, level=level)
    assert (pair.mean - pair.half, pair.mean + pair.half) == pytest.approx((low, high))
    assert pair.excludes_zero


def test_pairing_takes_out_what_both_share():
    hard_seeds = [0.0, 10.0, 20.0]
    ours = [x + 1 for x in hard_seeds]
    pair = paired_difference(
        [x + e for x, e in zip(ours, (0.0, 0.1, -0.1), strict=True)], hard_seeds
    )
    assert pair.excludes_zero
    assert not mean_interval(ours).excludes_zero


def test_one_value_has_no_interval():
    only = mean_interval([2.5])
    assert (only.mean, only.half, only.count) == (2.5, None, 1)
    assert not only.excludes_zero


@pytest.mark.parametrize(
    "call",
    [
        lambda: mean_interval([]),
        lambda: mean_interval([1.0, math.nan]),
        lambda: paired_difference([1.0, 2.0], [1.0]),
        lambda: t_quantile(1.0, 3),
        lambda: t_quantile(0.9, 0),
    ],
)
def test_errors_say_what_is_wanted(call):
    with pytest.raises(ValueError, match="want"):
        call()
