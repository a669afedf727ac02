"""A model that reads both ways has seen what comes next: it says so, and what to take instead."""

import pytest
import torch

from stepscan.apps.model import Model
from stepscan.generate.decode import decode
from stepscan.generate.sampling import Sampling
from stepscan.models import Classify, ModelConfig, NextToken, SequenceModel
from stepscan.train.config import TrainConfig
from stepscan.train.loop import Trainer


@pytest.mark.plain
@pytest.mark.parametrize("name", ["hydra", "bi_gla", "bi_mamba"])
def test_what_reads_both_ways_does_not_say_what_comes_next(name):
    config = ModelConfig(width=16, tokens=(5,), head=NextToken(vocab=5), layers=name)
    model = SequenceModel(config)
    assert not model.causal
    with pytest.raises(ValueError, match="take causal mixers"):
        Trainer(model, None, TrainConfig(steps=1))
    with pytest.raises(ValueError, match="reads both ways"):
        next(decode(model, torch.zeros(1, 3).long(), sampling=Sampling(), rng=torch.Generator()))
    with pytest.raises(ValueError, match="stream: a layer of this model reads both ways"):
        Model(model, None).stream("text")
    labels = ModelConfig(width=16, tokens=(5,), head=Classify(classes=2), layers=name)
    assert SequenceModel(labels)(torch.zeros(1, 4).long())[0].shape == (1, 4, 2)
