"""Users and items as they come: each trouble is repaired and said, or is one clear line."""

from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_data import interactions_frame

from stepscan.apps.baselines.markov import Markov
from stepscan.apps.kinds import domain_of
from stepscan.apps.ranking import measures, ranks
from stepscan.data.base import DataError, DataOptions
from stepscan.data.open import open_dataset

SMALL = DataOptions(minimum=1)


def written(tmp_path, frame, name="t.csv", sep=","):
    frame.to_csv(tmp_path / name, index=False, sep=sep)
    return tmp_path / name


def same(one, other):
    for part, packed in one.parts.items():
        assert packed.tokens.equal(other.parts[part].tokens), part
        assert packed.starts.equal(other.parts[part].starts), part
    assert one.schema.items == other.schema.items
    assert one.schema.counts == other.schema.counts


def test_atomic_files_are_read_as_the_same_csv(tmp_path):
    frame = interactions_frame().assign(rating=3)
    plain = open_dataset(written(tmp_path, frame), SMALL)
    types = {"user": "user:token", "item": "item:token", "timestamp": "timestamp:float"}
    typed = frame.rename(columns=types | {"rating": "rating:float"})
    atomic = open_dataset(written(tmp_path, typed, "t.inter", "\t"), SMALL)
    same(atomic, plain)
    assert (atomic.schema.user, atomic.schema.item, atomic.schema.time) == (
        "user",
        "item",
        "timestamp",
    )


def test_the_order_of_rows_does_not_matter_but_among_equal_times(tmp_path):
    frame = interactions_frame()
    plain = open_dataset(written(tmp_path, frame), SMALL)
    mixed = frame.sample(frac=1, random_state=3)
    same(open_dataset(written(tmp_path, mixed, "m.csv"), SMALL), plain)
    shifted = frame.assign(timestamp=frame.timestamp - 1_700_000_500)  # negative, plain numbers
    same(open_dataset(written(tmp_path, shifted, "s.csv"), SMALL), plain)
    frozen = frame.assign(timestamp=5)
    found = open_dataset(written(tmp_path, frozen, "f.csv"), SMALL)
    assert any("have the time of the one before" in note for note in found.findings)


def test_repeated_rows_count_once(tmp_path):
    frame = interactions_frame()
    plain = open_dataset(written(tmp_path, frame), SMALL)
    twice = pd.concat([frame, frame.iloc[:7]])
    found = open_dataset(written(tmp_path, twice, "d.csv"), SMALL)
    same(found, plain)
    assert any("7 repeated rows" in note for note in found.findings)


def test_a_user_with_one_item_trains_and_is_not_asked(tmp_path):
    frame = interactions_frame()
    plain = open_dataset(written(tmp_path, frame), SMALL)
    lone = pd.DataFrame({"user": ["alone"], "item": ["film 3"], "timestamp": [1_700_000_000]})
    found = open_dataset(written(tmp_path, pd.concat([frame, lone]), "l.csv"), SMALL)
    assert len(found.parts["train"]) == len(plain.parts["train"]) + 1
    assert len(found.parts["test"].begins) == len(plain.parts["test"].begins)
    assert "1 users with fewer than three interactions train only" in found.findings
    with pytest.raises(DataError, match="a user with three interactions"):
        open_dataset(written(tmp_path, frame.groupby("user").head(2), "two.csv"), SMALL)


def test_ids_with_a_decimal_point_are_the_whole_numbers_they_were(tmp_path):
    frame = interactions_frame()
    number = frame["item"].str[5:].astype(int)
    plain = open_dataset(written(tmp_path, frame.assign(item=number)), SMALL)
    points = frame.assign(item=number.astype(float))
    found = open_dataset(written(tmp_path, points, "p.csv"), SMALL)
    same(found, plain)
    assert any('items such as "' in note and ".0" in note for note in found.findings)
    mixed = frame.assign(item=number.astype(float).astype(str).where(number != 3, "3.5"))
    kept = open_dataset(written(tmp_path, mixed, "x.csv"), SMALL)
    assert "3.5" in kept.schema.items
    assert "4.0" in kept.schema.items


def test_rows_without_a_user_or_an_item_are_left_out(tmp_path):
    frame = interactions_frame()
    plain = open_dataset(written(tmp_path, frame), SMALL)
    holes = pd.concat([frame, frame.iloc[:2].assign(item=""), frame.iloc[:1].assign(user=None)])
    found = open_dataset(written(tmp_path, holes, "h.csv"), SMALL)
    same(found, plain)
    assert "3 rows without a user or an item left out" in found.findings


@pytest.mark.plain
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timestamp": "soon"}, 'row 1, column "timestamp": "soon" is not a time'),
        ({"timestamp": np.inf}, "time is not finite"),
        ({"item": "one"}, "want two items"),
        ({"item": ""}, "want two items"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, change, message):
    path = written(tmp_path, interactions_frame().assign(**change))
    with pytest.raises(DataError, match=message) as error:
        open_dataset(path, DataOptions(user="user", item="item", time="timestamp", minimum=1))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(find_spec("recbole") is None, reason="pip install --no-deps recbole")
def test_simple_methods_on_ml_100k_have_the_figures_everybody_has():
    """HR@10 and NDCG@10 of popularity, and of the chain with the validation items counted."""
    dataset = open_dataset("ml_100k")
    assert len(dataset.schema.items) == 1682
    assert len(dataset.parts["test"].begins) == 943
    domain = domain_of(dataset)
    popular = dict(domain.baselines())["popularity"]
    assert (popular["HR@10"], popular["NDCG@10"]) == pytest.approx((0.0498, 0.0224), abs=5e-5)
    test = dataset.parts["test"]
    items, inside = test.tokens[:, 0].long().numpy(), ~test.starts[1:].numpy()
    chain = Markov(items[:-1][inside], items[1:][inside], 1683, 1)
    ends = test.begins + test.lengths - 1
    wanted = test.targets_at(ends)["token"]
    found = measures(ranks(torch.from_numpy(chain.table(items[ends])), wanted))
    assert (found["HR@10"], found["NDCG@10"]) == pytest.approx((0.1103, 0.0580), abs=5e-5)
