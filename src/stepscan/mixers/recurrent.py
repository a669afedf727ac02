"""What the mixers share that run one nonlinear cell; no mixer by itself."""

import abc
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils import _pytree as pytree

from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer
from stepscan.ops.cells import Cell, cell_scan


@runtime_checkable
class OneCell(Protocol):
    """A mixer that can hand over its cell, for another mixer to put something around it."""

    out: Any
    """The map from the hidden state to the model width, or None."""

    def cell(self) -> Any:
        """The weights, as a cell that `cell_scan` runs; its y is its hidden state."""
        ...


class Recurrent(Mixer[Any], abc.ABC):
    """y = h, or W_o h where the hidden width E is not the model's. The state is the cell's own."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.out = Linear(inner, width, bias=False) if inner != width else None

    @abc.abstractmethod
    def cell(self) -> Cell:
        """The weights, as a cell that `cell_scan` runs."""

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Any:
        """The cell's fresh state."""
        weight = next(self.parameters())
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        cell = pytree.tree_map_only(
            Tensor, lambda t: t.detach().to(device or weight.device, dtype), self.cell()
        )
        return pytree.tree_map_only(Tensor, torch.Tensor.clone, cell.init(batch))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: Any = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], Any]:
        """Mix along T."""
        h, state = cell_scan(self.cell(), x, state=state, resets=resets)
        return h if self.out is None else self.out(h), state


def inner_width(name: str, width: int, expansion: float) -> int:
    """E; raises `ValueError` where no hidden state is left."""
    inner = round(width * expansion)
    if inner < 1:
        raise ValueError(
            f"{name}: want an expansion that leaves a hidden state, got {expansion} "
            f"of width {width}"
        )
    return inner
