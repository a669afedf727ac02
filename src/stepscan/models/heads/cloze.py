"""Which item stands where it was hidden."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from stepscan.models.heads.base import HeadConfig, positive
from stepscan.models.heads.next_item import ItemLogits


@dataclass(frozen=True, kw_only=True)
class Cloze(HeadConfig):
    """Logits of the item that stands at each step, [B T V], asked where it was hidden.

    BERT4Rec (Sun et al. 2019, arXiv:1904.06690). Hidden items read as symbol 0, the item that is
    not known; what comes next is asked by one more step of it. Training: `train/cloze.py`.
    """

    name: ClassVar[str] = "cloze"
    ahead: ClassVar[bool] = False

    vocab: int
    """Number of items V, with the one that is not known."""
    bias: bool = True
    """Add a bias to the logits."""
    project: bool = False
    """Map and gelu before the logits, as published."""
    share: float = 0.2
    """Part of the items hidden while training."""
    last: float = 0.0
    """Part of the sequences where only the last item is hidden, as it will be asked for."""

    def __post_init__(self) -> None:
        """Reject an empty vocabulary and parts that are none."""
        positive(self, "vocab")
        for name in ("share", "last"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"cloze: want {name} from 0 to 1, got {getattr(self, name)}")
        if not self.share and self.last < 1:
            raise ValueError("cloze: want share above 0, or last=1; nothing would be hidden")

    @property
    def vocabulary(self) -> int:
        """All V."""
        return self.vocab

    def build(self, width: int, reals: int, table: nn.Embedding | None) -> nn.Module:
        """A linear map, or the transpose of the input embedding."""
        return ItemLogits(width, self.vocab, table, bias=self.bias, project=self.project)
