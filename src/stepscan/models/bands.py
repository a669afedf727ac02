"""Quantiles that cannot cross: the middle one, then softplus steps up and down from it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class Bands(nn.Module):
    """What all heads of quantiles share.

    Args:
        levels: Number of quantiles Q.
        calibrated: Keep `stretch` and `persistence`, which are not learned but measured afterwards:
            of each level the factor on its distance from the middle, and of neighbouring steps
            ahead the correlation of their errors as normal scores.
    """

    def __init__(self, levels: int, *, calibrated: bool) -> None:
        super().__init__()
        self.middle = levels // 2
        self.register_buffer("stretch", torch.ones(levels) if calibrated else None)
        self.register_buffer("persistence", torch.zeros(()) if calibrated else None)
        self.stretch: Tensor | None
        self.persistence: Tensor | None

    def around(
        self, below: Float[Tensor, "... N"], middle: Float[Tensor, "... 1"], above: Tensor
    ) -> Float[Tensor, "... Q"]:
        """Around the middle, from the steps down and up before softplus."""
        down, up = F.softplus(below).flip(-1).cumsum(-1), F.softplus(above).cumsum(-1)
        if self.stretch is not None:  # outward again after stretching: they still cannot cross
            low, _, high = self.stretch.tensor_split([self.middle, self.middle + 1])
            down = (down * low.flip(-1)).cummax(-1).values
            up = (up * high).cummax(-1).values
        return torch.cat([middle - down.flip(-1), middle, middle + up], -1)


class ConstantBands(Bands):
    """Bands of the same width at all times, around an answer that comes from elsewhere."""

    def __init__(self, horizon: int, levels: int, *, calibrated: bool) -> None:
        super().__init__(levels, calibrated=calibrated)
        self.steps = nn.Parameter(torch.full((horizon, levels - 1), -1.0))  # a third of the scale

    def forward(self, middle: Float[Tensor, "... H"]) -> Float[Tensor, "... H Q"]:
        """Quantiles for every step ahead."""
        steps = self.steps.expand(*middle.shape, -1)
        below, above = steps.tensor_split([self.middle], -1)
        return self.around(below, middle[..., None], above)
