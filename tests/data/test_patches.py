"""Several samples as one step."""

import torch

from stepscan.data.patches import first_samples, fold, steps_of, unfold


def test_a_step_holds_its_samples_in_order_and_repeats_the_last_one():
    reals = torch.arange(14.0).view(7, 2)
    samples = torch.tensor([5, 2])
    folded = fold(reals, samples, 3)
    assert steps_of(samples, 3).tolist() == [2, 1]
    assert folded.tolist() == [
        [0, 1, 2, 3, 4, 5],
        [6, 7, 8, 9, 8, 9],
        [10, 11, 12, 13, 12, 13],
    ]
    assert unfold(folded, 3)[:5].equal(reals[:5])
    assert fold(reals, samples, 1).equal(reals)


def test_only_the_first_sample_of_a_step_begins_it():
    starts = torch.tensor([[True, False], [False, True]])
    assert first_samples(starts, 2).int().tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]
