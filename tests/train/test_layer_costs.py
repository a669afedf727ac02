"""The trainer descends what layers ask for besides the loss of the head."""

import pytest
import torch

from stepscan.layers.costs import collect
from stepscan.layers.experts import Experts
from stepscan.train.loop import Trainer


@pytest.mark.parametrize(
    ("options", "cost"),
    [
        ({"mlp": "moe[experts=4, top=1, balance={}]"}, "balance"),
        ({"loops": 6, "halt": "act[cost={}]"}, "ponder"),
    ],
    ids=["balance", "ponder"],
)
def test_a_cost_with_a_weight_goes_down(build, packed, plan, inputs, options, cost):
    """The same run with the cost left out, and with it weighing much."""
    ends = {}
    for weight in (0.0, 3.0):
        chosen = {k: v.format(weight) if isinstance(v, str) else v for k, v in options.items()}
        model = build(**chosen)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, Experts):  # they begin unevenly used
                    module.router.weight[0] += 2 * module.router.weight.norm()
        Trainer(model, packed, plan(steps=80, learning_rate=0.03)).run()
        with torch.no_grad(), collect() as costs:
            model.eval()(inputs(packed))
        assert [c.name for c in costs] == [cost]
        ends[weight] = costs[0].value.mean().item()
    assert ends[3.0] < 0.9 * ends[0.0]
