"""Self-pretraining: before a task is learned, its inputs are, from the very examples trained on.

    next       say input t + 1 after reading inputs 1..t                causal models
    denoise    some inputs are put in other places; say what was there  models that read both ways

What differs between architectures trained from scratch is to a large part how well their initial
weights suit the data; after self-pretraining, compare what they can learn. Only inputs take part:
never a target, never an example of the test. The compute belongs to the bill of the model.

Source: Amos, Berant and Gupta 2024, arXiv:2310.02980. Deviations: noise is inputs from elsewhere in
the batch rather than a mask token, so that the model needs no token that its task does not have;
examples are drawn rather than kept, as the task draws them.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.models import NextToken, Regress, SequenceModel
from stepscan.tasks import RealTask, Task
from stepscan.train.optimizer import adamw, set_rate
from stepscan.train.schedule import rate as schedule

NOISE = 0.3
"""Share of the inputs that `denoise` puts elsewhere."""
CLIP = 1.0

Objective = Literal["next", "denoise"]


def self_pretrain(
    model: SequenceModel,
    task: Task,
    *,
    steps: int,
    batch: int = 32,
    rate: float = 3e-3,
    seed: int = 0,
    objective: Objective | None = None,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.95),
) -> dict[str, Any]:
    """Train all of the model but its head to say the inputs of the task, in place.

    Args:
        model: Built for the task.
        task: The one to train on, not its held-out form.
        steps: Optimizer steps.
        batch: Examples per step.
        rate: Peak learning rate.
        seed: Of the examples: that of the training afterwards draws the same ones.
        objective: None is the one that suits the model.
        weight_decay: Of AdamW.
        betas: Of AdamW.

    Returns:
        Plain data: objective, steps, tokens, seconds of CPU time, first and last loss.
    """
    draw = training_inputs(task)
    if steps < 1:
        raise ValueError(f"self-pretraining: want steps >= 1, got {steps}")
    objective = objective or ("next" if model.causal else "denoise")
    if objective == "next" and not model.causal:
        raise ValueError(
            "self-pretraining: a layer of this model reads both ways and sees what comes next; "
            "take objective='denoise'"
        )
    real = isinstance(task, RealTask)
    head = Regress(outputs=task.channels) if real else NextToken(vocab=task.vocab)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = SequenceModel(replace(model.config, head=head))
    reader.load_state_dict(_trunk(model), strict=False)
    optimizer = adamw(reader, learning_rate=rate, weight_decay=weight_decay, betas=betas)
    rng, noise = (torch.Generator().manual_seed(s) for s in (seed, seed + 1))
    measure = F.mse_loss if real else F.cross_entropy
    losses, tokens, seconds = [], 0, 0.0
    for step in range(steps):
        begin = time.process_time()
        set_rate(optimizer, schedule(step / steps))
        clean = draw(batch, rng)
        if objective == "next":
            said, wanted = reader(clean)[0][:, :-1].flatten(0, 1), clean[:, 1:].flatten(0, 1)
        else:
            noisy, moved = _corrupt(clean, noise)
            said, wanted = reader(noisy)[0][moved], clean[moved]
        loss = measure(said, wanted)
        if not torch.isfinite(loss):
            break
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), CLIP)
        optimizer.step()
        losses.append(loss.item())
        tokens += clean.shape[0] * clean.shape[1]
        seconds += time.process_time() - begin
    model.load_state_dict(_trunk(reader), strict=False)
    return {
        "objective": objective,
        "steps": len(losses),
        "tokens": tokens,
        "seconds": seconds,
        "loss": [losses[0], losses[-1]] if losses else [],
    }


def training_inputs(task: Task) -> Callable[[int, torch.Generator], Tensor]:
    """Draws inputs of the task, without what is asked or wanted.

    Raises:
        ValueError: these are the examples that the task is tested on.
    """
    apart = type(task).held_out is not Task.held_out
    if apart and task.held_out() == task:
        raise ValueError(
            f"self-pretraining: this is the held-out form of {task.name}; take the one to train on"
        )
    return lambda n, rng: task.draw(n, rng).input


def _trunk(model: SequenceModel) -> dict[str, Tensor]:
    """All weights but those of the head."""
    return {k: v for k, v in model.state_dict().items() if not k.startswith("head.")}


def _corrupt(clean: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs with some from elsewhere in the batch in their place, and where."""
    places = clean.shape[:2]
    moved = torch.rand(places, generator=rng) < NOISE
    moved[0, 0] = True  # a loss over nothing is no number
    others = clean.flatten(0, 1)[torch.randint(places.numel(), places, generator=rng)]
    shape = (*places, *[1] * (clean.ndim - 2))
    return torch.where(moved.view(shape), others, clean), moved
