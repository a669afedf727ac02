"""Which class a sequence is of."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from stepscan.models.heads.base import HeadConfig, Logits, positive


@dataclass(frozen=True, kw_only=True)
class Classify(HeadConfig):
    """Logits of the class of the sequence read so far, [B T V]."""

    name: ClassVar[str] = "classify"
    ahead: ClassVar[bool] = False

    classes: int
    """Number of classes V."""
    weights: tuple[float, ...] = ()
    """Of each class in training; none is 1 for all."""
    smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes (arXiv:1512.00567)."""

    def __post_init__(self) -> None:
        """Reject an empty set of classes, and weights that do not fit it."""
        positive(self, "classes")
        if self.weights and (len(self.weights) != self.classes or not min(self.weights) > 0):
            raise ValueError(
                f"classify: want {self.classes} weights above 0 or none, got {self.weights}"
            )
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"classify: want 0 <= smoothing < 1, got {self.smoothing}")

    def build(self, width: int, reals: int, table: nn.Embedding | None) -> nn.Module:
        """A linear map."""
        return Logits(width, self.classes, None)
