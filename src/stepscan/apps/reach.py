"""How far back the models of a section look, for the report; see `analyze.reach`."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stepscan.analyze.reach import influence
from stepscan.apps.domain import Domain
from stepscan.data.base import Packed
from stepscan.models import Inputs

HISTORIES = 32
FEWEST = 8
LONGEST = 129  # steps: lags up to 128
LEAST = 0.01  # of an unrelated answer: below, a step counts for nothing


def looks_back(domain: Domain, models: Mapping[str, nn.Module]) -> list[dict[str, Any]]:
    """A picture of the influence of each step on the answer; none where histories are too short."""
    packed = domain.dataset.parts["test"]
    readable = {who: model for who, model in models.items() if getattr(model, "causal", True)}
    at = _histories(packed, min(LONGEST, domain.reach))
    if at is None or not readable:
        return []
    inputs = Inputs(*packed.inputs_at(at))
    lags = [0, *(2**k for k in range(10) if 2**k < at.shape[1])]
    lines = [
        {"from": who, "values": influence(model.eval(), inputs, lags, answers)}
        for who, model in readable.items()
    ]
    return [
        {
            "type": "lines",
            "title": "How far back it looks",
            "x": "steps before the last one",
            "y": "change of the answer",
            "places": [str(lag) for lag in lags],
            "lines": lines,
            "note": " ".join(
                [
                    *(_sentence(one, lags) for one in lines),
                    f"One step of {len(at)} held-out histories of {at.shape[1]} steps is swapped "
                    "for that of another history; 1 is as much as another history altogether "
                    "changes the answer.",
                ]
            ),
        }
    ]


def answers(outputs: Any) -> Float[Tensor, "B T X"]:
    """What a head says, so that differences mean something: probabilities, or the numbers."""
    logits = getattr(outputs, "logits", None)
    if logits is None:
        logits = outputs if isinstance(outputs, Tensor) else next(iter(outputs))
    flat = logits.flatten(2)
    return flat if logits.ndim > 3 else flat.softmax(-1)


def _sentence(line: Mapping[str, Any], lags: list[int]) -> str:
    far = [lag for lag, value in zip(lags, line["values"], strict=True) if value >= LEAST]
    if not far:
        return f"{line['from']} answers the same whatever it reads."
    farthest = max(far)
    if farthest == lags[-1]:
        return f"{line['from']} still heeds what lies {farthest} steps back."
    after = lags[lags.index(farthest) + 1]
    return f"{line['from']} hardly heeds what lies {after} steps back or more (below {LEAST:.0%})."


def _histories(packed: Packed, most: int) -> Int[Tensor, "B T"] | None:
    """Ends of the longest sequences there are enough of, all cut to one length; None if short."""
    ordered = packed.lengths.argsort(descending=True, stable=True)
    if len(ordered) >= FEWEST:
        length = min(most, int(packed.lengths[ordered[FEWEST - 1]]))
        long = ordered[packed.lengths[ordered] >= length]
        chosen = long[torch.linspace(0, len(long) - 1, min(HISTORIES, len(long))).long()]
        ends = packed.begins[chosen] + packed.lengths[chosen]
    else:  # a few long ones: several stretches of each
        length = min(most, int(packed.lengths.max()) // FEWEST)
        ends = torch.cat(
            [
                begin + torch.arange(length, size + 1, max(1, length // 2))
                for begin, size in zip(packed.begins.tolist(), packed.lengths.tolist(), strict=True)
                if size >= length > 0
            ]
            or [torch.empty(0, dtype=torch.long)]
        )[:HISTORIES]
    if length < 3 or len(ends) < 2:
        return None
    return ends[:, None] - length + torch.arange(length)
