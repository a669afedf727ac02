"""What comes next, of many items: the loss may need few of the logits."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.projection import Linear
from stepscan.models.heads.base import HeadConfig, Logits, positive
from stepscan.models.inputs import Inputs
from stepscan.names import lookup


@dataclass(frozen=True, kw_only=True)
class NextItem(HeadConfig):
    """Logits of the next item, [B T V]; while training what they are made of, see `ItemScores`."""

    name: ClassVar[str] = "next_item"
    asks: ClassVar[tuple[str, ...]] = ("softmax", "binary", "sampled")

    vocab: int
    """Number of items V, with the one that is not known."""
    bias: bool = True
    """Add a bias to the logits."""
    loss: str = "softmax"
    """What training descends, see `train/item_loss.py`: softmax, binary or sampled."""
    negatives: int = 1
    """Items drawn beside each wanted one, for binary and sampled."""

    def __post_init__(self) -> None:
        """Reject an empty vocabulary and a loss that is none."""
        positive(self, "vocab", "negatives")
        lookup(dict.fromkeys(self.asks), self.loss, kind="loss of next_item")

    @property
    def vocabulary(self) -> int:
        """All V."""
        return self.vocab

    def build(self, width: int, reals: int, table: nn.Embedding | None) -> nn.Module:
        """A linear map, or the transpose of the input embedding."""
        return ItemLogits(width, self.vocab, table, bias=self.bias)


class ItemScores(NamedTuple):
    """Logits before they are worked out, x W^T + b: a loss may need few of them."""

    x: Float[Tensor, "B T D"]
    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, "V"] | None


class ItemLogits(Logits):
    """`Logits` that leave the product to the loss while training."""

    def __init__(
        self,
        width: int,
        vocab: int,
        table: nn.Embedding | None,
        *,
        bias: bool = True,
        project: bool = False,
    ) -> None:
        super().__init__(width, vocab, table, bias=bias)
        self.project = Linear(width, width) if project else None

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "B T D"], inputs: Inputs
    ) -> Float[Tensor, "B T V"] | ItemScores:
        """Logits, or what they are made of."""
        if self.project is not None:
            x = F.gelu(self.project(x))
        if self.training:
            return ItemScores(x, self.map.weight, self.map.bias)
        return self.map(x)
