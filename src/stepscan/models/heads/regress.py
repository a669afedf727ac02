"""Real numbers."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from stepscan.models.heads.base import HeadConfig, Logits, positive


@dataclass(frozen=True, kw_only=True)
class Regress(HeadConfig):
    """O real numbers after every step, [B T O]; what they are is up to the target."""

    name: ClassVar[str] = "regress"

    outputs: int
    """How many numbers O."""

    def __post_init__(self) -> None:
        """Reject an answer of nothing."""
        positive(self, "outputs")

    def build(self, width: int, reals: int, table: nn.Embedding | None) -> nn.Module:
        """A linear map."""
        return Logits(width, self.outputs, None)
