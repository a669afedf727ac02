"""One step of reducing an inorder traversal: the leftmost call is replaced by what it calls.

read   . a' b . c . . =                     a is done (a'), the traversal of b's tree is not
ask                     . a' . b' c . .     its left subtree (a dot), b itself, its right subtree

An expression is a row of done labels and of trees in prefix code, each the call of its traversal:
inorder(node l r) -> inorder(l) node' inorder(r). Here `steps` of a traversal have been made, any
number as often.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.tasks.guess import best_guess
from stepscan.tasks.rewriting import Rewriting
from stepscan.tasks.trees import codes, height, parse


@dataclass(frozen=True, kw_only=True)
class TreeReduction(Rewriting):
    """Config of the reduction of tree traversals."""

    name: ClassVar[str] = "tree_reduction"
    ability: ClassVar[str] = "structure"
    source: ClassVar[str] = "Zhang et al. 2024, arXiv:2401.12947"

    nodes: int = 8
    """Nodes of a tree."""
    labels: int = 8
    """Size of the alphabet of labels."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        if min(self.nodes, self.labels) < 1:
            raise ValueError(
                "tree_reduction: want at least 1 of each, got "
                f"nodes={self.nodes} and labels={self.labels}"
            )

    def longer(self, factor: int) -> "TreeReduction":
        """Trees of more nodes."""
        return replace(self, nodes=self.nodes * factor)

    @property
    def tokens(self) -> int:
        """The labels, the dot, and the labels that are done."""
        return 2 * self.labels + 1

    @property
    def expression(self) -> int:
        """Nodes and dots, at every step."""
        return 2 * self.nodes + 1

    @property
    def chance(self) -> float:
        """The likeliest token at each place, counted; above all the dot."""
        return best_guess(self)

    def pairs(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Every row makes its own number of steps, and one more."""
        node = codes(n, self.nodes, rng)
        label = torch.randint(self.labels, node.shape, generator=rng)
        now = torch.where(node, label, self.labels)
        steps = torch.randint(self.nodes, (n,), generator=rng)
        before = now
        for step in range(self.nodes):
            left = (steps - step)[:, None]
            before = torch.where(left == 0, now, before)
            now = torch.where(left >= 0, self._step(now), now)
        return before, now

    def _step(self, row: Int[Tensor, "n E"]) -> Int[Tensor, "n E"]:
        """The leftmost label that is not done moves behind its left subtree."""
        place = torch.arange(row.shape[1])
        start = (row < self.labels).long().argmax(1, keepdim=True)
        height = torch.where(row < self.labels, 1, -1) * (place > start)
        last = ((height.cumsum(1) < 0) & (place > start)).long().argmax(1, keepdim=True)
        inside = (place >= start) & (place < last)
        shifted = row.gather(1, torch.where(inside, place + 1, place))
        done = row.gather(1, start) + self.labels + 1
        return torch.where(place == last, done, shifted)

    def rewrite(self, row: list[int]) -> list[int]:
        """Read up to the first tree; take it apart."""
        at = next(i for i, token in enumerate(row) if token < self.labels)
        left = parse(row, self.labels, at + 1).end
        return row[:at] + row[at + 1 : left] + [row[at] + self.labels + 1] + row[left:]

    def strata(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B"]:
        """Nodes on the longest way down the left subtree that the label has to cross."""
        found = []
        for row in input.tolist():
            at = next(i for i, token in enumerate(row) if token < self.labels)
            found.append(height(row[at + 1 :], self.labels))
        return torch.tensor(found)
