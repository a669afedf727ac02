"""What training descends: one loss per head, over the targets that are asked for.

    token, label   cross entropy                                           nats
    symbol         minus log of the sum over the paths that spell a text   nats a symbol
    token          of items, as its head asks: `train/item_loss.py`        nats
    gap            negative log likelihood of log(gap) under the mixture   nats
    remaining      the same of the time to the end of the sequence         nats
    future, level  pinball loss, mean over the quantiles                   scaled units
    value          squared error, mean over the outputs                    units squared

Targets that are not asked for (-1, NaN) take no part, in value or in gradient. A batch that asks
nothing has loss 0 with count 0, where the mean of torch.nn.functional.cross_entropy would be NaN.
Sources: Shchur et al. 2019, arXiv:1909.12127 (log-normal mixture); Graves et al. 2006 (CTC);
Koenker and Bassett 1978 (pinball).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from stepscan.models.heads import (
    Classify,
    Cloze,
    Ctc,
    Forecast,
    HeadConfig,
    NextEvent,
    NextItem,
    NextToken,
    Regress,
)
from stepscan.train.item_loss import item_loss

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
        case NextItem() | Cloze():
            each = item_loss(head, outputs, _asked(targets, "token", head))
            sums = {"token": Sum(each.sum(), torch.tensor(len(each), device=each.device))}
        case Classify():
            sums = {"label": _classes(outputs, _asked(targets, "label", head), head)}
        case NextEvent():
            sums = {
                "token": _cross_entropy(outputs.logits, _asked(targets, "token", head)),
                "gap": _gap(outputs.gap, _asked(targets, "gap", head)),
            }
            if head.remaining:
                sums["remaining"] = _gap(outputs.remaining, _asked(targets, "remaining", head))
        case Forecast(quantiles=levels, measured=measured):
            name = "level" if measured == "level" else "future"
            sums = {name: _pinball(outputs, _asked(targets, name, head), levels)}
        case Ctc():
            symbol, end = (_asked(targets, name, head) for name in ("symbol", "end"))
            sums = {"symbol": _spelling(outputs, symbol, end)}
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


def _classes(logits: Float[Tensor, "B T V"], target: Int[Tensor, "B T"], head: Classify) -> Sum:
    """Over the number of steps asked, whatever they weigh: a rare class makes no batch small."""
    asked = target >= 0
    total = F.cross_entropy(
        _wide(logits)[asked],
        target[asked],
        weight=_wide(logits).new_tensor(head.weights) if head.weights else None,
        label_smoothing=head.smoothing,
        reduction="sum",
    )
    return Sum(total, asked.sum())


def _spelling(
    logits: Float[Tensor, "B T V"], symbol: Int[Tensor, "B T"], end: Int[Tensor, "B T"]
) -> Sum:
    """CTC of every sequence that lies in this batch as a whole.

    `symbol` holds a text at the first steps of its sequence, -1 after it; `end` is -1 but at the
    last step of a sequence, where it is the number of its steps.
    """
    step = torch.arange(end.shape[1], device=end.device)
    rows, lasts = ((end > 0) & (end <= step + 1)).nonzero(as_tuple=True)
    if not len(rows):
        return Sum(logits.sum() * 0, end.new_zeros(()))
    lengths = end[rows, lasts]
    spans = list(zip(rows.tolist(), (lasts - lengths + 1).tolist(), lengths.tolist(), strict=True))
    texts = [row[row >= 0] for row in (symbol[b, t : t + n] for b, t, n in spans)]
    sizes = torch.tensor([len(text) for text in texts])
    total = F.ctc_loss(
        pad_sequence([_wide(logits)[b, t : t + n].log_softmax(-1) for b, t, n in spans]),
        torch.cat(texts),
        lengths,
        sizes,
        reduction="sum",
    )
    return Sum(total, sizes.clamp_min(1).sum())


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
