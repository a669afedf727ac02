"""Self-guided training: it starts dense, ends structured, and does not end worse than without."""

import pydoc_data.topics
from statistics import mean

import pytest
import torch
from laws import assert_near
from torch.nn import functional as F

from stepscan.layers.structured import Structured
from stepscan.models import ModelConfig, NextToken, SequenceModel
from stepscan.train.optimizer import adamw
from stepscan.train.self_guided import add_guides, remove_guides, set_guidance

MIXER = "low_rank[rank=0.125]"


def built(seed=0, width=16, mlp=MIXER):
    torch.manual_seed(seed)
    head = NextToken(vocab=128)
    return SequenceModel(
        ModelConfig(width=width, tokens=(128,), head=head, layers="gla*2", mlp=mlp, mlp_ratio=4.0)
    )


def test_it_starts_dense_and_ends_structured():
    model, tokens = built().double(), torch.randint(128, (2, 9))
    y, names = model(tokens)[0], set(model.state_dict())
    assert add_guides(model) == 4
    maps = [m for m in model.modules() if isinstance(m, Structured)]
    assert_near(model(tokens)[0], y, what="the guide is the same map at first")
    model(tokens)[0].sum().backward()
    assert all(m.guide.grad.any() and m.first.grad is None for m in maps)
    alphas = [set_guidance(model, t / 20) for t in range(21)]
    assert alphas[0] == 1
    assert alphas[5] == pytest.approx(0.5)
    assert alphas[10:] == [0.0] * 11
    for m in maps:
        m.guide.data.normal_()
    assert_near(model(tokens)[0], y, what="the guide says nothing any more")
    remove_guides(model)
    assert set(model.state_dict()) == names


def test_between_the_ends_both_are_heard():
    layer = next(m for m in built().double().modules() if isinstance(m, Structured))
    add_guides(layer)
    layer.guide.data.normal_()
    set_guidance(layer, 0.125)
    alpha, x = layer.guidance, torch.randn(3, 16).double()
    assert 0 < alpha < 1
    assert_near(layer(x), alpha * x @ layer.guide.mT + (1 - alpha) * layer.apart(x), what="y")


def test_errors_say_what_to_fix():
    model = built()
    add_guides(model)
    with pytest.raises(ValueError, match="train until set_guidance returns 0"):
        remove_guides(model)
    with pytest.raises(ValueError, match="progress from 0 to 1"):
        set_guidance(model, 1.5)


def trained(seed, *, guided, mlp=MIXER, steps=300, width=64):
    """The mean loss on the last of the text, in nats per byte; the same batches for all."""
    text = "\n".join(pydoc_data.topics.topics.values()).encode("ascii", "replace")
    text = torch.tensor(list(text))
    model, rng = built(seed, width, mlp), torch.Generator().manual_seed(seed)
    if guided:
        add_guides(model)
    optimizer = adamw(model, learning_rate=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.1)
    split = len(text) * 9 // 10

    def loss(starts):
        batch = text[starts[:, None] + torch.arange(65)]
        y = model(batch[:, :-1])[0]
        return F.cross_entropy(y.flatten(0, 1), batch[:, 1:].flatten())

    for step in range(steps):
        if guided:
            set_guidance(model, step / steps)
        optimizer.zero_grad()
        loss(torch.randint(split - 65, (16,), generator=rng)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    if guided:
        remove_guides(model)
    with torch.no_grad():
        return loss(torch.arange(split, len(text) - 65, 65)).item()


@pytest.mark.slow
def test_guided_training_does_not_end_worse():
    plain = [trained(seed, guided=False) for seed in range(3)]
    guided = [trained(seed, guided=True) for seed in range(3)]
    print("plain", plain, "guided", guided)  # noqa: T201
    assert mean(guided) <= mean(plain)
