"""The symbols of a piecewise-linear system: which region it is in, and where it goes from there.

A piecewise-linear RNN is linear in each region of its state space; the regions are its symbols
(Brenner et al. 2024, arXiv:2410.14240). Orbits become words, and which symbol follows which is a
graph, small enough to be looked at.

    topological entropy   log of the largest eigenvalue of the graph: the growth rate of the number
                          of words. It is that of the system where the regions are a Markov
                          partition, else an upper bound for what the orbits have shown.
    entropy rate          how much the next symbol is unknown once the last ones are known
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class SymbolGraph(NamedTuple):
    """Symbols in the order of how often they occur, and what follows them."""

    patterns: Bool[Tensor, "S P"]
    """Which units are open in each."""
    visits: Int[Tensor, " S"]
    """How often each was there."""
    moves: Int[Tensor, "S S"]
    """How often column followed row."""

    def topological_entropy(self) -> float:
        """In nats a step."""
        return topological_entropy(self.moves > 0)

    def entropy_rate(self) -> float:
        """Of the next symbol given the last one, in nats: at most the topological entropy."""
        flow = self.moves.double()
        chance = flow / flow.sum(1, keepdim=True).clamp_min(1)
        weight = flow.sum(1) / flow.sum()
        surprise = -torch.special.xlogy(chance, chance).sum(1)
        return (weight * surprise).sum().item()


def symbols(cell: Any, z: Float[Tensor, "B T E"]) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "S P"]]:
    """The symbol of each state, 0 the most frequent one, and the pattern of each symbol."""
    opened = cell.regions(z).flatten(0, 1)
    opened = torch.cat([opened.new_ones(len(opened), 1), opened], 1)  # unique wants a column
    patterns, number, count = torch.unique(opened, dim=0, return_inverse=True, return_counts=True)
    order = count.argsort(descending=True, stable=True)
    return order.argsort()[number].view(z.shape[:2]), patterns[order, 1:]


def symbol_graph(cell: Any, z: Float[Tensor, "B T E"]) -> SymbolGraph:
    """The graph of what these orbits have shown.

    Args:
        cell: One with `regions(z)`, such as those of `al_rnn` and `plrnn`.
        z: Orbits of its hidden state, without what they went through to get there.
    """
    word, patterns = symbols(cell, z)
    size = len(patterns)
    pair = (word[:, :-1] * size + word[:, 1:]).flatten()
    moves = torch.bincount(pair, minlength=size * size).view(size, size)
    return SymbolGraph(patterns, torch.bincount(word.flatten(), minlength=size), moves)


def topological_entropy(follows: Bool[Tensor, "S S"]) -> float:
    """Of a graph: log of the largest modulus of an eigenvalue; 0 for none above 1."""
    largest = torch.linalg.eigvals(follows.double()).abs().max().item()
    return max(0.0, torch.tensor(largest, dtype=torch.float64).log().item())
