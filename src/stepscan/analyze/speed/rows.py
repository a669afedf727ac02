"""What is timed, and the rows that tell of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from stepscan.analyze.speed.cases import tensors
from stepscan.analyze.speed.rounds import Timing

AUTO = "auto"
"""What a user gets without asking for a form; the others are measured against it."""
FORWARD, BOTH = "forward", "forward+backward"
TOLERANCE = 1e-3  # of the largest number; the laws in tests/ are stricter
FIGURES = ("ms", "min ms", "n", "first ms", "us/token", "x auto", "% of limit")

Row = dict[str, Any]


class Plan(NamedTuple):
    """What to time and how long."""

    lengths: tuple[int, ...]
    ops: str = ""
    batch: int = 1
    heads: int = 12
    size: int = 64
    backward: bool = False
    rounds: int = 5
    budget: float = 0.2
    """Seconds for each form, after which it is run no more."""
    patience: float = 3.0
    """Seconds that a single run may be expected to take, or it is left out."""
    with_peers: bool = True

    @property
    def passes(self) -> tuple[str, ...]:
        """Forward, and with gradients."""
        return (FORWARD, BOTH) if self.backward else (FORWARD,)


class Runner(NamedTuple):
    """A form, a layer, a peer: with inputs of its own, whose tensors are leaves."""

    name: str
    call: Callable[[Any], Any]
    """From inputs to y, a tensor or several."""
    inputs: Any
    same: bool = True
    """Whether y is that of the others."""
    growth: int = 1
    """Power of T that the time of its gradients grows with."""
    multiple: int = 1
    """T must be a multiple of this."""

    def forward(self) -> Any:
        """y."""
        with torch.no_grad():
            return self.call(self.inputs)

    def both(self) -> tuple[Any, list[Tensor]]:
        """y, and the gradients of the sum of it in all inputs."""
        y = self.call(self.inputs)
        total = sum(part.sum() for part in pytree.tree_leaves(y))
        found = torch.autograd.grad(total, tensors(self.inputs), materialize_grads=True)  # type: ignore[arg-type]
        return y, list(found)

    def run(self, what: str) -> object:
        """One pass."""
        return self.forward() if what == FORWARD else self.both()


def near(got: Tensor, want: Tensor) -> bool:
    """Whether they are the same function's values; never, where they are not finite."""
    if got.shape != want.shape:
        return False
    return bool((got - want).abs().max() <= TOLERANCE * max(1.0, float(want.abs().max())))


def row(
    what: Row,
    time: Timing | None,
    *,
    auto: Timing | None,
    tokens: int,
    binding: tuple[str, float | None] = ("", None),
    note: str = "",
) -> Row:
    """One line of the table: `what` was timed, its figures, and why it has none."""
    figures: Row = dict.fromkeys(FIGURES)
    limit, least = binding
    if time is not None:
        figures |= {
            "ms": 1e3 * time.median,
            "min ms": 1e3 * time.least,
            "n": time.count,
            "first ms": 1e3 * time.first,
            "us/token": 1e6 * time.median / tokens,
            "x auto": time.median / auto.median if auto else None,
            "% of limit": None if least is None else 100 * least / time.median,
        }
    return what | figures | {"limit": limit, "note": note}
