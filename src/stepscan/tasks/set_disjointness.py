"""Set disjointness: do two sets share an element?

read   a d e f c b | g d ?      a large and a small set, in either order
ask    . . . . . . . . . 0      1 if they share none

With the large set first a memory must keep all of it; with the small one first, only that.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.tasks.base import Batch, Task


@dataclass(frozen=True, kw_only=True)
class SetDisjointness(Task):
    """Config of the set disjointness task."""

    name: ClassVar[str] = "set_disjointness"
    ability: ClassVar[str] = "sets"
    source: ClassVar[str] = "Arora et al. 2024, arXiv:2407.05483"

    large: int = 16
    """Elements of the one set."""
    small: int = 4
    """Elements of the other."""
    first: str = "large"
    """The set that comes first: large or small."""
    elements: int = 320
    """Size of the alphabet; the bar and the question come after it."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        if min(self.large, self.small) < 1 or self.large + self.small > self.elements:
            raise ValueError(
                "set_disjointness: want sets of at least 1, together at most `elements`, got "
                f"large={self.large}, small={self.small}, elements={self.elements}"
            )
        if self.first not in ("large", "small"):
            raise ValueError(f"set_disjointness: want first large or small, got {self.first!r}")

    def longer(self, factor: int) -> "SetDisjointness":
        """Larger sets; a larger alphabet only where it is too small."""
        large, small = self.large * factor, self.small * factor
        elements = max(self.elements, large + small)
        return replace(self, large=large, small=small, elements=elements)

    @property
    def vocab(self) -> int:
        """The elements, the bar and the question."""
        return self.elements + 2

    @property
    def answers(self) -> int:
        """No and yes."""
        return 2

    @property
    def chance(self) -> float:
        """Half of the examples are disjoint."""
        return 0.5

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples; sets that meet share one element."""
        some = torch.rand(n, self.elements, generator=rng).argsort(1)
        large, small = some[:, : self.large], some[:, self.large : self.large + self.small]
        apart = torch.randint(2, (n, 1), generator=rng)
        place = torch.randint(self.small, (n, 1), generator=rng)
        shared = large.gather(1, torch.randint(self.large, (n, 1), generator=rng))
        small = small.scatter(1, place, torch.where(apart == 1, small.gather(1, place), shared))
        bar = torch.full((n, 1), self.elements)
        both = [large, bar, small] if self.first == "large" else [small, bar, large]
        input = torch.cat([*both, bar + 1], 1)
        asked = torch.zeros_like(input, dtype=torch.bool)
        asked[:, -1] = True
        return Batch(input, apart.expand_as(input) * asked, asked)

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """Intersect the sets."""
        answer = torch.zeros_like(input)
        for row, out in zip(input.tolist(), answer, strict=True):
            if row[-1] == self.elements + 1:
                bar = row.index(self.elements)
                out[-1] = set(row[:bar]).isdisjoint(row[bar + 1 : -1])
        return answer
