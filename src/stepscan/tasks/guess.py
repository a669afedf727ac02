"""Chance by counting, for tasks whose answers have no simple distribution; no task by itself."""

from functools import cache

import torch

from stepscan.tasks.base import Task

EXAMPLES = 4096


@cache
def best_guess(task: Task) -> float:
    """Score of the likeliest answer at each place, counted on examples of a seed of its own."""
    batch = task.draw(EXAMPLES, torch.Generator().manual_seed(2**31))
    votes = [((batch.target == a) & batch.asked).sum(0) for a in range(task.answers)]
    return (torch.stack(votes).amax(0).sum() / batch.asked.sum()).item()
