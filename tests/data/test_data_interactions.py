import json

import numpy as np
import pandas as pd
import pytest
import torch

from stepscan.data import DataError, DataOptions, Table, read_schema
from stepscan.data.interactions import interaction_dataset

ROLES = {"user": "who", "item": "what", "time": "when"}


def frame(seed=0):
    """Two users with fewer than three items, ties in time, and one item that is rare."""
    rng = np.random.default_rng(seed)
    rows = [("u0", "i1", 5), ("u1", "i1", 5), ("u1", "i2", 4), ("u2", "rare", 1)]
    for user in range(2, 12):
        count = int(rng.integers(3, 12))
        times = rng.integers(0, 10, count)
        rows += [(f"u{user}", f"i{rng.integers(6)}", int(t)) for t in times]
    rows = pd.DataFrame(rows, columns=["who", "what", "when"]).drop_duplicates()
    return rows.sample(frac=1, random_state=1).reset_index(drop=True)


def build(data, **options):
    return interaction_dataset(Table(data, "t"), DataOptions(**options), ROLES, name="t")


def test_parts_equal_a_plain_loop_over_users():
    data = frame()
    dataset = build(data, minimum=2)
    ids = {item: i for i, item in enumerate(dataset.schema.items, 1)}
    assert "rare" not in ids
    assert set(ids.values()) == set(range(1, dataset.schema.tokens[0]))
    wanted = {part: ([], [], []) for part in ("train", "valid", "test")}

    def add(part, items, targets):
        inputs, asked, starts = wanted[part]
        inputs += items
        asked += targets
        starts += [True] + [False] * (len(items) - 1)

    for user in sorted(data.who.unique()):
        rows = [r for r in data.itertuples() if r.who == user and r.what != "rare"]
        items = [ids[r.what] for r in sorted(rows, key=lambda r: r.when)]  # stable
        if len(items) < 3:
            add("train", items, [*items[1:], -1])
            continue
        add("train", items[:-2], [*items[1:-2], -1])
        add("valid", items[:-2], [-1] * (len(items) - 3) + [items[-2]])
        add("test", items[:-1], [-1] * (len(items) - 2) + [items[-1]])
    for part, (inputs, asked, starts) in wanted.items():
        packed = dataset.parts[part]
        assert packed.tokens[:, 0].tolist() == inputs
        assert packed.starts.tolist() == starts
        assert packed.targets_at(torch.arange(len(packed)))["token"].tolist() == asked


def test_repeated_rows_and_rare_items_are_left_out_and_said():
    data = frame()
    dataset = build(pd.concat([data, data.iloc[:4]], ignore_index=True), minimum=2)
    assert any(f.startswith("4 repeated rows") for f in dataset.findings)
    assert any(f.startswith("1 items seen fewer than 2 times") for f in dataset.findings)
    again = build(data, minimum=2)
    assert dataset.parts["test"].tokens.equal(again.parts["test"].tokens)


def test_unseen_users_and_items():
    dataset = build(frame(), minimum=2)
    schema = read_schema(json.loads(json.dumps(dataset.schema.to_dict())))
    assert schema == dataset.schema
    packed = schema.prompt([schema.items[0], "never seen"])
    assert packed.tokens[:, 0].tolist() == [1, 0]
    table = Table(
        pd.DataFrame({"who": ["n", "m"], "what": [schema.items[1]] * 2, "when": [2, 1]}), "t"
    )
    packed, users = schema.encode(table)
    assert users == ["m", "n"]
    assert packed.starts.tolist() == [True, True]


@pytest.mark.plain
def test_errors_say_what_to_fix():
    with pytest.raises(DataError, match=r"two items seen at least 99 times.*--minimum"):
        build(frame(), minimum=99)
