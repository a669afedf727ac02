"""Random binary trees, for the tasks about them; no task by itself.

A tree is written in prefix code: a node's label, its left subtree, its right subtree, and `.` where
there is none. The codes of trees of n nodes are the rows of n labels and n + 1 dots of which no
proper start has more dots than labels. Of the rotations of any row exactly one is such a code (the
cycle lemma: Dvoretzky and Motzkin 1947), so that every shape is as likely.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor


def codes(n: int, nodes: int, rng: torch.Generator) -> Bool[Tensor, "n E"]:
    """Uniformly random shapes: where their prefix codes have a node."""
    size = 2 * nodes + 1
    node = torch.rand(n, size, generator=rng).argsort(1) < nodes
    height = torch.where(node, 1, -1).cumsum(1)
    lowest = height.argmin(1, keepdim=True)  # argmin is free to take any of the lowest
    lowest = (height == height.gather(1, lowest)).long().argmax(1, keepdim=True)
    return node.gather(1, (lowest + 1 + torch.arange(size)) % size)


@dataclass(frozen=True)
class Tree:
    """A node of a tree that is read."""

    label: int
    left: "Tree | None"
    right: "Tree | None"

    def height(self) -> int:
        """Nodes on the longest way down."""
        below = (child.height() for child in (self.left, self.right) if child is not None)
        return 1 + max(below, default=0)


class Read(NamedTuple):
    """A tree, and where its code ends."""

    tree: Tree | None
    end: int


def parse(code: list[int], dot: int, start: int = 0) -> Read:
    """The tree whose prefix code starts here."""
    if code[start] == dot:
        return Read(None, start + 1)
    left = parse(code, dot, start + 1)
    right = parse(code, dot, left.end)
    return Read(Tree(code[start], left.tree, right.tree), right.end)


def height(row: list[int], dot: int) -> int:
    """Of the tree that a row starts with."""
    tree = parse(row, dot).tree
    return 0 if tree is None else tree.height()
