"""How far back a model looks: models that look at known places are seen to do so."""

import pytest
import torch
from torch import nn

from stepscan.analyze.reach import influence
from stepscan.models import Inputs


class Looks(nn.Module):
    """Says a weighted sum of the steps at these distances."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, inputs):
        x = inputs.reals
        said = torch.zeros_like(x)
        for lag, weight in self.weights.items():
            said[:, lag:] += weight * x[:, : x.shape[1] - lag]
        return said, None


def histories(rows=400, steps=12):
    return Inputs(reals=torch.randn(rows, steps, 3))


def test_the_place_that_is_looked_at_is_found():
    found = influence(Looks({3: 1.0}), histories(), [0, 1, 2, 3, 4, 8], lambda said: said)
    assert found == pytest.approx([0, 0, 0, 1, 0, 0], abs=1e-6)


def test_shares_follow_the_weights():
    """Of a sum of independent steps a part w_k / sqrt(sum w^2) hangs on each: normal variables."""
    weights = {0: 1.0, 2: 0.5, 5: 0.25}
    found = influence(Looks(weights), histories(4000), list(weights), lambda said: said)
    norm = sum(w * w for w in weights.values()) ** 0.5
    assert found == pytest.approx([w / norm for w in weights.values()], abs=0.02)


def test_tokens_are_swapped_too():
    inputs = Inputs(tokens=torch.arange(40).reshape(4, 10, 1))

    class Second(nn.Module):
        def forward(self, inputs):
            return inputs.tokens.roll(1, 1).double(), None

    assert influence(Second(), inputs, [0, 1, 2], lambda said: said) == [0.0, 1.0, 0.0]


def test_a_model_that_does_not_listen_has_no_influence():
    silent = Looks({})
    assert influence(silent, histories(), [0, 5], lambda said: said) == [0.0, 0.0]


def test_the_inputs_are_left_as_they_were():
    inputs = histories(4)
    before = inputs.reals.clone()
    influence(Looks({1: 1.0}), inputs, [0, 1], lambda said: said)
    assert torch.equal(inputs.reals, before)


@pytest.mark.parametrize(("rows", "lags"), [(1, [0]), (4, []), (4, [12]), (4, [-1])])
def test_what_cannot_be_asked_is_said(rows, lags):
    with pytest.raises(ValueError, match="want two histories or more and lags from 0 to 11"):
        influence(Looks({0: 1.0}), histories(rows), lags, lambda said: said)
