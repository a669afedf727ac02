"""Groups of users and items: the definitions, by hand; the table in the report."""

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_data import interactions_frame

from stepscan.apps.interactions.groups import groups, table
from stepscan.apps.kinds import domain_of
from stepscan.data.base import DataOptions
from stepscan.data.interactions import variances
from stepscan.data.open import open_dataset
from stepscan.models import SequenceModel


def test_the_variance_is_that_of_the_intervals_so_far():
    stamps = np.array([5, 7, 12, 13, 100, 110, 120, 130, 3])
    begins = np.array([1, 0, 0, 0, 1, 0, 0, 0, 1], bool)
    found = variances(stamps, begins)
    mean = np.array([0, 2, 5, 1, 0, 10, 10, 10, 0]).mean()
    want = [np.var(np.array(gaps) / mean) for gaps in ([2, 5], [2, 5, 1])]
    assert found[[2, 3]] == pytest.approx(want)
    assert (found[[6, 7]] == 0).all(), "regular intervals have no variance"
    assert np.isnan(found[[0, 1, 4, 5, 8]]).all()
    assert len(variances(stamps[:0], begins[:0])) == 0


def test_groups_part_users_at_the_median_and_items_by_their_counts():
    uneven = torch.tensor([0.0, 1.0, 2.0, torch.nan, 3.0])
    wanted = torch.tensor([1, 2, 5, 2, 0])
    found = groups(uneven, wanted, torch.tensor([3, 9, 2, 1, 1]))
    even, other, head, tail = found.values()
    assert even.tolist() == [True, True, False, False, False]
    assert other.tolist() == [False, False, True, False, True]
    assert head.tolist() == [False, True, False, True, False]
    assert torch.equal(tail, ~head)


def test_the_table_has_the_figures_of_each_group():
    ranks = torch.tensor([1.0, 3.0, 20.0, 1.0])
    found = {"a": torch.tensor([True, True, False, False]), "b": torch.zeros(4).bool()}
    rows = table(found, {"model": ranks})["rows"]
    assert rows == [["a", "2", f"{(1 + 1 / 2) / 2:.3f}"], ["b", "0", "-"]]


def test_the_report_of_recommendation_holds_them():
    domain = domain_of(open_dataset(interactions_frame(), DataOptions()))
    model = SequenceModel(domain.config("min_gru", 16)).eval()
    shown = domain.examples({"mine": model})
    (served,) = [part for part in shown if part["title"].startswith("Who is served well")]
    assert served["columns"] == ["group", "users", "mine"]
    counted = [int(row[1]) for row in served["rows"]]
    assert counted[0] + counted[1] == counted[2] + counted[3] == 30


def test_what_came_before_decides_not_what_came_after():
    frame = interactions_frame()
    frame["timestamp"] += np.random.default_rng(0).integers(90, size=len(frame))
    late = frame.copy()
    last = late.groupby("user")["timestamp"].idxmax()
    late.loc[last, "timestamp"] += 10**6
    parts = [open_dataset(f, DataOptions()).parts["test"] for f in (frame, late)]
    order = [
        pd.Series(p.targets_at(p.begins + p.lengths - 1)["uneven"].numpy()).rank().tolist()
        for p in parts
    ]
    assert order[0] == order[1]
