"""How far back a model looks: one step of the past is swapped for another, and the answer watched.

    influence(k) = mean |f(x with step t - k swapped) - f(x)| / mean |f(y) - f(x)|

f(x) is what is said after step t, y an unrelated history: 1 is an answer that is as different as
that to another question. It is measured, not read off weights: a memory that is kept but not used
counts for nothing. The steps swapped in are real ones, so that no model sees what it never saw;
where two histories agree in a step, swapping it changes nothing, which makes the figure a low one
for data that repeat themselves. Permutation importance (Breiman 2001, Machine Learning 45), step by
step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepscan.models import Inputs


@torch.no_grad()
def influence(
    model: nn.Module,
    inputs: Inputs,
    lags: Sequence[int],
    read: Callable[[Any], Float[Tensor, "B T X"]],
) -> list[float]:
    """How much the answer after the last step changes with the step each of `lags` before it.

    Args:
        model: (inputs) -> (outputs, state).
        inputs: Histories [B T ...] of one length, B of 2 or more; each lends its steps to another.
        lags: From 0 (the last step itself) to T - 1.
        read: What to compare of the outputs.
    """
    present = [x for x in inputs if x is not None]
    rows, steps = present[0].shape[:2]
    if rows < 2 or not lags or min(lags) < 0 or max(lags) >= steps:
        raise ValueError(
            f"influence: want two histories or more and lags from 0 to {steps - 1}, "
            f"got {rows} histories and lags {list(lags)}"
        )
    said = _last(model, inputs, read)
    other = Inputs(*(None if x is None else x.roll(1, 0) for x in inputs))
    scale = (_last(model, other, read) - said).abs().mean()
    found = []
    for lag in lags:
        swapped = [None if x is None else x.clone() for x in inputs]
        for x, y in zip(swapped, other, strict=True):
            if x is not None and y is not None:
                x[:, steps - 1 - lag] = y[:, steps - 1 - lag]
        change = (_last(model, Inputs(*swapped), read) - said).abs().mean()
        found.append(float(change / scale) if scale > 0 else 0.0)
    return found


def _last(
    model: nn.Module, inputs: Inputs, read: Callable[[Any], Float[Tensor, "B T X"]]
) -> Float[Tensor, "B X"]:
    outputs, _ = model(inputs)
    return read(outputs)[:, -1].double()
