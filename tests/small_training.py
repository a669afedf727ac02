"""Small models trained on a task that draws itself, for the slow tests."""

import torch
from torch import nn
from torch.nn import functional as F

from stepscan.models import ModelConfig, NextToken, Regress, SequenceModel


def build(layers, tokens, *, answers=None, seed=0, width=64, mlp_ratio=1.0, tie=True):
    """A model of these layers; it says the next entry of column 0, or one of `answers`."""
    torch.manual_seed(seed)
    head = NextToken(vocab=answers or tokens[0])
    options = {"width": width, "tokens": tokens, "mlp_ratio": mlp_ratio, "tie": tie}
    return SequenceModel(ModelConfig(head=head, layers=layers, **options))


def build_real(layers, task, *, seed=0, width=64):
    """The same for a task over real numbers."""
    torch.manual_seed(seed)
    head = Regress(outputs=task.outputs)
    options = {"width": width, "reals": task.channels, "mlp_ratio": 1.0}
    return SequenceModel(ModelConfig(head=head, layers=layers, **options))


def in_turn(stages, steps):
    """Draws of (share of the steps, task) stages, one after the other: a curriculum."""
    calls = 0

    def draw(n, rng):
        nonlocal calls
        done, calls = calls / steps, calls + 1
        for share, task in stages:
            done -= share
            if done < 0:
                return task.draw(n, rng)
        return stages[-1][1].draw(n, rng)

    return draw


def train(
    model, draw, *, steps, seed=0, before=None, extra=None, rate=3e-3, count=32, betas=(0.9, 0.95)
):
    """AdamW with a warm-up and a cosine, the loss where the task asks.

    `before(step, batch)` runs ahead of each step and `extra()` adds to its loss.
    """
    rng = torch.Generator().manual_seed(seed + 100)
    optimizer = torch.optim.AdamW(model.parameters(), betas=betas, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    for step in range(steps):
        batch = draw(count, rng)
        if before is not None:
            before(step, batch)
        y, _ = model(batch.input)
        measure = F.mse_loss if batch.target.is_floating_point() else F.cross_entropy
        loss = measure(y[batch.asked], batch.target[batch.asked])
        loss = loss if extra is None else loss + extra()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def explained(model, task, *, count=512):
    """R^2 where the task asks, on examples of their own seed."""
    batch = task.draw(count, torch.Generator().manual_seed(7))
    return task.score(model(batch.input)[0], batch)


@torch.no_grad()
def judge(model, draw, *, count=512):
    """Accuracy and loss where the task asks, on examples of their own seed."""
    batch = draw(count, torch.Generator().manual_seed(7))
    y, target = model(batch.input)[0][batch.asked], batch.target[batch.asked]
    accuracy = (y.argmax(-1) == target).double().mean().item()
    return accuracy, F.cross_entropy(y, target).item()
