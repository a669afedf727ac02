from dataclasses import replace

import pytest
import torch

from stepscan.data.base import Packed
from stepscan.models import Inputs, ModelConfig, NextToken, SequenceModel
from stepscan.train.config import TrainConfig

VOCAB = 11


@pytest.fixture
def packed():
    """Documents that count upwards from anywhere, so that there is something to learn."""
    lengths = [37, 5, 61, 1, 20, 40]
    tokens = torch.cat([(torch.arange(n) + 3 * i) % VOCAB for i, n in enumerate(lengths)])
    starts = torch.zeros(len(tokens), dtype=torch.bool)
    starts[torch.tensor([0, *lengths[:-1]]).cumsum(0)] = True
    target = tokens.roll(-1).masked_fill(starts.roll(-1), -1)
    return Packed(starts, tokens=tokens[:, None], targets={"token": target})


@pytest.fixture
def build():
    """The same fresh model every time; dropout is on, so that random numbers matter."""

    def build(layers="min_gru", *, head=None, seed=0, **options):
        config = ModelConfig(
            head=head or NextToken(vocab=VOCAB),
            layers=layers,
            width=8,
            tokens=(VOCAB,),
            dropout=0.1,
            **options,
        )
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return SequenceModel(config)

    return build


@pytest.fixture
def plan():
    """A small plan, with changes."""

    def plan(**changes):
        base = TrainConfig(
            steps=12, rows=3, length=8, learning_rate=0.01, save_seconds=0.0, evaluations=4
        )
        budget = {"steps", "tokens", "minutes"} & changes.keys()
        return replace(base, **({"steps": None} if budget - {"steps"} else {}), **changes)

    return plan


@pytest.fixture
def weights():
    """All weights of a model, to compare."""
    return lambda model: torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


@pytest.fixture
def inputs():
    """All of some packed data as one row."""
    return lambda packed: Inputs(tokens=packed.tokens[None].long())
