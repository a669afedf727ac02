"""What row 66 of the systems promises: users of uneven habits are served better, nobody worse."""

import numpy as np
import pytest
import torch
from made_up_drift import drifting

from stepscan.apps.candidate import Candidate
from stepscan.apps.interactions.groups import groups
from stepscan.apps.kinds import domain_of
from stepscan.apps.ranking import measures
from stepscan.data.base import DataOptions
from stepscan.data.interactions import interaction_dataset
from stepscan.data.tables import Table
from stepscan.train.config import TrainConfig

ROLES = {"user": "user", "item": "item", "time": "time"}
SEEDS = (0, 1)


def by_group(layers, clock, seed):
    """NDCG@10 of the groups of the report, in its order."""
    options = DataOptions(minimum=1, clock=clock)
    domain = domain_of(interaction_dataset(Table(drifting(), "drift"), options, ROLES, name="d"))
    plan = TrainConfig(
        steps=400, rows=32, length=24, learning_rate=4e-3, weight_decay=0.0, seed=seed,
        evaluations=4,
    )  # fmt: skip
    run = Candidate(domain, domain.config(domain.pattern(layers), 32), plan)
    run.trainer.advance()
    rank = domain.ranks(run.finish())
    packed = domain.dataset.parts["test"]
    asked = packed.targets_at(packed.begins + packed.lengths - 1)
    found = groups(asked["uneven"], asked["token"], torch.tensor(domain.schema.counts))
    return [measures(rank[inside])["NDCG@10"] for inside in found.values()]


def test_the_groups_are_the_users_made_so():
    frame = drifting(40)
    spread = frame.groupby("user")["time"].agg(lambda t: np.diff(t).std())
    even = spread.index.str.startswith("even")
    assert spread[even].max() < spread[~even].min()


@pytest.mark.slow
def test_uneven_users_gain_and_nobody_loses():
    options = 'mixer="gru", depth=1, dropout=0.1'
    plain = np.mean([by_group(f"sasrec[{options}]", "no", s) for s in SEEDS], axis=0)
    enhanced = np.mean([by_group(f"unirec[{options}]", "yes", s) for s in SEEDS], axis=0)
    print(f"plain {plain.round(4)}, enhanced {enhanced.round(4)}")  # noqa: T201
    even, uneven, head, tail = enhanced / plain - 1
    assert uneven >= 0.05
    assert even >= 0
    assert min(head, tail) >= 0
