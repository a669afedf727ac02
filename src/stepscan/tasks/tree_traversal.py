"""Traversal of a binary tree, read in prefix code.

read   c a . b . . d . . =               c has the children a and d; b is right of a
ask                      a b c d         inorder: left subtree, node, right subtree
                         c a b d         preorder: node, left subtree, right subtree

The preorder copies the labels and skips the dots; the inorder wants a stack.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.names import lookup
from stepscan.tasks.rewriting import Rewriting
from stepscan.tasks.trees import Tree, codes, height, parse

ORDERS = ("inorder", "preorder")


@dataclass(frozen=True, kw_only=True)
class TreeTraversal(Rewriting):
    """Config of the tree traversal task."""

    name: ClassVar[str] = "tree_traversal"
    ability: ClassVar[str] = "structure"
    source: ClassVar[str] = "Zhang et al. 2024, arXiv:2401.12947"

    nodes: int = 8
    """Nodes of a tree."""
    labels: int = 16
    """Size of the alphabet of labels."""
    order: str = "inorder"
    """"inorder" or "preorder"."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        if min(self.nodes, self.labels) < 1:
            raise ValueError(
                "tree_traversal: want at least 1 of each, got "
                f"nodes={self.nodes} and labels={self.labels}"
            )
        lookup(dict.fromkeys(ORDERS), self.order, kind="order of tree_traversal")

    def longer(self, factor: int) -> "TreeTraversal":
        """Trees of more nodes."""
        return replace(self, nodes=self.nodes * factor)

    @property
    def tokens(self) -> int:
        """The labels, then the dot."""
        return self.labels + 1

    @property
    def expression(self) -> int:
        """Nodes and dots."""
        return 2 * self.nodes + 1

    @property
    def chance(self) -> float:
        """Any label."""
        return 1 / self.labels

    def pairs(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """A node goes on a stack, a dot ends the left subtree of the node on top."""
        node = codes(n, self.nodes, rng)
        label = torch.randint(self.labels, node.shape, generator=rng)
        code = torch.where(node, label, self.labels)
        if self.order == "preorder":
            return code, code[node].view(n, self.nodes)
        stack, depth = torch.zeros_like(code), torch.zeros(n, dtype=torch.int64)
        order, done = torch.zeros(n, self.nodes, dtype=torch.int64), torch.zeros_like(depth)
        for token, is_node in zip(code.unbind(1)[:-1], node.unbind(1)[:-1], strict=True):
            top = (depth - 1).clamp(min=0)[:, None]
            popped = stack.gather(1, top)
            kept = order.gather(1, done.clamp(max=self.nodes - 1)[:, None])
            order.scatter_(
                1,
                done.clamp(max=self.nodes - 1)[:, None],
                torch.where(is_node[:, None], kept, popped),
            )
            done = done + (~is_node).long()
            above = stack.gather(1, depth[:, None])
            stack.scatter_(1, depth[:, None], torch.where(is_node[:, None], token[:, None], above))
            depth = depth + torch.where(is_node, 1, -1)
        return code, order

    def rewrite(self, row: list[int]) -> list[int]:
        """Recursion."""
        return self._visit(parse(row, self.labels).tree)

    def _visit(self, tree: Tree | None) -> list[int]:
        if tree is None:
            return []
        left, here, right = self._visit(tree.left), [tree.label], self._visit(tree.right)
        return left + here + right if self.order == "inorder" else here + left + right

    def strata(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B"]:
        """Nodes on the longest way down."""
        return torch.tensor([height(row, self.labels) for row in input.tolist()])
