"""Budgets, the schedule, the optimizer's groups."""

import math

import pytest
import torch
from torch import nn

from stepscan.train.budget import Budget
from stepscan.train.config import TrainConfig
from stepscan.train.optimizer import adamw, set_rate
from stepscan.train.schedule import rate


@pytest.mark.parametrize(
    ("budget", "half"),
    [
        (Budget(steps=10), {"steps": 5, "tokens": 0, "seconds": 0.0}),
        (Budget(tokens=10), {"steps": 99, "tokens": 5, "seconds": 0.0}),
        (Budget(minutes=0.5), {"steps": 99, "tokens": 99, "seconds": 15.0}),
    ],
    ids=str,
)
def test_progress_counts_what_the_budget_is_of(budget, half):
    assert budget.progress(**half) == 0.5
    assert budget.progress(**{k: 9 * v for k, v in half.items()}) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"steps": 1, "minutes": 1.0},
        {"steps": 0},
        {"tokens": -5},
        {"minutes": 0.0},
        {"minutes": math.nan},
        {"minutes": math.inf},
    ],
    ids=str,
)
def test_a_budget_is_one_amount_above_zero(wrong):
    with pytest.raises(ValueError, match=r"budget: want .*got"):
        TrainConfig(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": 0},
        {"length": 0},
        {"evaluations": 0},
        {"learning_rate": math.nan},
        {"clip": 0.0},
        {"warmup": 1.0},
        {"floor": -0.1},
    ],
    ids=str,
)
def test_settings_that_cannot_train_are_refused(wrong):
    with pytest.raises(ValueError, match=f"train: want .*{next(iter(wrong))}"):
        TrainConfig(steps=1, **wrong)


def test_rate_rises_then_falls_to_the_floor():
    rates = [rate(i / 1000) for i in range(1001)]
    top = rates.index(max(rates))
    assert (rates[0], rates[top], rates[-1]) == pytest.approx((0.1, 1.0, 0.1))
    assert top == 50
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rate(0.525) == pytest.approx(0.55)  # halfway down the cosine
    assert rate(0.0, warmup=0.0) == 1


class Part(nn.Module):
    """A stand-in for a mixer that exempts some of its parameters."""

    no_decay = ("transition", "inner.weight", "of another option")
    slow = ("speed",)

    def __init__(self):
        super().__init__()
        self.transition = nn.Parameter(torch.ones(3, 3))
        self.speed = nn.Parameter(torch.ones(3, 3))
        self.inner = nn.Linear(3, 3)
        self.out = nn.Linear(3, 3)


def test_only_matrices_that_no_paper_exempts_decay():
    model = nn.Sequential(Part(), nn.RMSNorm(3))
    optimizer = adamw(model, learning_rate=0.1, weight_decay=0.5, betas=(0.9, 0.95))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not p.equal(before[name])}
    assert moved == {"0.out.weight"}
    torch.testing.assert_close(model[0].out.weight, before["0.out.weight"] * (1 - 0.1 * 0.5))


@pytest.mark.parametrize(("peak", "slowest"), [(0.1, 1e-3), (1e-4, 1e-4)])
def test_slow_parameters_have_a_speed_limit(peak, slowest):
    model = Part()
    optimizer = adamw(model, learning_rate=peak, weight_decay=0.1, betas=(0.9, 0.95))
    set_rate(optimizer, 0.5)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rates[id(model.speed)] == 0.5 * slowest
    assert rates[id(model.out.weight)] == rates[id(model.transition)] == 0.5 * peak
    assert len(rates) == len(list(model.parameters()))
