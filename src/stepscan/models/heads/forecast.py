"""Quantiles of the values to come."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from stepscan.layers.projection import Linear
from stepscan.models.bands import Bands
from stepscan.models.heads.base import HeadConfig, positive
from stepscan.models.inputs import Inputs
from stepscan.names import lookup


@dataclass(frozen=True, kw_only=True)
class Forecast(HeadConfig):
    """Quantiles of the next H values, [B T H Q], ascending along Q."""

    name: ClassVar[str] = "forecast"

    horizon: int
    """Steps ahead H."""
    quantiles: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9)
    """Levels, ascending, strictly between 0 and 1."""
    highway: bool = True
    """Add a linear map of the step's real inputs, past all blocks and norms: what a linear forecast
    could do, the model can do too (LSTNet, arXiv:1703.07015, section 3.6)."""
    calibrated: bool = False
    """Keep a factor per level, by which the distance from the middle quantile is stretched, and how
    errors hang together along the horizon: measured after training, see apps/series/calibration."""
    measured: str = "base"
    """What the answers are measured from: base, the seasonal naive forecast, in units of its errors
    (target "future"); level, the median of the series, in its own scale (target "level")."""

    def __post_init__(self) -> None:
        """Reject levels that are not levels."""
        positive(self, "horizon")
        lookup(dict.fromkeys(("base", "level")), self.measured, kind="measured")
        levels = [0.0, *self.quantiles, 1.0]
        if not self.quantiles or any(a >= b for a, b in pairwise(levels)):
            raise ValueError(
                f"forecast: want ascending quantiles between 0 and 1, got {self.quantiles}"
            )

    def build(self, width: int, reals: int, table: nn.Embedding | None) -> nn.Module:
        """A linear map to the middle quantile and the steps up and down from it."""
        return Quantiles(width, reals if self.highway else 0, self)


class Quantiles(Bands):
    """The middle quantile and the steps from it are linear in the state of the model."""

    def __init__(self, width: int, reals: int, config: Forecast) -> None:
        super().__init__(len(config.quantiles), calibrated=config.calibrated)
        self.highway = Linear(reals, config.horizon, bias=False) if reals else None
        if self.highway is not None:
            nn.init.zeros_(self.highway.weight)
        self.shape = config.horizon, len(config.quantiles)
        self.map = Linear(width, config.horizon * len(config.quantiles))
        nn.init.normal_(self.map.weight, std=0.1 * width**-0.5)
        nn.init.zeros_(self.map.bias)

    def forward(self, x: Float[Tensor, "B T D"], inputs: Inputs) -> Float[Tensor, "B T H Q"]:
        """Quantiles for every step ahead."""
        raw = self.map(x).unflatten(-1, self.shape)
        below, middle, above = raw.tensor_split([self.middle, self.middle + 1], -1)
        if self.highway is not None and inputs.reals is not None:
            middle = middle + self.highway(inputs.reals.to(x.dtype))[..., None]
        return self.around(below, middle, above)
