"""Learning from new values while reading them, one step at a time: see `train.online`.

What a step asks for is known a horizon later. So the network learns from a step when the last of
its H values has come, and the newest H steps are only read. Values before `since` are read without
learning, to bring the state to where it would be.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stepscan.data.base import DataError
from stepscan.data.panel import SeriesPacked
from stepscan.models import Inputs, SequenceModel
from stepscan.train.objectives import loss
from stepscan.train.online import Online
from stepscan.train.optimizer import adamw

PIECE = 512  # steps read at once where nothing is learned


class Learned(NamedTuple):
    """What was learned from."""

    steps: int
    """Over all series."""
    loss: float
    """Mean pinball loss of what was said before each step was learned from."""


def learn(
    network: SequenceModel,
    packed: SeriesPacked,
    since: int,
    *,
    method: str,
    learning_rate: float,
    seed: int = 0,
) -> Learned:
    """Change the weights by every step whose values came after `since`, series after series.

    Args:
        network: Changed in place.
        packed: Whole series, as `SeriesSchema.encode` gives them.
        since: The time of the last step that was learned from before, as in `tables.Times`.
        method: One of `train.online.METHODS`.
        learning_rate: Of AdamW, without decay.
        seed: Of the random signs of uoro.
    """
    head = network.config.head
    panel = packed.panel
    begin, end = panel.begin.numpy(), panel.end.numpy()
    asked = SeriesPacked(panel, packed.names, first=begin, last=end, low=begin + 1, high=end)

    def wrong(outputs: Any, targets: dict[str, Tensor]) -> Tensor:
        return loss(head, outputs, targets).mean

    optimizer = adamw(network, learning_rate=learning_rate, weight_decay=0.0, betas=(0.9, 0.999))
    total, count = 0.0, 0
    for first, size in zip(asked.begins.tolist(), asked.lengths.tolist(), strict=True):
        at = torch.arange(first, first + size)
        last = int(np.flatnonzero(~asked.value_at(at).isnan().numpy())[-1])
        known = last - panel.horizon  # the last step whose values have all come
        new = int((asked.stamps_at(at) <= since).sum()) - panel.horizon
        learner = Online(network, wrong, optimizer, method=method, seed=seed)
        new = max(new, 0)
        learner.state = _read(network, asked, at[:new])
        for step in at[new : known + 1]:
            _, reals = asked.inputs_at(step[None, None])
            targets = asked.targets_at(step[None, None])
            if all(target.isnan().all() for target in targets.values()):
                learner.state = _read(network, asked, step[None], learner.state)
                continue
            total += learner.step(Inputs(reals=reals), targets)[1]
            count += 1
    if not count:
        raise DataError(
            f"learn: want rows with {panel.horizon} values after one that is new, so that what was "
            "foretold can be held against them; there is none yet"
        )
    return Learned(count, total / count)


@torch.no_grad()
def _read(network: SequenceModel, packed: SeriesPacked, at: Tensor, state: Any = None) -> Any:
    """The state after these steps."""
    for piece in at.split(PIECE):
        if len(piece):
            _, state = network(Inputs(reals=packed.inputs_at(piece[None])[1]), state)
    return state
