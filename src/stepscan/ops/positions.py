"""Where a token stands in its own segment: the position that rotary and attention go by."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def positions(length: Int[Tensor, "B"], resets: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Tokens of its row since the last reset, before each token.

    `length` is that count before the first token; the token at a reset has position 0.
    """
    index = torch.arange(resets.shape[1], device=resets.device)
    start = torch.where(resets, index, -length[:, None])  # where the segment began
    return index - start.cummax(1).values
