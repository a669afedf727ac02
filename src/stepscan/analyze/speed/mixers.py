"""Times of one layer of every mixer: reading a stretch, and a step of training on it.

All take turns in one process, so that the ratio of two of them means something on a busy machine.
"""

import math
import warnings
from collections.abc import Iterator
from functools import partial

import torch

from stepscan.analyze.forms import native
from stepscan.analyze.speed.rounds import in_turns, seconds
from stepscan.analyze.speed.rows import BOTH, FORWARD, Plan, Row, Runner, row
from stepscan.mixers import MIXERS
from stepscan.names import lookup

OP = "mixer"
WIDTH = 256
STRETCH = 64  # tokens that the forms for long stretches serve, too
REFERENCE = "attention"
"""Softmax attention over all tokens: the others are multiples of it."""


def names(mixers: str) -> list[str]:
    """The mixers that are meant: all, or those named, separated by commas."""
    wanted = [name.strip() for name in mixers.split(",") if name.strip()]
    for name in wanted:
        lookup(MIXERS, name, kind="mixer")
    return sorted({*wanted, REFERENCE}) if wanted else list(MIXERS)


def measure(plan: Plan) -> Iterator[Row]:
    """Two rows for every mixer and length: forward, and with gradients in all weights.

    A mixer whose short stretch promises a run beyond the plan's patience is left out, and said to.
    """
    wanted = names(plan.ops)
    x = torch.randn(1, STRETCH, WIDTH)
    kernels = {name: native(MIXERS[name]().build(WIDTH), x) for name in wanted}
    for T in plan.lengths:
        for what in (FORWARD, BOTH):
            with warnings.catch_warnings(action="ignore"):  # a form that falls back says so
                expected = {name: _expected(name, plan, T, what) for name in wanted}
                runs = {
                    name: partial(_runner(name, plan.batch, T).run, what)
                    for name in wanted
                    if expected[name] <= plan.patience
                }
                timings = in_turns(runs, rounds=plan.rounds, budget=plan.budget)
            for name in wanted:
                late = f"left out: about {expected[name]:.0f} s"
                yield row(
                    {"op": OP, "pass": what, "T": T, "form": name},
                    timings.get(name),
                    auto=timings.get(REFERENCE),
                    tokens=plan.batch * T,
                    note=late if name not in timings else ", ".join(sorted(kernels[name])),
                )


def table(rows: list[Row]) -> list[Row]:
    """One line for each mixer and length, the fastest to train first; those left out at the end."""
    found: dict[tuple[str, int], Row] = {}
    for each in rows:
        line = found.setdefault((each["form"], each["T"]), {"mixer": each["form"], "T": each["T"]})
        what = "forward" if each["pass"] == FORWARD else "training"
        line[f"{what} us/token"] = _shown(each["us/token"])
        line[f"x {REFERENCE}" + ("" if what == "forward" else ", training")] = _shown(
            each["x auto"]
        )
        line["kernels"] = each["note"] or "-"
    speed = lambda line: line["training us/token"]  # noqa: E731
    return sorted(found.values(), key=lambda line: speed(line) if speed(line) != "-" else math.inf)


def _shown(figure: float | None) -> float | str:
    return "-" if figure is None else figure


def _expected(name: str, plan: Plan, T: int, what: str) -> float:
    """Seconds, if time grows with the tokens: from a short stretch, the second time."""
    run = partial(_runner(name, plan.batch, min(T, STRETCH)).run, what)
    seconds(run)
    return seconds(run) * T / min(T, STRETCH)


def _runner(name: str, batch: int, T: int) -> Runner:
    torch.manual_seed(0)
    mixer = MIXERS[name]().build(WIDTH)
    x = torch.randn(batch, T, WIDTH).requires_grad_()
    inputs = {"x": x, "weights": [p for p in mixer.parameters() if p.requires_grad]}
    return Runner(name, lambda given: mixer(given["x"])[0], inputs)
