"""Tokens as the nodes of a grid, row after row, for mixers that see two dimensions.

A grid has `columns` columns and `rows` rows; without `rows` each stretch is one grid, of as many
rows as it fills. A stretch holds whole grids, and each is a sequence of its own: nothing comes into
it and nothing goes on from it, so that a reset can only say what is so anyway.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def check_grid(name: str, rows: int | None, columns: int | None) -> None:
    """Reject a grid that no mixer can have."""
    if rows is not None and columns is None:
        raise ValueError(f"{name}: want columns where rows are given, got rows={rows} alone")
    if min(1 if rows is None else rows, 1 if columns is None else columns) < 1:
        raise ValueError(f"{name}: want at least 1 row and column, got {rows} and {columns}")


def as_grid(
    x: Float[Tensor, "B T *rest"], rows: int | None, columns: int
) -> Float[Tensor, "N R C *rest"]:
    """The grids of a stretch, one after another."""
    T = x.shape[1]
    rows = max(1, T // columns) if rows is None else rows
    if T % (rows * columns):
        raise ValueError(
            f"want whole grids of {rows} x {columns} tokens, got {T} tokens; pad the stretch, or "
            "change the mixer's rows and columns"
        )
    return x.unflatten(1, (T // (rows * columns), rows, columns)).flatten(0, 1)


def from_grid(x: Float[Tensor, "N R C *rest"], batch: int) -> Float[Tensor, "B T *rest"]:
    """The inverse of `as_grid`."""
    return x.unflatten(0, (batch, len(x) // max(batch, 1))).flatten(1, 3)


class GridConv(nn.Module):
    """A depthwise window of `window` x `window` nodes around each, an odd number; zeros outside.

    Initial values as those of a depthwise `nn.Conv2d`, uniform in +-1/window.
    """

    def __init__(self, width: int, window: int, *, bias: bool = True) -> None:
        if window < 1 or window % 2 == 0:
            raise ValueError(f"GridConv: want an odd window, got {window}; add or take away 1")
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, window, window))
        self.bias = nn.Parameter(torch.empty(width)) if bias else None
        for p in self.parameters():
            nn.init.uniform_(p, -1 / window, 1 / window)

    def forward(self, x: Float[Tensor, "N R C D"]) -> Float[Tensor, "N R C D"]:
        """Convolve in the plane."""
        width, window, _ = self.weight.shape
        y = F.conv2d(
            x.movedim(3, 1), self.weight[:, None], self.bias, padding=window // 2, groups=width
        )
        return y.movedim(1, 3)
