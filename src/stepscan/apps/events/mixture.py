"""Times that a head tells as a mixture of log-normals."""

import torch
from jaxtyping import Float
from torch import Tensor


def median(mixture: Float[Tensor, "N 3 M"]) -> Float[Tensor, " N"]:
    """The median, in units, of `EventOutput.gap` or `EventOutput.remaining`; by halving."""
    weights, means, scales = mixture.double().unbind(-2)
    spread = scales.exp()
    low = (means - 8 * spread).amin(-1)
    high = (means + 8 * spread).amax(-1)
    for _ in range(40):
        middle = (low + high) / 2
        below = torch.special.ndtr((middle[:, None] - means) / spread)
        inside = (weights.exp() * below).sum(-1)
        low = torch.where(inside < 0.5, middle, low)
        high = torch.where(inside < 0.5, high, middle)
    return ((low + high) / 2).exp().float()
