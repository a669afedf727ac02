"""Learning from new values while reading them, one step at a time: see `train.online`.

What a step asks for is known a horizon later. So the network learns from a step when the last of
its H values has come, and the newest H steps are only read. Values before `since` are read without
learning, to bring the state to where it would be. Several series go forward together, in the order
of time, and all of them move the same weights.

On the way forecasts can be asked for (`origins`). Each is made with the weights of its own time:
those that learned from values up to that step and none after it. The loss before each step of
learning (`Learned.loss`) is not such a forecast: the steps just before it were learned from with
targets that reach into its own, so it flatters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan import state as states
from stepscan.data.base import DataError
from stepscan.data.panel import SeriesPacked
from stepscan.models import Inputs, SequenceModel
from stepscan.train.objectives import loss
from stepscan.train.online import MOST, Online
from stepscan.train.optimizer import adamw

PIECE = 512  # steps read at once where nothing is learned
MATRICES = ("rtrl", "snap1")
"""The methods that keep a matrix for every series."""


class Learned(NamedTuple):
    """What was learned from."""

    steps: int
    """Over all series."""
    loss: float
    """Mean pinball loss of what was said before each step was learned from."""
    said: Float[Tensor, "M H Q"] | None = None
    """What the network said at the origins, as it was then; None: there were none."""


@dataclass
class _Stream:
    """One series, and how far it was read."""

    learner: Online
    at: int
    """The place in the panel of the next step to learn from."""


def learn(
    network: SequenceModel,
    packed: SeriesPacked,
    since: int | Int[Tensor, " S"],
    *,
    method: str,
    learning_rate: float,
    seed: int = 0,
    origins: Sequence[int] = (),
    show: Callable[[float, int], None] | None = None,
) -> Learned:
    """Change the weights by every step whose values came after `since`, in the order of time.

    Args:
        network: Changed in place.
        packed: Whole series, as `SeriesSchema.encode` gives them.
        since: The time of the last step that was learned from before, as in `tables.Times`; of all
            series, or of each.
        method: One of `train.online.METHODS`.
        learning_rate: Of AdamW, without decay.
        seed: Of the random signs of uoro.
        origins: Places in the panel to forecast from on the way; none may lie before `since`.
        show: Called now and then with the part that is done and the steps learned from.

    Raises:
        DataError: no value has come that was foretold; nothing has changed.
        ValueError: an unknown method, a state that grows, no room for the matrices.
    """
    head, panel = network.config.head, packed.panel
    begin, end = panel.begin.numpy(), panel.end.numpy()
    asked = SeriesPacked(panel, packed.names, first=begin, last=end, low=begin + 1, high=end)

    def wrong(outputs: Any, targets: dict[str, Tensor]) -> Tensor:
        return loss(head, outputs, targets).mean

    optimizer = adamw(network, learning_rate=learning_rate, weight_decay=0.0, betas=(0.9, 0.999))
    after = torch.as_tensor(since).expand(len(begin))
    streams, moments = [], []
    for s, (first, size) in enumerate(zip(begin.tolist(), (end - begin).tolist(), strict=True)):
        at = torch.arange(first, first + size)
        last = first + int(np.flatnonzero(~asked.value_at(at).isnan().numpy())[-1])
        old = first + int((panel.stamps[at] <= after[s]).sum())
        new = max(old - panel.horizon, first)
        learner = Online(network, wrong, optimizer, method=method, seed=seed)
        streams.append(_Stream(learner, new))
        # A step can be learned from when the last of its values has come.
        whole = range(new, last - panel.horizon + 1)
        moments += [(int(panel.stamps[i + panel.horizon]), 0, s, i) for i in whole]
    if not moments:
        raise DataError(
            f"learn: want rows with {panel.horizon} values after one that is new, so that what was "
            "foretold can be held against them; there is none yet"
        )
    if method in MATRICES and len(streams) > 1:
        _check_room(network, asked, method, len(streams))
    for stream, first in zip(streams, begin.tolist(), strict=True):
        stream.learner.state = _read(network, asked, range(first, stream.at))[1]
    # At the same moment first what has come is learned from, then what is next is foretold.
    place = {origin: i for i, origin in enumerate(origins)}
    moments += [(int(panel.stamps[o]), 1, int(panel.series[o]), o) for o in origins]
    total, count, said = 0.0, 0, [torch.empty(0)] * len(place)
    for done, (_, kind, s, i) in enumerate(sorted(moments)):
        stream = streams[s]
        learner = stream.learner
        if kind:
            outputs = _read(network, asked, range(stream.at, i + 1), learner.state)[0]
            said[place[i]] = outputs[0, -1]
            continue
        step = torch.tensor([[i]])
        targets = asked.targets_at(step)
        if all(target.isnan().all() for target in targets.values()):
            learner.state = _read(network, asked, range(i, i + 1), learner.state)[1]
        else:
            total += learner.step(Inputs(reals=asked.inputs_at(step)[1]), targets)[1]
            count += 1
        stream.at = i + 1
        if show is not None:
            show(done / len(moments), count)
    return Learned(count, total / max(count, 1), torch.stack(said) if said else None)


@torch.no_grad()
def _read(
    network: SequenceModel, packed: SeriesPacked, at: range, state: Any = None
) -> tuple[Any, Any]:
    """What is said in the last piece of these steps, and the state after them."""
    outputs = None
    for piece in torch.arange(at.start, at.stop).split(PIECE):
        if len(piece):
            outputs, state = network(Inputs(reals=packed.inputs_at(piece[None])[1]), state)
    return outputs, state


def _check_room(network: SequenceModel, packed: SeriesPacked, method: str, series: int) -> None:
    """Raise `ValueError` where a matrix for every series is more than memory should hold."""
    state = _read(network, packed, range(1))[1]
    size = states.nbytes(state) // 4
    wanted = series * size * sum(p.numel() for p in network.parameters())
    if wanted > MOST:
        raise ValueError(
            f"learn: {method} keeps a matrix for each of {series:,} series, {wanted:,} numbers in "
            f"all, at most {MOST:,}; take uoro or dni, or a smaller model"
        )
