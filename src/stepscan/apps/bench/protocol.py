"""What is held equal when mixers are compared on tasks, and how large a model that makes."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal

import torch

from stepscan import state as states
from stepscan.apps import runs
from stepscan.models import ModelConfig, NextToken, Regress, SequenceModel
from stepscan.models.pattern import parse
from stepscan.tasks import RealTask, Task

WIDTHS = tuple(range(16, 513, 4))
"""Widths that are tried for equal sizes."""
MLP_RATIO = 2.0
LATER = ("budget", "self_pretrain")
"""Settings that runs of earlier versions do not have."""
WHICH = ("rates", "seeds")
"""Settings that say which trainings there are, not what one of them is."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One protocol for all cells; every field is in the report."""

    match: Literal["parameters", "state", "width"] = "parameters"
    """What is equal: trained numbers; bytes of state after a training sequence; or the width."""
    size: int = 60_000
    """How many parameters, bytes, or channels."""
    layers: int = 2
    """Layers of a mixer; a pattern of several layers is taken as it is."""
    batch: int = 32
    """Examples per step."""
    steps: int = 2000
    """Optimizer steps at the most."""
    seconds: float = 60.0
    """Training time at the most, in seconds of one core; of equal compute, what each has."""
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Peak learning rates; the one that is best with the first seed trains the others."""
    seeds: int = 2
    """Trainings at the best rate."""
    factors: tuple[int, ...] = (1, 2, 4, 16)
    """Test lengths, as multiples of the training length."""
    examples: int = 256
    """Test examples at each length."""
    looks: int = 10
    """How often validation examples are scored while training."""
    converged: float = 0.999
    """Validation score, twice in a row, that ends a training early."""
    budget: Literal["steps", "compute"] = "steps"
    """What a training ends by: `steps`, or as many as its measured speed makes of `seconds`."""
    self_pretrain: int = 0
    """Steps in which the inputs of the examples are learned, before the task is."""

    def __post_init__(self) -> None:
        """Reject what cannot be run."""
        for name in ("size", "layers", "batch", "steps", "seeds", "examples", "looks"):
            if getattr(self, name) < 1:
                raise ValueError(f"bench: want {name} >= 1, got {getattr(self, name)}")
        if self.self_pretrain < 0:
            raise ValueError(f"bench: want self_pretrain >= 0, got {self.self_pretrain}")
        if self.budget not in ("steps", "compute"):
            raise ValueError(f"bench: want a budget of steps or compute, got {self.budget!r}")
        if not self.seconds > 0:
            raise ValueError(f"bench: want seconds above 0, got {self.seconds}")
        if not self.rates or min(self.rates) <= 0:
            raise ValueError(f"bench: want learning rates above 0, got {self.rates}")
        if not self.factors or self.factors[0] != 1 or min(self.factors) < 1:
            raise ValueError(f"bench: want length factors that begin with 1, got {self.factors}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON has it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    def key(self) -> dict[str, Any]:
        """What a training is known by, beside its rate and seed. Settings that came later count
        where they are not as before, so that what was trained without them is found again.
        """
        old = {field.name: field.default for field in fields(self) if field.name in LATER}
        own = {k: v for k, v in self.to_dict().items() if k not in WHICH}
        return {k: v for k, v in own.items() if k not in old or v != old[k]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Protocol":
        """The inverse of `to_dict`."""
        return cls(**runs.tuples(data))


QUICK = Protocol(
    steps=1000, seconds=20.0, rates=(3e-3,), seeds=1, factors=(1, 2, 4), examples=128, looks=5
)
"""Eight mixers on eight tasks in a quarter of an hour on two cores."""


def config_of(pattern: str, task: Task, protocol: Protocol) -> ModelConfig:
    """The model of a mixer (or pattern of layers) for a task, as large as the protocol says.

    Raises:
        ValueError: no width from 16 to 512 can be built.
    """
    parse(pattern)  # what cannot be read has nothing to do with its size
    if protocol.match == "width":
        return _config(pattern, task, protocol, protocol.size)
    sizes = {}
    low, high = 0, len(WIDTHS) - 1  # sizes grow with the width, but not every width can be built
    while low <= high:
        middle = (low + high) // 2
        size = _next_size(pattern, task, protocol, middle)
        if size is None:
            high = middle - 1
            continue
        index, amount = size
        sizes[WIDTHS[index]] = amount
        low, high = (index + 1, high) if amount < protocol.size else (low, middle - 1)
    if not sizes:
        raise ValueError(f"bench: {pattern!r} cannot be built at any width from 16 to 512")
    width = min(sizes, key=lambda width: abs(sizes[width] - protocol.size))
    return _config(pattern, task, protocol, width)


def _next_size(pattern: str, task: Task, protocol: Protocol, index: int) -> tuple[int, int] | None:
    """The first width from this one on that can be built, and its size."""
    for i in range(index, len(WIDTHS)):
        try:
            config = _config(pattern, task, protocol, WIDTHS[i])
            return i, measure(config, task, protocol.match)
        except ValueError:
            continue
    return None


def measure(config: ModelConfig, task: Task, match: str) -> int:
    """Parameters of a model, or bytes of its state after one training sequence."""
    if match == "parameters":
        with torch.device("meta"):
            return sum(p.numel() for p in SequenceModel(config).parameters())
    return state_bytes(SequenceModel(config), task)


@torch.no_grad()
def state_bytes(model: SequenceModel, task: Task) -> int:
    """Bytes of one row's state after one training sequence."""
    example = task.draw(1, torch.Generator().manual_seed(0)).input
    return states.nbytes(model(example)[1])


def _config(pattern: str, task: Task, protocol: Protocol, width: int) -> ModelConfig:
    layers = _layers(pattern, protocol.layers)
    if isinstance(task, RealTask):
        head: Any = Regress(outputs=task.outputs)
        return ModelConfig(
            head=head, layers=layers, width=width, reals=task.channels, mlp_ratio=MLP_RATIO
        )
    return ModelConfig(
        head=NextToken(vocab=task.answers),
        layers=layers,
        width=width,
        tokens=(task.vocab,),
        mlp_ratio=MLP_RATIO,
        tie=False,
    )


@cache
def _layers(pattern: str, layers: int) -> Any:
    found = parse(pattern)
    return found * layers if len(found) == 1 else found
