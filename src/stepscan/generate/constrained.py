"""Beams that can only spell what exists: items by their codes, words of a lexicon.

A `Trie` holds the allowed sequences, all of one length M over C symbols. At each level the logits
of what no sequence continues with are left out *before* the softmax, so the probabilities of all
sequences of the trie sum to one, and a beam as wide as the trie is the exact ranking of it.
Source: generative retrieval with constrained beams (De Cao et al. 2021, arXiv:2010.00904; TIGER,
Rajput et al. 2023, arXiv:2305.05065).
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan import state as states

S = TypeVar("S")
Step = Callable[[Int[Tensor, " R"] | None, S], tuple[Float[Tensor, "R C"], S]]
"""`(symbols, state) -> (logits, state)`: the symbols said last by each row, None at the start."""


class Trie:
    """Sequences [V M] of symbols below C; several may be the same and share an end."""

    def __init__(self, codes: Int[Tensor, "V M"], symbols: int) -> None:
        if codes.ndim != 2 or not codes.numel():
            raise ValueError(f"trie: want codes [V M], some of them, got {tuple(codes.shape)}")
        if int(codes.min()) < 0 or int(codes.max()) >= symbols:
            raise ValueError(
                f"trie: want symbols from 0 to {symbols - 1}, got {int(codes.min())} to "
                f"{int(codes.max())}"
            )
        self.depth, self.symbols = codes.shape[1], symbols
        # A node is the number of a prefix; prefixes of one length are numbered among themselves.
        self.children: list[Int[Tensor, "nodes C"]] = []
        node = torch.zeros(len(codes), dtype=torch.long)
        for level in range(self.depth):
            edge, place = (node * symbols + codes[:, level]).unique(return_inverse=True)
            children = torch.full((int(node.max()) + 1, symbols), -1)
            children.view(-1)[edge] = torch.arange(len(edge))
            self.children.append(children)
            node = place
        self.leaf: Int[Tensor, " V"] = node
        """The end of each sequence."""

    @property
    def leaves(self) -> int:
        """The number of different sequences."""
        return int(self.leaf.max()) + 1


class Beams(NamedTuple):
    """The likeliest sequences, best first; leaf -1 and score -inf where there are not so many."""

    leaves: Int[Tensor, "B W"]
    scores: Float[Tensor, "B W"]
    """Logarithms of probabilities."""


@torch.no_grad()
def trie_beams(step: Step[S], state: S, trie: Trie, *, batch: int, width: int) -> Beams:
    """Search along the trie.

    Args:
        step: What says the next symbols; called once a level with batch x (beams) rows.
        state: To begin with, of `batch` rows; batch first in every tensor.
        trie: What may be said.
        batch: Rows B.
        width: Beams of each.
    """
    if width < 1:
        raise ValueError(f"beams: want width >= 1, got {width}")
    node = torch.zeros(batch, 1, dtype=torch.long)
    score = torch.zeros(batch, 1)
    symbols: Tensor | None = None
    for children in trie.children:
        logits, state = step(symbols, state)
        beams = node.shape[1]
        into = children.to(logits.device)[node.clamp(min=0)]  # [B W C]
        allowed = (into >= 0) & (node >= 0)[..., None]
        logits = logits.view(batch, beams, -1).masked_fill(~allowed, -torch.inf)
        chance = (logits - logits.logsumexp(-1, keepdim=True)).masked_fill(~allowed, -torch.inf)
        total = (score[..., None] + chance).flatten(1)
        best = total.topk(min(width, total.shape[1]))
        score, at = best.values, best.indices
        node = into.flatten(1).gather(1, at).masked_fill(score == -torch.inf, -1)
        symbols = (at % trie.symbols).flatten()
        rows = (torch.arange(batch)[:, None] * beams + at // trie.symbols).flatten()
        state = states.select(state, rows)
    return Beams(node, score)


def spelled(trie: Trie, beams: Beams, order: Float[Tensor, " V"]) -> list[list[int]]:
    """The items that end at the leaves found, likeliest leaf first, within one leaf by `order`."""
    members: list[list[int]] = [[] for _ in range(trie.leaves)]
    for item in order.argsort(descending=True, stable=True).tolist():
        members[int(trie.leaf[item])].append(item)
    return [
        [item for leaf in row if leaf >= 0 for item in members[leaf]]
        for row in beams.leaves.tolist()
    ]
