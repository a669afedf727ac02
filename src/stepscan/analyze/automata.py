"""Finite automata, and how to read one off a network whose states are few.

Extraction by counting (Wang and Niepert 2019, arXiv:1901.08817): of all transitions that the
network made on some strings, the most frequent one counts, for each state and symbol. Minimisation
by refinement of partitions (Moore 1956); equivalence by a walk through pairs of states (Hopcroft
and Karp 1971), which ends with a shortest string that only one of two automata accepts.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Automaton(NamedTuple):
    """A complete deterministic finite automaton over symbols 0, 1, ...; it starts in state 0."""

    accept: tuple[bool, ...]
    """For each state."""
    step: tuple[tuple[int, ...], ...]
    """For each state, the next one for each symbol."""

    def accepts(self, string: Sequence[int]) -> bool:
        """Whether the string is in the language."""
        return self.prefixes(string)[-1]

    def prefixes(self, string: Sequence[int]) -> list[bool]:
        """Whether each prefix is in the language, from the empty one on."""
        state, found = 0, [self.accept[0]]
        for symbol in string:
            state = self.step[state][symbol]
            found.append(self.accept[state])
        return found

    def minimal(self) -> "Automaton":
        """The smallest automaton of the same language; equal automata have equal languages."""
        reached = [0]
        for state in reached:
            reached += [s for s in dict.fromkeys(self.step[state]) if s not in reached]
        block = {state: int(self.accept[state]) for state in reached}
        while True:
            keys = {s: (block[s], *(block[n] for n in self.step[s])) for s in reached}
            names = {key: i for i, key in enumerate(dict.fromkeys(keys.values()))}
            finer = {s: names[keys[s]] for s in reached}
            if len(names) == len(set(block.values())):
                break
            block = finer
        first = {finer[s]: s for s in reversed(reached)}  # one state for each block
        order = [0]  # blocks as they are met, so that the numbering is the only one
        for number in order:
            met = (finer[n] for n in self.step[first[number]])
            order += [n for n in dict.fromkeys(met) if n not in order]
        place = {number: i for i, number in enumerate(order)}
        return Automaton(
            tuple(self.accept[first[n]] for n in order),
            tuple(tuple(place[finer[s]] for s in self.step[first[n]]) for n in order),
        )


def difference(one: Automaton, other: Automaton) -> list[int] | None:
    """A shortest string that only one of them accepts, or None if their languages are the same."""
    queue: deque[tuple[int, int, list[int]]] = deque([(0, 0, [])])
    seen = {(0, 0)}
    while queue:
        a, b, string = queue.popleft()
        if one.accept[a] != other.accept[b]:
            return string
        for symbol, pair in enumerate(zip(one.step[a], other.step[b], strict=True)):
            if pair not in seen:
                seen.add(pair)
                queue.append((*pair, [*string, symbol]))
    return None


def extract(
    symbols: Int[Tensor, "B T"],
    states: Int[Tensor, "B T+1"],
    accepted: Bool[Tensor, "B T+1"],
    *,
    alphabet: int,
) -> Automaton:
    """The automaton that a network went through, minimised.

    Args:
        symbols: What it read.
        states: Where it was, before the first symbol (0 for all rows) and after each.
        accepted: What it said there.
        alphabet: Number of symbols.
    """
    if states[:, 0].any():
        raise ValueError("extract: want 0 as the state of every row before its first symbol")
    count = int(states.max()) + 1
    made = (states[:, :-1] * alphabet + symbols) * count + states[:, 1:]
    votes = torch.bincount(made.flatten(), minlength=count * alphabet * count)
    votes = votes.view(count, alphabet, count)
    said = torch.bincount(
        (2 * states + accepted).flatten(), minlength=2 * count
    ).view(count, 2)  # fmt: skip
    accept = (said[:, 1] > said[:, 0]).tolist()
    step = torch.where(votes.sum(2) > 0, votes.argmax(2), count).tolist()
    sink = [count] * alphabet  # where no one went, nothing is accepted
    return Automaton((*accept, False), (*map(tuple, step), tuple(sink))).minimal()
