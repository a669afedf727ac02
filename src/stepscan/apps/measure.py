"""What a model costs to run: bytes of state and steps per second, after a short and a long past."""

from statistics import median
from time import perf_counter
from typing import Any

import torch

from stepscan import state as states
from stepscan.models import Inputs, SequenceModel

LENGTHS = (1024, 65536)


def parameters(model: SequenceModel) -> int:
    """Number of trained values; a tied table counts once."""
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def state_after(model: SequenceModel, steps: int) -> Any:
    """A state as large as after `steps` steps.

    Only its size matters here, so what grows is padded to that length rather than read through:
    attention spends the same time on an empty slot as on a full one.
    """
    _, state = model(empty_inputs(model, min(steps, 1024)))
    growing = states.nbytes(state) != states.nbytes(model(empty_inputs(model, 1), state)[1])
    return states.pad(state, steps) if growing else state


def state_bytes(model: SequenceModel) -> dict[str, int]:
    """Bytes of one row's state after each of LENGTHS steps."""
    return {str(n): states.nbytes(state_after(model, n)) for n in LENGTHS}


@torch.no_grad()
def decode_per_second(model: SequenceModel, calls: int = 40) -> dict[str, float]:
    """Steps per second of one row, one step a call, after each of LENGTHS steps: medians of calls
    that take turns, so that the noise of the machine hits all lengths alike.
    """
    model.eval()
    step = empty_inputs(model, 1)
    after = {str(steps): state_after(model, steps) for steps in LENGTHS}
    times: dict[str, list[float]] = {length: [] for length in after}
    for _ in range(calls):
        for length, state in after.items():
            start = perf_counter()
            model(step, state)
            times[length].append(perf_counter() - start)
    return {length: 1 / median(taken) for length, taken in times.items()}


def empty_inputs(model: SequenceModel, steps: int) -> Inputs:
    """One row of steps that fit the model and say nothing."""
    config = model.config
    return Inputs(
        tokens=torch.zeros(1, steps, len(config.tokens), dtype=torch.long)
        if config.tokens
        else None,
        reals=torch.zeros(1, steps, config.reals) if config.reals else None,
    )
