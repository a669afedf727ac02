"""What a layer asks of training besides a small loss: the balance of experts, time to ponder.

A forward pass changes nothing but its result, so a layer that has such a cost hands it to whoever
collects them at the time, and to nobody otherwise:

    with collect() as costs:
        outputs, state = model(inputs)
    loss = ... + total(costs)
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor


class Cost(NamedTuple):
    """One layer's, of one pass."""

    name: str
    value: Tensor
    """Of any shape; its mean counts."""
    weight: float


class _Collection:
    open: ClassVar[list[Cost] | None] = None


@contextmanager
def collect() -> Iterator[list[Cost]]:
    """A context, as `torch.no_grad()` is one: costs of the passes inside it fill the list."""
    before, found = _Collection.open, list[Cost]()
    _Collection.open = found
    try:
        yield found
    finally:
        _Collection.open = before


def charge(name: str, value: Tensor, *, weight: float) -> None:
    """Called by a layer."""
    if _Collection.open is not None:
        _Collection.open.append(Cost(name, value, weight))


def total(costs: Iterable[Cost]) -> Tensor | float:
    """What to add to the loss; 0 where there are none."""
    parts = [cost.weight * cost.value.mean() for cost in costs if cost.weight]
    return torch.stack(parts).sum() if parts else 0.0
