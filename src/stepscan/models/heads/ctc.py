"""Which text a sequence spells."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from stepscan.models.heads.base import HeadConfig, Logits, positive


@dataclass(frozen=True, kw_only=True)
class Ctc(HeadConfig):
    """Logits of a blank and of the symbols of a text that the sequence spells, [B T V+1].

    Connectionist temporal classification (Graves et al. 2006); `generate.ctc` reads the text.
    """

    name: ClassVar[str] = "ctc"
    ahead: ClassVar[bool] = False

    symbols: int
    """Number of symbols V; 0 is the blank, symbol i is 1 to V."""

    def __post_init__(self) -> None:
        """Reject an empty alphabet."""
        positive(self, "symbols")

    def build(self, width: int, reals: int, table: nn.Embedding | None) -> nn.Module:
        """A linear map."""
        return Logits(width, self.symbols + 1, None)
