"""Pathfinder as in Long Range Arena (arXiv:2011.04006), small: is the marked curve whole?

    read, row by row      . . # # .      two curves from left to right that never touch; both ends
                          O # . . #      of one of them are marked (O), and one of the two has a
                          . . . . .      hole, the marked one or the other
                          # # . # #
                          . . # . .
    ask                           y      at the end: whether the marked curve is whole

So neither the number of pixels nor that there is a hole says anything: the curve has to be traced.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.tasks.base import Batch, Task

EMPTY, CURVE, END = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class PathfinderLite(Task):
    """Config of the small Pathfinder."""

    name: ClassVar[str] = "pathfinder_lite"
    ability: ClassVar[str] = "long range"
    source: ClassVar[str] = "Linsley et al. 2018, arXiv:1805.08315; Tay et al. 2020 (made smaller)"

    height: int = 8
    """Rows of the image."""
    width: int = 12
    """Columns; a longer image is a wider one."""

    def __post_init__(self) -> None:
        """Reject images without room for two curves and a hole."""
        if self.height < 3 or self.width < 3:
            raise ValueError(
                f"pathfinder_lite: want height and width >= 3, got {self.height}, {self.width}"
            )

    def longer(self, factor: int) -> "PathfinderLite":
        """A wider image."""
        return replace(self, width=self.width * factor)

    @property
    def vocab(self) -> int:
        """Empty, curve, marked end."""
        return 3

    @property
    def answers(self) -> int:
        """No and yes."""
        return 2

    @property
    def chance(self) -> float:
        """A coin."""
        return 0.5

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples."""
        rows = self.height
        top = torch.randint(rows - 2, (n,), generator=rng)
        below = top + 2 + (torch.rand(n, generator=rng) * (rows - 2 - top)).long()
        columns = [torch.stack([top, below], 1)]
        moves = torch.randint(-1, 2, (self.width - 1, n, 2), generator=rng)
        for move in moves:
            (one, two), (next_one, next_two) = columns[-1].T, (columns[-1] + move).T
            near = torch.maximum(one, next_one) + 2 > torch.minimum(two, next_two)
            inside = (next_one >= 0) & (next_two < rows)
            columns.append(columns[-1] + move * (inside & ~near)[:, None])
        place = torch.stack(columns, 2)  # [n 2 width]: the row of each curve in each column
        marked, whole = torch.randint(2, (2, n, 1), generator=rng)
        color = torch.full_like(place, CURVE)
        ends = torch.tensor([0, self.width - 1])
        row = torch.arange(n)[:, None]
        color[row, marked, ends] = END
        hole = torch.randint(1, self.width - 1, (n, 1), generator=rng)
        color[row, torch.where(whole == 1, 1 - marked, marked), hole] = EMPTY
        image = torch.zeros(n, rows, self.width, dtype=torch.long)
        image.scatter_(1, place, color)
        input = image.flatten(1)
        target, asked = torch.zeros_like(input), torch.zeros_like(input, dtype=torch.bool)
        target[:, -1] = whole[:, 0]
        asked[:, -1] = True
        return Batch(input, target, asked)

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """Spread from one marked end to neighbours, also diagonal ones, and look for the other."""
        answer = torch.zeros_like(input)
        for pixels, out in zip(input.tolist(), answer, strict=True):
            drawn = {divmod(i, self.width): p for i, p in enumerate(pixels) if p != EMPTY}
            start, *others = (spot for spot, p in drawn.items() if p == END)
            reached, front = {start}, [start]
            while front:
                y, x = front.pop()
                near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
                fresh = (near & drawn.keys()) - reached
                reached |= fresh
                front += fresh
            out[-1] = int(reached.issuperset(others))
        return answer
