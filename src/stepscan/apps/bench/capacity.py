"""How long a text can a state carry a passkey through, against its size?

One model for every size of state, all of one width, trained on the needle task at its short length
and tested at longer ones. The capacity is the length up to which the score stays above a threshold.
Two laws are fitted to it, by least squares in log length:

    power         length = c * bytes^exponent
    exponential   length = c * exp(bytes / scale)

Published of Mamba-2 is the second (Chen et al. 2024, arXiv:2410.07145). The capacity of a model
that was trained on short texts only is that of its memory and of its training in one.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stepscan.apps.bench.protocol import Protocol
from stepscan.apps.bench.training import train
from stepscan.tasks import Task
from stepscan.tasks.needle import Needle

PROTOCOL = Protocol(
    match="width", size=64, rates=(3e-3,), seeds=1, factors=(1, 2, 4, 8, 16, 32), examples=128
)
"""Sizes of states differ by the options of a mixer, not by its width."""


class Capacity(NamedTuple):
    """One size of state."""

    pattern: str
    state_bytes: int
    length: float
    """Longest text with a score above the threshold; 0: none, not even the trained length."""
    at_least: bool
    """The longest text that was tried was not too long: the length is a lower bound."""
    scores: Mapping[int, float]
    """By length."""


class Law(NamedTuple):
    """A straight line through log lengths."""

    slope: float
    explained: float
    """Share of their variance, R^2."""


class Sweep(NamedTuple):
    """What `capacity_sweep` found."""

    capacities: tuple[Capacity, ...]
    power: Law | None
    """Its slope is the exponent; None if fewer than three lengths are known."""
    exponential: Law | None
    """Its slope is 1 / scale, per byte."""


def capacity_sweep(
    patterns: Sequence[str],
    *,
    task: Task | None = None,
    protocol: Protocol = PROTOCOL,
    threshold: float = 0.9,
    seed: int = 0,
) -> Sweep:
    """Train one model per pattern, and fit capacity against the bytes of its state.

    Args:
        patterns: Such as "gla[key_ratio=0.25]", "gla[key_ratio=0.5]".
        task: What to keep; it must have a `length`. None: one digit in a text of 32.
        protocol: With one learning rate; the longest text is the last of its factors.
        threshold: Score that counts as kept.
        seed: Of the weights and of the examples.
    """
    task = Needle(length=32, digits=1) if task is None else task
    if not any(f.name == "length" for f in dataclasses.fields(task)):
        raise ValueError(f"capacity: want a task with a length, got {task.name}")
    length = int(getattr(task, "length", 0))
    if len(protocol.rates) != 1:
        raise ValueError(f"capacity: want one learning rate, got {protocol.rates}")
    found = []
    for pattern in patterns:
        run = train(pattern, task, protocol, rate=protocol.rates[0], seed=seed)
        scores = {length * int(factor): score for factor, score in run["scores"].items()}
        reached, at_least = capacity_of(scores, threshold)
        found.append(Capacity(pattern, run["state_bytes"], reached, at_least, scores))
    return Sweep(tuple(found), *fit_laws(found))


def capacity_of(scores: Mapping[int, float], threshold: float) -> tuple[float, bool]:
    """The length at which scores fall below a threshold, between two lengths on a log scale; and
    whether they never do."""
    reached, before = 0.0, 1.0
    for length in sorted(scores):
        score = scores[length]
        if score < threshold:
            if reached:
                part = (before - threshold) / (before - score)
                reached *= (length / reached) ** part
            return reached, False
        reached, before = float(length), score
    return reached, reached > 0


def fit_laws(capacities: Sequence[Capacity]) -> tuple[Law | None, Law | None]:
    """Both laws, of the lengths that are known: neither 0 nor lower bounds."""
    known = [c for c in capacities if c.length and not c.at_least]
    lengths = [math.log(c.length) for c in known]
    sizes = [float(c.state_bytes) for c in known]
    return _line([math.log(size) for size in sizes], lengths), _line(sizes, lengths)


def _line(xs: Sequence[float], ys: Sequence[float]) -> Law | None:
    if len(set(xs)) < 3:
        return None
    x0, y0 = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    covariance = math.fsum((x - x0) * (y - y0) for x, y in zip(xs, ys, strict=True))
    x2, y2 = (math.fsum((v - m) ** 2 for v in vs) for vs, m in ((xs, x0), (ys, y0)))
    return Law(covariance / x2, covariance**2 / (x2 * y2) if y2 else 1.0)
