"""Self-guided training of structured maps (arXiv:2406.16450): a dense map helps, then fades out.

    y = alpha W x + (1 - alpha) structured(x)      alpha = (1 + cos(pi t / until)) / 2, then 0

t is the part of training that is over. W starts as the structured map's own matrix, so that nothing
jumps; whether the paper does the same is not known here. While alpha is 1 the structured factors
learn nothing, and once it is 0 W costs nothing. The paper's saving, to run W in a part alpha of the
steps only, is left out.

    add_guides(model)                               before the optimizer is made
    set_guidance(model, step / steps)               before each step
    remove_guides(model)                            at the end: structured maps are left
"""

import math
from collections.abc import Iterator

from torch import nn

from stepscan.layers.structured import Structured


def add_guides(model: nn.Module) -> int:
    """A dense map beside every structured one; returns how many."""
    found = list(_structured(model))
    for layer in found:
        layer.guide = nn.Parameter(layer.to_dense().detach().clone())
        layer.guidance = 1.0
    return len(found)


def set_guidance(model: nn.Module, progress: float, *, until: float = 0.5) -> float:
    """Set alpha for this part of training, from 0 to 1, and return it."""
    if not (0 <= progress <= 1 and 0 < until <= 1):
        raise ValueError(
            f"self-guided: want progress from 0 to 1 and 0 < until <= 1, got {progress}, {until}"
        )
    alpha = (1 + math.cos(math.pi * progress / until)) / 2 if progress < until else 0.0
    for layer in _structured(model):
        layer.guidance = alpha
    return alpha


def remove_guides(model: nn.Module) -> None:
    """What is left is the structured maps alone; an error while they are still guided."""
    for layer in _structured(model):
        if layer.guidance:
            raise ValueError(
                f"self-guided: guidance is {layer.guidance}; train until set_guidance returns 0"
            )
        layer.guide = None


def _structured(model: nn.Module) -> Iterator[Structured]:
    return (module for module in model.modules() if isinstance(module, Structured))
