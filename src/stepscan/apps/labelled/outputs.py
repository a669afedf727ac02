"""What a model says to whole sequences: batches of like lengths, long ones in pieces."""

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.data.base import Packed
from stepscan.data.batches import gather
from stepscan.models import Inputs, SequenceModel

STEPS = 65_536  # of a batch
PIECE = 1024


def batches(packed: Packed, steps: int = STEPS) -> Iterator[tuple[Tensor, Int[Tensor, "B T"]]]:
    """Which sequences, and the positions of their steps, -1 behind the end; short ones first."""
    order = packed.lengths.argsort(stable=True)
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * int(packed.lengths[order[end]]) <= steps:
            end += 1
        chosen = order[start:end]
        step = torch.arange(int(packed.lengths[chosen].max()))
        inside = step < packed.lengths[chosen, None]
        yield chosen, torch.where(inside, packed.begins[chosen, None] + step, -1)
        start = end


@torch.no_grad()
def last_outputs(model: SequenceModel, packed: Packed) -> Tensor:
    """What the model says after the last step of each sequence, [S ...], in their order."""
    found: list[Tensor] = []
    where: list[Tensor] = []
    for chosen, at in batches(packed):
        last = packed.lengths[chosen] - 1
        rows = torch.arange(len(chosen))
        said: Tensor | None = None
        for start, outputs in _pieces(model, packed, at):
            if said is None:
                said = outputs.new_empty(len(chosen), *outputs.shape[2:])
            here = (last >= start) & (last < start + outputs.shape[1])
            said[here] = outputs[rows[here], (last - start)[here]]
        assert said is not None
        found.append(said)
        where.append(chosen)
    return torch.cat(found)[torch.cat(where).argsort()]


@torch.no_grad()
def all_outputs(model: SequenceModel, packed: Packed) -> list[Tensor]:
    """What the model says after every step of each sequence, [T ...]."""
    found: list[Tensor] = [torch.empty(0)] * len(packed.begins)
    for chosen, at in batches(packed):
        whole = torch.cat([outputs for _, outputs in _pieces(model, packed, at)], 1)
        for i, row in zip(chosen.tolist(), whole, strict=True):
            found[i] = row[: int(packed.lengths[i])]
    return found


def _pieces(
    model: SequenceModel, packed: Packed, at: Int[Tensor, "B T"]
) -> Iterator[tuple[int, Tensor]]:
    """Outputs of one stretch after the other; of a model that reads both ways, of all at once."""
    training, state = model.training, None
    model.eval()
    try:
        size = PIECE if model.causal else at.shape[1]
        for start in range(0, at.shape[1], size):
            batch = gather(packed, at[:, start : start + size])
            inputs = Inputs(batch.tokens, batch.reals)
            outputs, state = model(inputs, state, batch.resets)
            yield start, outputs
    finally:
        model.train(training)
