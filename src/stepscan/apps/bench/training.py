"""One training of one mixer on one task, judged at several lengths."""

import math
import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.apps.bench.protocol import Protocol, config_of, state_bytes
from stepscan.models import SequenceModel
from stepscan.tasks import Batch, RealTask, Task
from stepscan.train.optimizer import adamw, set_rate
from stepscan.train.schedule import rate as schedule
from stepscan.train.self_pretrain import self_pretrain

BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.01, 1.0
TRAIN, VALID, TEST = 1_000_003, 2_000_003, 3_000_017
"""Where the seeds of the three kinds of examples begin."""
TOKENS_AT_ONCE = 1 << 14
"""Test examples are read in batches of about so many tokens: long ones need the room."""


def train(
    pattern: str, task: Task, protocol: Protocol, *, rate: float, seed: int
) -> dict[str, Any]:
    """Train and judge; plain data, as results.json holds it.

    Args:
        pattern: A mixer with options, or a pattern of layers.
        task: What to learn; validation and test are drawn from `task.held_out()`.
        protocol: What is equal for all.
        rate: Peak learning rate.
        seed: Of the initial weights and of the training examples.
    """
    config = config_of(pattern, task, protocol)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(seed)
        model = SequenceModel(config)
        run: dict[str, Any] = {
            "mixer": pattern,
            "task": task.name,
            "rate": rate,
            "seed": seed,
            "width": config.width,
            "parameters": sum(p.numel() for p in model.parameters()),
            "state_bytes": state_bytes(model, task),
            "streams": model.causal,
        }
        run["pretraining"] = _pretrain(model, task, protocol, rate, seed)
        run |= _fit(model, task, protocol, rate, seed)
        run["scores"] = {} if run["diverged"] else _test(model, task, protocol)
    return run


def loss_of(model: SequenceModel, task: Task, batch: Batch) -> Tensor:
    """Cross entropy, or squared error, where the task asks."""
    said = model(batch.input)[0][batch.asked]
    target = batch.target[batch.asked]
    return F.mse_loss(said, target) if isinstance(task, RealTask) else F.cross_entropy(said, target)


@torch.no_grad()
def score(model: SequenceModel, task: Task, examples: int, seed: int) -> float:
    """The task's own score, over fresh examples."""
    model.eval()
    rng = torch.Generator().manual_seed(seed)
    batch = task.draw(examples, rng)
    size = max(1, TOKENS_AT_ONCE // batch.input.shape[1])
    said = torch.cat([model(part)[0] for part in batch.input.split(size)])
    model.train()
    return task.score(said if isinstance(task, RealTask) else said.argmax(-1), batch)


class Descent:
    """Steps of one training; those of the same seed read the same examples, whatever the model."""

    def __init__(
        self, model: SequenceModel, task: Task, protocol: Protocol, *, rate: float, seed: int
    ) -> None:
        self.model, self.task, self.batch = model, task, protocol.batch
        self.tokens = 0
        """Read in the last step."""
        self._optimizer = adamw(model, learning_rate=rate, weight_decay=WEIGHT_DECAY, betas=BETAS)
        self._rng = torch.Generator().manual_seed(TRAIN + seed)

    def step(self, part: float) -> bool:
        """Descend once, so far into the budget; False if the loss is not finite."""
        set_rate(self._optimizer, schedule(part))
        batch = self.task.draw(self.batch, self._rng)
        self.tokens = batch.input.shape[0] * batch.input.shape[1]
        loss = loss_of(self.model, self.task, batch)
        if not torch.isfinite(loss):
            return False
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self._optimizer.step()
        return True


def _pretrain(
    model: SequenceModel, task: Task, protocol: Protocol, rate: float, seed: int
) -> dict[str, Any] | None:
    """Learn the inputs of the examples that the training reads afterwards, if asked to."""
    if not protocol.self_pretrain:
        return None
    return self_pretrain(
        model,
        task,
        steps=protocol.self_pretrain,
        batch=protocol.batch,
        rate=rate,
        seed=TRAIN + seed,
        weight_decay=WEIGHT_DECAY,
        betas=BETAS,
    )


def _fit(
    model: SequenceModel, task: Task, protocol: Protocol, rate: float, seed: int
) -> dict[str, Any]:
    """Train until the budget is spent, or the task is learned."""
    descent = Descent(model, task, protocol, rate=rate, seed=seed)
    curve: list[list[float]] = []
    spent, step, tokens, learned = 0.0, 0, 0, 0
    diverged = False
    while True:
        part = max(step / protocol.steps, spent / protocol.seconds)
        if len(curve) < math.floor(min(part, 1.0) * protocol.looks):
            found = score(model, task.held_out(), protocol.examples, VALID)
            curve.append([step, spent, found])
            learned = learned + 1 if found >= protocol.converged else 0
        if part >= 1 or learned == 2:
            break
        begin = time.process_time()
        if not descent.step(part):
            diverged = True
            break
        spent += time.process_time() - begin
        step, tokens = step + 1, tokens + descent.tokens
    return {
        "steps": step,
        "tokens": tokens,
        "seconds": spent,
        "curve": curve,
        "valid": max((found for *_, found in curve), default=None),
        "diverged": diverged,
        "ended": "diverged" if diverged else "learned" if learned == 2 else "budget",
    }


def _test(model: SequenceModel, task: Task, protocol: Protocol) -> dict[str, float]:
    """Scores at every length, by its factor."""
    found = {}
    for factor in protocol.factors:
        longer = task.held_out() if factor == 1 else task.held_out().longer(factor)
        found[str(factor)] = score(model, longer, protocol.examples, TEST)
    return found
