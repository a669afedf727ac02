"""What comes next, of tokens."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from stepscan.models.heads.base import HeadConfig, Logits, positive


@dataclass(frozen=True, kw_only=True)
class NextToken(HeadConfig):
    """Logits of the next token, [B T V]; also of the next item."""

    name: ClassVar[str] = "next_token"

    vocab: int
    """Number of tokens V."""
    bias: bool = True
    """Add a bias to the logits."""
    soft_cap: float | None = None
    """Keep logits y within this bound c, by c tanh(y / c) (as in Gemma 2, arXiv:2408.00118)."""

    def __post_init__(self) -> None:
        """Reject an empty vocabulary."""
        positive(self, "vocab")
        if self.soft_cap is not None and not self.soft_cap > 0:
            raise ValueError(f"head: want soft_cap above 0 or None, got {self.soft_cap}")

    @property
    def vocabulary(self) -> int:
        """All V."""
        return self.vocab

    def build(self, width: int, reals: int, table: nn.Embedding | None) -> nn.Module:
        """A linear map, or the transpose of the input embedding."""
        return Logits(width, self.vocab, table, bias=self.bias, soft_cap=self.soft_cap)
