"""Well-nested brackets of k types, never deeper than m: Dyck-(k, m).

read   ( [ ] ( ( ) [      k = 2, m = 3
ask    ) ] ) ) ) ) ]      closing: the bracket that may close here, "none" at depth 0
       1 2 1 2 3 2 3      depth
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.names import lookup
from stepscan.tasks.base import Batch, Task
from stepscan.tasks.guess import best_guess

ASKS = ("closing", "depth")


@dataclass(frozen=True, kw_only=True)
class Dyck(Task):
    """Config of the bounded Dyck task."""

    name: ClassVar[str] = "dyck"
    ability: ClassVar[str] = "structure"
    source: ClassVar[str] = "Hewitt et al. 2020, arXiv:2010.07515"

    types: int = 4
    """Types of brackets k."""
    depth: int = 6
    """Most brackets m that are open at a time."""
    length: int = 64
    """Brackets per example; it ends anywhere in a string of the language."""
    ask: str = "closing"
    """"closing": which bracket may close next; "depth": how many are open."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        if min(self.types, self.depth, self.length) < 1:
            raise ValueError(
                "dyck: want at least 1 of each, got "
                f"types={self.types}, depth={self.depth}, length={self.length}"
            )
        lookup(dict.fromkeys(ASKS), self.ask, kind="ask of dyck")

    @property
    def vocab(self) -> int:
        """The opening brackets, then the closing ones in the same order."""
        return 2 * self.types

    @property
    def answers(self) -> int:
        """The types and "none", or the depths."""
        return self.types + 1 if self.ask == "closing" else self.depth + 1

    @property
    def chance(self) -> float:
        """The likeliest answer at each place, counted."""
        return best_guess(self)

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Opens and closes with even odds where both are possible."""
        opens = torch.rand(self.length, n, generator=rng) < 0.5
        fresh = torch.randint(self.types, (self.length, n), generator=rng)
        stack = torch.full((n, self.depth + 1), self.types)  # at the bottom is "none"
        depth, tokens, asks = torch.zeros(n, dtype=torch.int64), [], []
        for may_open, kind in zip(opens, fresh, strict=True):
            opening = (may_open | (depth == 0)) & (depth < self.depth)
            top = stack.gather(1, depth[:, None])[:, 0]
            tokens.append(torch.where(opening, kind, top + self.types))
            depth = depth + torch.where(opening, 1, -1)
            top = stack.gather(1, depth[:, None])[:, 0]
            top = torch.where(opening, kind, top)
            stack.scatter_(1, depth[:, None], top[:, None])
            asks.append(top if self.ask == "closing" else depth)
        input = torch.stack(tokens, 1)
        return Batch(input, torch.stack(asks, 1), torch.ones_like(input, dtype=torch.bool))

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """A list of what is open."""
        answer = torch.zeros_like(input)
        for row, out in zip(input.tolist(), answer, strict=True):
            still_open: list[int] = []
            for t, token in enumerate(row):
                if token < self.types:
                    still_open.append(token)
                else:
                    still_open.pop()
                innermost = still_open[-1] if still_open else self.types
                out[t] = innermost if self.ask == "closing" else len(still_open)
        return answer
