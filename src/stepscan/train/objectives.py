"""What training descends: one loss per head, over the targets that are asked for.

    token, label   cross entropy                                           nats
    gap            negative log likelihood of log(gap) under the mixture   nats
    future         pinball loss, mean over the quantiles                   scaled units
    value          squared error, mean over the outputs                    units squared

Targets that are not asked for (-1, NaN) take no part, in value or in gradient. A batch that asks
nothing has loss 0 with count 0, where the mean of torch.nn.functional.cross_entropy would be NaN.
Sources: Shchur et al. 2019, arXiv:1909.12127 (log-normal mixture); Koenker and Bassett 1978
(pinball).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from stepscan.models.heads import Classify, Forecast, HeadConfig, NextEvent, NextToken, Regress

SHORTEST = 1e-3
"""Shorter gaps, also those of 0 between events of one instant, count as this much of the unit."""


class Sum(NamedTuple):
    """A mean in two parts, so that means of batches of different sizes add up right."""

    total: Float[Tensor, ""]
    count: Int[Tensor, ""]


class Loss(NamedTuple):
    """What one batch costs."""

    mean: Float[Tensor, ""]
    """To descend: the sum over the targets of their means."""
    sums: dict[str, Sum]
    """By target, detached."""


def loss(head: HeadConfig, outputs: Any, targets: Mapping[str, Tensor]) -> Loss:
    """The loss of a head's outputs, see the module docstring.

    Args:
        head: The config of the head that said them.
        outputs: What the model returned for [B, T] steps.
        targets: By name; those that this head answers must be there.
    """
    match head:
        case NextToken():
            sums = {"token": _cross_entropy(outputs, _asked(targets, "token", head))}
        case Classify():
            sums = {"label": _cross_entropy(outputs, _asked(targets, "label", head))}
        case NextEvent():
            sums = {
                "token": _cross_entropy(outputs.logits, _asked(targets, "token", head)),
                "gap": _gap(outputs.gap, _asked(targets, "gap", head)),
            }
        case Forecast(quantiles=levels):
            sums = {"future": _pinball(outputs, _asked(targets, "future", head), levels)}
        case Regress():
            sums = {"value": _squared(outputs, _asked(targets, "value", head))}
        case _:
            raise ValueError(f"no objective for the head {head!r}")
    mean = torch.stack([total / count.clamp_min(1) for total, count in sums.values()]).sum()
    return Loss(mean, {name: Sum(s.total.detach(), s.count) for name, s in sums.items()})


def _asked(targets: Mapping[str, Tensor], name: str, head: HeadConfig) -> Tensor:
    if name not in targets:
        got = ", ".join(targets) or "none"
        raise ValueError(f"the head {head.name} wants a target {name!r}; the batch has {got}")
    return targets[name]


def _cross_entropy(logits: Float[Tensor, "B T V"], target: Int[Tensor, "B T"]) -> Sum:
    asked = target >= 0
    return Sum(F.cross_entropy(_wide(logits)[asked], target[asked], reduction="sum"), asked.sum())


def _gap(mixture: Float[Tensor, "B T 3 M"], target: Float[Tensor, "B T"]) -> Sum:
    asked = ~target.isnan()
    weights, means, scales = _wide(mixture)[asked].unbind(-2)
    z = (target[asked].clamp_min(SHORTEST).log()[:, None] - means) * (-scales).exp()
    density = weights - scales - 0.5 * z.square() - 0.5 * math.log(2 * math.pi)
    return Sum(-density.logsumexp(-1).sum(), asked.sum())


def _squared(outputs: Float[Tensor, "B T O"], target: Float[Tensor, "B T O"]) -> Sum:
    asked = ~target.isnan()
    return Sum((_wide(outputs)[asked] - target[asked]).square().sum(), asked.sum())


def _pinball(
    outputs: Float[Tensor, "B T H Q"], target: Float[Tensor, "B T H"], levels: tuple[float, ...]
) -> Sum:
    asked = ~target.isnan()
    quantiles = _wide(outputs)[asked]
    level = quantiles.new_tensor(levels)
    short = target[asked][:, None] - quantiles
    return Sum(torch.maximum(level * short, (level - 1) * short).mean(-1).sum(), asked.sum())


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
