"""Judge a model by a part of the data: each step once, in order, with the state carried."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from stepscan.data.base import Batch, Packed
from stepscan.data.batches import walk
from stepscan.models.inputs import Inputs
from stepscan.models.model import SequenceModel
from stepscan.train.carry import newest_slots
from stepscan.train.objectives import loss


def walk_outputs(
    model: SequenceModel, packed: Packed, *, rows: int, length: int, slots: int | None = None
) -> Iterator[tuple[Batch, Any]]:
    """Every batch of `walk` and what the model says to it.

    Args:
        model: Put in evaluation mode, and back when the walk ends.
        packed: The part of the data.
        rows: Rows of a batch.
        length: Steps of a batch.
        slots: The most that a memory that grows (attention without a window) may keep from the
            batches before; None is no limit.
    """
    device, training, state = next(model.parameters()).device, model.training, None
    model.eval()
    try:
        for on_host in walk(packed, rows=rows, length=length):
            batch = on_device(on_host, device)
            with torch.no_grad():  # around the model only: the caller's code runs at the yield
                outputs, state = model(Inputs(batch.tokens, batch.reals), state, batch.resets)
            if slots is not None:
                state = newest_slots(state, slots)
            yield batch, outputs
    finally:
        model.train(training)


def evaluate(
    model: SequenceModel, packed: Packed, *, rows: int, length: int, slots: int | None = None
) -> dict[str, float]:
    """The mean loss of each target over all steps where it is asked for; see `walk_outputs`."""
    totals: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    walked = walk_outputs(model, packed, rows=rows, length=length, slots=slots)
    for batch, outputs in walked:
        for name, (total, count) in loss(model.config.head, outputs, batch.targets).sums.items():
            totals[name] += total.item()
            counts[name] += int(count)
    if not any(counts.values()):
        raise ValueError(
            f"nothing is asked in any of these {len(packed):,} steps: nothing to judge"
        )
    return {name: totals[name] / counts[name] for name in totals if counts[name]}


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on this device."""
    tokens, reals = (None if x is None else x.to(device) for x in batch[:2])
    targets = {name: target.to(device) for name, target in batch.targets.items()}
    return Batch(tokens, reals, batch.resets.to(device), targets)
