"""A log read in pieces and packed on disk says to a model what the same log in memory says."""

import numpy as np
import pandas as pd
import pytest
import torch

from stepscan.data import DataError, DataOptions, draw, open_dataset, walk
from stepscan.data.events import event_dataset
from stepscan.data.files import read_table
from stepscan.data.large_events import large_event_dataset
from stepscan.data.order_statistics import order_statistic, quantile
from stepscan.data.stored import Stored

ROLES = {"case": "case", "activity": "what", "time": "when"}


def log(seed, cases=150, *, calendar=True):
    """Cases that overlap, rows in no order, ties, gaps in the columns, rare labels."""
    rng = np.random.default_rng(seed)
    rows = []
    for case in range(cases):
        when = pd.Timestamp("2024-01-01") + pd.Timedelta(minutes=int(rng.integers(60_000)))
        for _ in range(int(rng.integers(1, 14))):
            rows.append((f"c{case}", f"a{min(int(rng.geometric(0.3)), 9)}", when))
            when += pd.Timedelta(minutes=int(rng.integers(0, 3) * rng.integers(1, 900)))
    frame = pd.DataFrame(rows, columns=["case", "what", "when"])
    frame["who"] = rng.choice(["x", "y", "z"], len(frame))
    frame.loc[rng.choice(len(frame), 5, replace=False), "what"] = ""
    frame.loc[rng.choice(len(frame), 5, replace=False), "case"] = ""
    if not calendar:
        frame["when"] = (frame["when"] - frame["when"].min()).dt.total_seconds() / 60
    return frame.sample(frac=1, random_state=seed)


@pytest.mark.parametrize(
    ("seed", "calendar", "changes"),
    [
        (0, True, {}),
        (1, False, {}),
        (2, True, {"split": "name", "attributes": ()}),
        (3, True, {"ends": "no"}),
        (4, True, {"ends": "yes", "valid": 0.3}),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_log_in_pieces_is_the_log_in_memory(kind, seed, calendar, changes, tmp_path):
    path = tmp_path / f"log.{kind}"
    getattr(log(seed, calendar=calendar), f"to_{kind}")(path, index=False)
    options = DataOptions(**({"attributes": ("who",)} | changes))
    whole = event_dataset(read_table(path), options, ROLES, name=path.name)
    found = large_event_dataset(path, options, ROLES, rows=90)
    assert found.schema == whole.schema
    assert found.said == whole.said
    assert sorted(found.findings) == sorted(whole.findings)
    assert whole.findings, "something to be noticed"
    for name, packed in whole.parts.items():
        stored = found.parts[name]
        assert isinstance(stored, Stored)
        same_batch(draw(stored, 3, rows=4, length=17, seed=1), draw(packed, 3, rows=4, length=17,
                                                                    seed=1))  # fmt: skip
        for a, b in zip(
            walk(stored, rows=3, length=11), walk(packed, rows=3, length=11), strict=True
        ):
            same_batch(a, b)


def same_batch(one, other):
    for a, b in zip(one[:3], other[:3], strict=True):
        assert torch.equal(a, b)
    assert one.targets.keys() == other.targets.keys()
    for name, target in other.targets.items():
        assert torch.equal(one.targets[name].nan_to_num(-7.0), target.nan_to_num(-7.0))


def test_large_files_are_read_in_pieces_and_nothing_is_left(tmp_path):
    path, scratch = tmp_path / "log.csv", tmp_path / "scratch"
    log(0).rename(columns={"what": "activity", "when": "time"}).to_csv(path, index=False)
    options = DataOptions(large=0.001, scratch=str(scratch))
    dataset = open_dataset(path, options)
    assert isinstance(dataset.parts["train"], Stored)
    assert not list(scratch.iterdir())
    assert not isinstance(open_dataset(path).parts["train"], Stored)


def test_what_is_wrong_is_told_as_in_memory(tmp_path):
    for change, said in (
        (lambda f: f.assign(what="a"), "at least two different activities, got 1"),
        (lambda f: f[f["case"].isin(["c1", "c2"])], "want at least 10 cases"),
    ):
        change(log(0)).to_csv(tmp_path / "log.csv", index=False)
        with pytest.raises(DataError, match=said):
            large_event_dataset(tmp_path / "log.csv", DataOptions(), ROLES)


@pytest.mark.parametrize("seed", range(4))
def test_order_statistics_are_those_of_all_numbers(seed):
    rng = np.random.default_rng(seed)
    numbers = rng.integers(-(10 ** int(rng.integers(1, 18))), 10**12, 1_001 + seed)
    pieces = np.array_split(numbers, 7)

    def chunks():
        yield from pieces

    for rank in (0, 1, 500, 1_000):
        assert order_statistic(chunks, rank) == np.sort(numbers)[rank]
    for level in (0.0, 0.5, 0.9, 1.0):
        assert quantile(chunks, len(numbers), level) == pytest.approx(np.quantile(numbers, level))
