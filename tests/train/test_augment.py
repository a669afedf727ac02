"""Disturbances of series: each does what it says, inside of a sequence, and nothing else."""

from itertools import pairwise

import pytest
import torch

from stepscan.train.augment import Augment, parse, within


def rows(lengths=((9, 6, 5), (20,)), channels=2):
    resets = torch.zeros(len(lengths), sum(lengths[0]), dtype=torch.bool)
    for row, sizes in zip(resets, lengths, strict=True):
        start = 0
        for n in sizes:
            row[start] = True
            start += n
    torch.manual_seed(0)
    return torch.randn(*resets.shape, channels), resets


def test_places_and_lengths():
    resets = torch.tensor([[True, False, False, True, False], [False, False, True, True, False]])
    place, length, which = within(resets)
    assert place.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 1]]
    assert length.tolist() == [[3, 3, 3, 2, 2], [2, 2, 1, 2, 2]]
    assert which.tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 2, 2]]


def test_nothing_is_nothing():
    x, resets = rows()
    assert Augment()(x, resets).equal(x)
    assert parse("") is None


def test_jitter_is_noise_of_that_deviation():
    x, resets = rows(((2000,), (2000,)))
    change = Augment(jitter=0.3)(x, resets) - x
    assert float(change.std()) == pytest.approx(0.3, rel=0.05)
    assert abs(float(change.mean())) < 0.02


def test_scale_is_one_factor_a_sequence_and_channel():
    x, resets = rows()
    factor = Augment(scale=0.5)(x, resets) / x
    for row, bounds in ((0, (0, 9, 15, 20)), (1, (0, 20))):
        for a, b in pairwise(bounds):
            torch.testing.assert_close(factor[row, a:b], factor[row, a : a + 1].expand(b - a, 2))
    assert len(factor[0, :, 0].log().round(decimals=4).unique()) == 3
    assert (factor > 0).all()


def test_magnitude_drifts_smoothly_within_a_sequence():
    resets = rows(((100,), (100,)))[1]
    log_factor = Augment(magnitude=0.5)(torch.ones(2, 100, 2), resets).log()
    curve = log_factor.diff(dim=1)
    assert (curve.diff(dim=1).abs() > 1e-4).sum() <= 2 * 2 * 2 * 2  # bends at the inner knots alone
    assert 0.05 < float(log_factor.std()) < 1.5


def test_warp_reads_the_same_values_at_other_times():
    resets = rows(((40, 30, 10), (80,)))[1]
    place, length, _ = within(resets)
    x = (place / (length - 1)).float()[..., None]  # the time within the sequence
    found = Augment(warp=0.7)(x, resets)[..., 0]
    ends = place == length - 1
    assert found[place == 0].abs().max() == 0
    torch.testing.assert_close(found[ends], torch.ones_like(found[ends]))
    inside = ~(place == 0)
    step = found.diff(dim=1)[inside[:, 1:]]
    assert (step > 0).all()
    assert (found - x[..., 0]).abs().max() > 0.03
    bound = 0.7 * 2
    ratio = step * (length - 1)[:, 1:][inside[:, 1:]]
    assert ratio.max() <= 2.718281828**bound + 1e-3


def test_drop_zeroes_whole_steps():
    x, resets = rows(((4000,), (4000,)))
    found = Augment(drop=0.25)(x, resets)
    gone = (found == 0).all(-1)
    assert float(gone.double().mean()) == pytest.approx(0.25, abs=0.02)
    assert found[~gone].equal(x[~gone])


@pytest.mark.parametrize("kind", ["scale", "magnitude", "warp"])
def test_a_neighbour_changes_nothing(kind):
    """What is read from one sequence is made of that sequence alone."""
    x, resets = rows()
    changed = x.clone()
    changed[0, 9:15] += 100
    torch.manual_seed(3)
    before = Augment(**{kind: 0.4})(x, resets)
    torch.manual_seed(3)
    after = Augment(**{kind: 0.4})(changed, resets)
    assert before[0, :9].equal(after[0, :9])
    assert before[0, 15:].equal(after[0, 15:])
    assert not before[0, 9:15].equal(after[0, 9:15])


def test_one_step_sequences_stay_whole():
    x, resets = torch.randn(2, 5, 3), torch.ones(2, 5, dtype=torch.bool)
    found = Augment(warp=0.5)(x, resets)
    torch.testing.assert_close(found, x)


def test_what_is_told_is_read():
    assert parse("jitter=0.1, warp=0.2") == Augment(jitter=0.1, warp=0.2)
    for told, said in (
        ("jiter=1", "Did you mean 'jitter'"),
        ("jitter", "want jitter=NUMBER"),
        ("warp=-1", "0 <= warp < 10, got -1"),
        ("drop=1", "0 <= drop < 1"),
    ):
        with pytest.raises(ValueError, match=said):
            parse(told)
