"""What every head is, and the map to logits that most of them share."""

import abc
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepscan.layers.projection import Linear
from stepscan.models.inputs import Inputs


@dataclass(frozen=True, kw_only=True)
class HeadConfig(abc.ABC):
    """Base of all heads."""

    name: ClassVar[str]
    ahead: ClassVar[bool] = True
    """Whether it says what comes next, which a model that reads both ways has seen."""

    @abc.abstractmethod
    def build(self, width: int, reals: int, table: nn.Embedding | None) -> nn.Module:
        """The module from ([B T D], inputs) to outputs.

        Args:
            width: Model width D.
            reals: Number of real input columns.
            table: The input embedding to tie to, if any.
        """

    @property
    def vocabulary(self) -> int:
        """Number of classes that share their ids with the first categorical input; 0 for none."""
        return 0


class Logits(nn.Module):
    """A linear map; with a table, its transpose and a bias."""

    def __init__(
        self,
        width: int,
        vocab: int,
        table: nn.Embedding | None,
        *,
        bias: bool = True,
        soft_cap: float | None = None,
    ) -> None:
        super().__init__()
        self.soft_cap = soft_cap
        self.map = Linear(width, vocab, bias=bias)
        nn.init.normal_(self.map.weight, std=width**-0.5)
        if bias:
            nn.init.zeros_(self.map.bias)
        if table is not None:
            self.map.weight = table.weight

    def forward(self, x: Float[Tensor, "B T D"], inputs: Inputs) -> Float[Tensor, "B T V"]:
        """Logits."""
        y = self.map(x)
        return y if self.soft_cap is None else self.soft_cap * torch.tanh(y / self.soft_cap)


def positive(config: object, *names: str) -> None:
    """Raise `ValueError` where one of these fields is not a whole number above 0."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"head: want {name} >= 1, got {value!r}")
