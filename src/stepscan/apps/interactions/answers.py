"""What a network says after each history: the logits of the next item.

A causal network without learned positions reads a history of any length, from state to state. The
others read its newest items at once: as many as there are positions, or as a training window. One
that fills in hidden items is asked by one more item, a hidden one.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan.data.base import Packed
from stepscan.data.batches import places
from stepscan.models import Cloze, Inputs, ItemScores, SequenceModel
from stepscan.ops.projection import project
from stepscan.train.cloze import HIDDEN
from stepscan.train.evaluate import walk_outputs

ROWS = 64  # histories read side by side, in pieces
WHOLE = 256  # histories read side by side, at once


def window(network: SequenceModel, reach: int) -> int | None:
    """The most items of a history that the network reads; None is all of them.

    Args:
        network: Of items.
        reach: Half a training window, see `Domain.reach`.
    """
    if network.causal and not network.config.positions:
        return None
    most = network.config.positions or 2 * reach
    return max(1, most - isinstance(network.config.head, Cloze))


def newest(network: SequenceModel, inputs: Inputs, reach: int) -> Inputs:
    """One history [1 T ...] as the network reads it: cut, and with the question behind it, whose
    time is not known."""
    most = window(network, reach)
    parts = [x if x is None or most is None else x[:, -most:] for x in inputs]
    if isinstance(network.config.head, Cloze):
        asks = (HIDDEN, 0.0)
        parts = [
            x if x is None else torch.cat([x, torch.full_like(x[:, :1], ask)], 1)
            for x, ask in zip(parts, asks, strict=True)
        ]
    return Inputs(*parts)


def last_logits(
    network: SequenceModel, packed: Packed, *, reach: int
) -> Iterator[tuple[Int[Tensor, " n"], Float[Tensor, "n V"]]]:
    """Some sequences of the part, by number, and what is said after them; each sequence once."""
    most = window(network, reach)
    if most is None:
        yield from _walked(network, packed, reach)
        return
    training = network.training
    network.eval()
    try:
        for which in packed.lengths.argsort().split(WHOLE):
            with torch.no_grad():
                logits = _at_once(network, packed, which, most)
            yield which, logits
    finally:
        network.train(training)


def _walked(
    network: SequenceModel, packed: Packed, reach: int
) -> Iterator[tuple[Int[Tensor, " n"], Float[Tensor, "n V"]]]:
    ends = packed.begins + packed.lengths - 1
    walked = walk_outputs(network, packed, rows=ROWS, length=reach, slots=reach)
    for at, (_, logits) in zip(places(packed, rows=ROWS, length=reach), walked, strict=True):
        sequence = torch.searchsorted(packed.begins, at.clamp(min=0), right=True) - 1
        last = (at >= 0) & (at == ends[sequence])
        yield sequence[last], logits[last.to(logits.device)]


def _at_once(
    network: SequenceModel, packed: Packed, which: Int[Tensor, " n"], most: int
) -> Float[Tensor, "n V"]:
    """The newest items of these sequences, in rows padded behind."""
    asks = int(isinstance(network.config.head, Cloze))
    lengths = packed.lengths[which].clamp(max=most)
    steps = torch.arange(int(lengths.max()) + asks)
    begins = packed.begins[which] + packed.lengths[which] - lengths
    inside = steps < lengths[:, None]
    tokens, reals = packed.inputs_at(torch.where(inside, begins[:, None] + steps, 0))
    assert tokens is not None
    tokens = tokens.masked_fill(~inside[..., None], HIDDEN)
    if reals is not None:
        reals = reals.masked_fill(~inside[..., None], 0)
    last = lengths - 1 + asks
    # What pads a row is cut off from it; a causal network would not look there anyway.
    resets = None if network.causal else steps > last[:, None]
    device = next(network.parameters()).device
    resets = None if resets is None else resets.to(device)
    rows = torch.arange(len(which))
    network.head.train()  # then it leaves out the products of all steps but the last
    inputs = Inputs(tokens.to(device), None if reals is None else reals.to(device))
    said, _ = network(inputs, None, resets)
    network.head.eval()
    if isinstance(said, ItemScores):
        return project(said.x[rows, last], said.weight, said.bias)
    return said[rows, last]
