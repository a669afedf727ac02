"""The learning rate as a function of progress, so that every kind of budget ends at the floor."""

import math


def rate(progress: float, *, warmup: float = 0.05, floor: float = 0.1) -> float:
    """The factor on the peak learning rate: linear up from `floor`, then half a cosine down to it.

    Args:
        progress: The part of the budget used up, from 0 to 1.
        warmup: The part of the budget that the way up takes.
        floor: Where it begins and ends, as a part of the peak. It begins above zero: a first step
            of size zero would be a step wasted.
    """
    if progress < warmup:
        return floor + (1 - floor) * progress / warmup
    down = (progress - warmup) / (1 - warmup)
    return floor + (1 - floor) * (1 + math.cos(math.pi * down)) / 2
