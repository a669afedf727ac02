"""A mined process model that predicts: the heuristics miner's causal net, replayed.

Mining (Weijters, van der Aalst and Alves de Medeiros 2006, "Process mining with the
HeuristicsMiner algorithm"), from how often a is directly followed by b, |a > b|:

    dependency    a => b = (|a > b| - |b > a|) / (|a > b| + |b > a| + 1)
                  a => a = |a > a| / (|a > a| + 1)
    loops of two  a =>2 b = (|a b a| + |b a b|) / (|a b a| + |b a b| + 1)
    together      a => b and c = (|b > c| + |c > b|) / (|a > b| + |a > c| + 1)

An arrow stays if its dependency, its count and its distance from the best of the same activity pass
the thresholds; every activity keeps its best arrow in and its best arrow out. Of the arrows out of
a, those that go together (AND) are all owed, of the others (XOR) one is; so for the arrows in.

Replaying: an event pays what its activity needs and owes what follows from it; what is enabled by
the debts is what may come next. How likely each of it is, the paper does not say. Here an arrow
weighs as much as the share of the times it was open in training when it was the one taken, and the
share of events that were not enabled goes to how frequent activities are overall.
"""

from collections import Counter
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from stepscan.apps.baselines.symbols import Ids, SymbolModel, overall

Debt = tuple[int, frozenset[int]]  # from whom, and to any one of whom
Marking = tuple[Debt, ...]
MOST_DEBTS = 32  # the oldest are forgotten
MOST_KNOWN = 4096  # markings whose probabilities are kept


class HeuristicsNet(SymbolModel):
    """See the module docstring. `vocab` stands for the beginning of a case."""

    name: ClassVar[str] = "mined net"
    most: ClassVar[int | None] = 40_000

    def __init__(
        self,
        *,
        dependency: float = 0.9,
        fewest: int = 10,
        beside_best: float = 0.05,
        together: float = 0.1,
    ) -> None:
        self.dependency, self.fewest = dependency, fewest
        self.beside_best, self.together = beside_best, together

    def fit(self, cases: list[Ids], vocab: int) -> None:
        """Mine the net, then replay the cases over it to weigh its arrows."""
        self.vocab, self.base = vocab, overall(cases, vocab)
        follows, twice = _follows(cases, vocab)
        self.arrows = self._mine(follows, twice)
        self.out = {a: self._groups(a, follows, forward=True) for a in range(vocab + 1)}
        self.into = {a: self._groups(a, follows, forward=False) for a in range(vocab + 1)}
        self._markings: list[Marking] = []
        self._number: dict[Marking, int] = {}
        self._moves: dict[tuple[int, int], int] = {}
        self._known: dict[int, NDArray[np.float64]] = {}
        begin = self._settled((), vocab)
        self._begin = self._numbered(begin)
        self._weigh(cases)

    def _mine(self, follows: NDArray[Any], twice: NDArray[Any]) -> NDArray[np.bool_]:
        loops = np.diag(follows)
        strength = (follows - follows.T) / (follows + follows.T + 1)
        np.fill_diagonal(strength, loops / (loops + 1))
        short = (twice + twice.T) / (twice + twice.T + 1)
        np.fill_diagonal(short, 0)
        no_loop = (strength.diagonal() < self.dependency)[:, None]
        short *= no_loop & no_loop.T  # a b a within loops of one is no loop of two
        usable = np.where(follows > 0, np.maximum(strength, short), -np.inf)
        np.fill_diagonal(usable, np.where(loops > 0, strength.diagonal(), -np.inf))
        best = np.where(np.eye(len(usable), dtype=bool), -np.inf, usable)
        kept = (usable >= self.dependency) & (follows >= self.fewest)
        near_out = usable >= best.max(1, keepdims=True) - self.beside_best
        near_in = usable >= best.max(0, keepdims=True) - self.beside_best
        kept &= near_out | near_in | np.eye(len(usable), dtype=bool)
        for a in range(len(usable)):  # all activities are connected
            if np.isfinite(best[a].max()):
                kept[
                    a,
                    np.flatnonzero(best[a] == best[a].max())[
                        follows[a, best[a] == best[a].max()].argmax()
                    ],
                ] = True
            if np.isfinite(best[:, a].max()):
                kept[best[:, a].argmax(), a] = True
        self._follows = follows
        return kept

    def _groups(self, a: int, follows: NDArray[Any], *, forward: bool) -> list[frozenset[int]]:
        """Of the arrows of a, the sets of which one each is owed."""
        ends = np.flatnonzero(self.arrows[a] if forward else self.arrows[:, a])
        ends = [int(b) for b in ends]
        count = follows[a] if forward else follows[:, a]
        groups: list[set[int]] = []
        for b in sorted(ends, key=lambda b: -count[b]):
            apart = [
                group
                for group in groups
                if all(
                    (follows[b, c] + follows[c, b]) / (count[b] + count[c] + 1) < self.together
                    for c in group
                )
            ]
            for group in apart:
                group.add(b)
            if not apart:
                groups.append({b})
        return [frozenset(group) for group in groups]

    def _paid(self, marking: Marking, b: int) -> list[int] | None:
        """The debts that b pays, one for each set of arrows into it; None if it is not enabled."""
        used: list[int] = []
        for group in self.into[b]:
            for i, (a, to) in enumerate(marking):
                if a in group and b in to and i not in used:
                    used.append(i)
                    break
            else:
                return None
        return used or None

    def _settled(self, marking: Marking, b: int) -> Marking:
        """The debts after b: what it can pay is gone, what follows from it is owed."""
        used = self._paid(marking, b)
        if used is None:  # not enabled: it pays what it finds
            used = [i for i, (a, to) in enumerate(marking) if b in to][:1]
        left = tuple(debt for i, debt in enumerate(marking) if i not in used)
        owed = tuple((b, group) for group in self.out[b])
        return (left + owed)[-MOST_DEBTS:]

    def _weigh(self, cases: list[Ids]) -> None:
        taken: Counter[tuple[int, int]] = Counter()
        open_: Counter[tuple[int, int]] = Counter()
        enabled = total = 0
        for case in cases:
            marking = self._begin
            for b in case.tolist():
                now = self._markings[marking]
                open_.update({(a, c) for a, to in now for c in to})
                used = self._paid(now, b)
                total += 1
                if used is not None:
                    enabled += 1
                    taken.update({(now[i][0], b) for i in used})
                marking = self._move(marking, b)
        self.fitness = enabled / max(total, 1)
        """The share of training events that the net allows where they come."""
        self._weight = {arrow: (taken[arrow] + 0.5) / (n + 1) for arrow, n in open_.items()}

    def _numbered(self, marking: Marking) -> int:
        if marking not in self._number:
            self._number[marking] = len(self._markings)
            self._markings.append(marking)
        return self._number[marking]

    def _move(self, number: int, b: int) -> int:
        key = (number, b)
        if key not in self._moves:
            self._moves[key] = self._numbered(self._settled(self._markings[number], b))
        return self._moves[key]

    def enabled(self, state: int) -> dict[int, float]:
        """The activities that may come next by the debts of a state, and their weights."""
        marking = self._markings[state]
        found = {}
        for b in {c for _, to in marking for c in to}:
            used = self._paid(marking, b)
            if used is not None:
                weights = [self._weight.get((marking[i][0], b), 0.5) for i in used]
                found[b] = sum(weights) / len(weights)
        return found

    def start(self, rows: int) -> NDArray[Any]:
        """What the beginning of a case owes."""
        return np.full((rows, 1), self._begin, np.int64)

    def read(self, state: NDArray[Any], symbols: Int[np.ndarray, " B"]) -> NDArray[Any]:
        """Replay one event."""
        moved = [
            self._move(q, b) for q, b in zip(state[:, 0].tolist(), symbols.tolist(), strict=True)
        ]
        return np.array(moved, np.int64).reshape(-1, 1)

    def chances(self, state: NDArray[Any]) -> Float[np.ndarray, "B V"]:
        """Of what is enabled, and a share of what is frequent."""
        found = np.empty((len(state), self.vocab))
        for row, q in enumerate(state[:, 0].tolist()):
            found[row] = self._chance(q)
        return found

    def _chance(self, q: int) -> NDArray[np.float64]:
        if q not in self._known:
            share = min(max(1 - self.fitness, 0.01), 1.0)
            chance = share * self.base
            found = self.enabled(q)
            total = sum(found.values())
            for b, weight in found.items():
                chance[b] += (1 - share) * weight / total
            chance /= chance.sum()
            if len(self._known) >= MOST_KNOWN:
                return chance
            self._known[q] = chance
        return self._known[q]

    def places(self, state: NDArray[Any]) -> Int[np.ndarray, " B"]:
        """The number of the marking."""
        return state[:, 0]


def _follows(cases: list[Ids], vocab: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """How often b directly follows a, the beginning included; how often a b a occurs."""
    size = vocab + 1
    follows, twice = np.zeros((size, size)), np.zeros((size, size))
    for case in cases:
        np.add.at(follows, (np.append(vocab, case[:-1]), case), 1)
        back = (case[:-2] == case[2:]) & (case[:-2] != case[1:-1])
        np.add.at(twice, (case[:-2][back], case[1:-1][back]), 1)
    return follows, twice
