"""The next item, with what UniRec learns beside it: `train/enhance.py` says how and from where."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from stepscan.layers.projection import Linear
from stepscan.models.heads.next_item import ItemLogits, NextItem


@dataclass(frozen=True, kw_only=True)
class EnhancedItem(NextItem):
    """Logits of the next item, [B T V], as `NextItem`; training has two more branches."""

    name: ClassVar[str] = "enhanced_item"

    sequence: float = 0.2
    """Weight of the sequence branch."""
    item: float = 0.3
    """Weight of the item branch, of items of the head."""
    tail: float = 0.1
    """Weight of the item branch, of the others."""
    even: float = 0.5
    """Share of the users, those of the most even intervals, whose sequences teach."""
    frequent: float = 0.3
    """Share of the items that are of the head."""
    neighbours: int = 3
    """Neighbours of an item that are drawn for a step."""
    ramp: int = 500
    """Steps until what is hard counts in full."""

    def __post_init__(self) -> None:
        """Reject weights and shares that are none."""
        super().__post_init__()
        for name in ("sequence", "item", "tail"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"enhanced_item: want {name} >= 0, got {getattr(self, name)}")
        for name in ("even", "frequent"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"enhanced_item: want {name} from 0 to 1, got {getattr(self, name)}"
                )
        for name in ("neighbours", "ramp"):
            if getattr(self, name) < 1:
                raise ValueError(f"enhanced_item: want {name} >= 1, got {getattr(self, name)}")

    def build(self, width: int, reals: int, table: nn.Embedding | None) -> nn.Module:
        """A linear map, or the transpose of the input embedding; and the two generators."""
        return EnhancedLogits(width, self, table)


class EnhancedLogits(ItemLogits):
    """`ItemLogits` with the maps that only training uses."""

    steps: Tensor

    def __init__(self, width: int, config: EnhancedItem, table: nn.Embedding | None) -> None:
        super().__init__(width, config.vocab, table, bias=config.bias)
        self.restore = Linear(width, width, bias=False)
        """From what is said after a thinned sequence to what is said after the whole one."""
        self.gather = Linear(2 * width, width)
        """From an item and the mean of its neighbours to the item."""
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        """Steps trained."""
