"""Arrow pointing, after the task of pLSTM's paper: does the arrow point at the ring?

One arrow and one ring in a square image, as far apart as they fell. Positive: the arrow points at
the ring's centre. Negative: it points 60 degrees away or more. The image is cut into patches of
8 x 8 pixels, row after row; arrow and ring are as large as a patch, each near the middle of one, so
that to find them is easy. In a larger image only the field between them grows.
"""

import math

import torch
from torch import Tensor

PATCH = 8


def draw(count: int, side: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Patches [count, (side / 8)^2, 64] and labels, of images of `side` x `side` pixels."""
    uniform = lambda *shape: torch.rand(*shape, generator=rng)  # noqa: E731
    cells = side // PATCH
    first = torch.randint(cells**2, (count,), generator=rng)
    second = (first + torch.randint(1, cells**2, (count,), generator=rng)) % cells**2
    place = lambda cell: torch.stack([cell // cells, cell % cells], 1) * PATCH + 3.5  # noqa: E731
    arrow, ring = (place(cell) + 2 * uniform(count, 2) - 1 for cell in (first, second))
    label = uniform(count) < 0.5
    towards = torch.atan2(*(ring - arrow).unbind(1))
    off = math.pi / 3 + uniform(count) * (4 * math.pi / 3)
    angle = torch.where(label, towards, towards + off)[:, None, None]
    axis = torch.arange(side).float()
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)  # [side side 2]
    row, column = (pixels - arrow[:, None, None]).unbind(-1)
    along, across = (
        row * angle.sin() + column * angle.cos(),
        row * angle.cos() - column * angle.sin(),
    )
    width = (1.8 - 0.6 * along).clamp(min=0)  # a wedge: wide at its end, a point at its tip
    wedge = (along.abs() < 3) * (width + 0.5 - across.abs()).clamp(0, 1)
    circle = (1 - ((pixels - ring[:, None, None]).norm(dim=-1) - 2.5).abs()).clamp(min=0)
    image = (wedge - circle).float() + 0.05 * torch.randn(count, side, side, generator=rng)
    patches = image.unflatten(2, (cells, PATCH)).unflatten(1, (cells, PATCH)).transpose(2, 3)
    return patches.flatten(3).flatten(1, 2), label.long()
