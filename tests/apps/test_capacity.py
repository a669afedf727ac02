"""Capacity against the size of the state: the fits, and one small sweep."""

import dataclasses
import math

import pytest

from stepscan.apps.bench.capacity import PROTOCOL, Capacity, capacity_of, capacity_sweep, fit_laws
from stepscan.tasks.needle import Needle
from stepscan.tasks.pixel_digits import PixelDigits


def made_up(lengths, *, at_least=()):
    return [
        Capacity("", size, length, size in at_least, {}) for size, length in sorted(lengths.items())
    ]


SIZES = 512, 1024, 2048, 4096


def test_a_power_law_is_found_and_the_other_law_fits_it_worse():
    power, exponential = fit_laws(made_up({n: 3 * n**1.5 for n in SIZES}))
    assert power.slope == pytest.approx(1.5)
    assert power.explained == pytest.approx(1)
    assert exponential.explained < 0.95


def test_an_exponential_law_is_found_and_the_other_law_fits_it_worse():
    power, exponential = fit_laws(made_up({n: 3 * math.exp(n / 700) for n in SIZES}))
    assert 1 / exponential.slope == pytest.approx(700)
    assert power.explained < 0.95 < exponential.explained


def test_bounds_and_failures_take_no_part():
    lengths = {n: n**2.0 for n in SIZES} | {8192: 9.0, 256: 0.0}
    power, _ = fit_laws(made_up(lengths, at_least=(8192,)))
    assert power.slope == pytest.approx(2)
    assert fit_laws(made_up({512: 3.0, 1024: 0.0, 2048: 9.0})) == (None, None)


def test_the_length_lies_where_the_score_falls():
    assert capacity_of({32: 1.0, 64: 1.0, 128: 0.5}, 0.75) == (pytest.approx(64 * 2**0.5), False)
    assert capacity_of({32: 1.0, 64: 0.95}, 0.9) == (64, True)
    assert capacity_of({32: 0.5, 64: 0.95}, 0.9) == (0, False)
    assert capacity_of({32: 1.0, 64: 0.2, 128: 1.0}, 0.9)[0] < 64  # luck later on is none


def test_a_sweep_of_two_short_trainings():
    protocol = dataclasses.replace(PROTOCOL, size=16, steps=3, factors=(1, 2), examples=16)
    task = Needle(length=8, digits=1)
    sweep = capacity_sweep(["gla", "gla[key_ratio=1.0]"], task=task, protocol=protocol)
    small, large = sweep.capacities
    assert large.state_bytes == 2 * small.state_bytes
    assert set(small.scores) == {8, 16}
    assert sweep.power is None


def test_what_cannot_be_swept_is_refused():
    with pytest.raises(ValueError, match="task with a length"):
        capacity_sweep(["gla"], task=PixelDigits())
    with pytest.raises(ValueError, match="one learning rate"):
        capacity_sweep(["gla"], protocol=dataclasses.replace(PROTOCOL, rates=(1e-3, 1e-2)))
