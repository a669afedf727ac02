"""ALERGIA: a probabilistic deterministic finite automaton from strings, by merging states.

Carrasco and Oncina 1994, "Learning stochastic regular grammars by means of a state merging method";
de la Higuera 2010, "Grammatical Inference", chapter 16, for the order of merges. The strings make a
prefix tree with counts. States are red (kept), blue (a step after a red one) or not yet looked at;
the first blue one is merged with the first red one that it is compatible with, else it turns red.
Two states are compatible if Hoeffding's bound at level alpha cannot tell their frequencies apart,
for every symbol, and if the same holds after every symbol, all the way down:

    |f1 / n1 - f2 / n2| < sqrt(ln(2 / alpha) / 2) (1 / sqrt(n1) + 1 / sqrt(n2))

The end of a string is a symbol here, if the strings have one.
"""

import math
from collections import deque
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from stepscan.apps.baselines.symbols import Ids, SymbolModel, overall


class Alergia(SymbolModel):
    """See the module docstring. After `fit`, state 0 begins; `step[q]` and `counts[q]` by symbol.

    A string that leaves the automaton goes on in the state that its last symbol led to most often.
    """

    name: ClassVar[str] = "ALERGIA"
    most: ClassVar[int | None] = 100_000

    def __init__(self, alpha: float = 1e-3) -> None:
        if not 0 < alpha < 2:
            raise ValueError(f"ALERGIA: want alpha between 0 and 2, got {alpha}")
        self.bound = math.sqrt(math.log(2 / alpha) / 2)

    def fit(self, cases: list[Ids], vocab: int) -> None:
        """Merge the prefix tree."""
        tree = _Tree(cases)
        red, blue = [0], deque(tree.step[0].values())
        inside = {0}
        while blue:
            q = blue.popleft()
            for r in red:
                if self._compatible(tree, r, q):
                    blue += [n for above, n in tree.merge(r, q) if above in inside]
                    break
            else:
                red.append(q)
                inside.add(q)
                blue += tree.step[q].values()
        number = {r: i for i, r in enumerate(red)}
        self.step = [{s: number[n] for s, n in tree.step[r].items()} for r in red]
        self.counts = [dict(tree.counts[r]) for r in red]
        self._tables(cases, vocab)

    def _compatible(self, tree: "_Tree", a: int, b: int) -> bool:
        pairs = [(a, b)]
        while pairs:
            a, b = pairs.pop()
            n1, n2 = tree.totals[a], tree.totals[b]
            if not n1 or not n2:
                continue  # nothing is known that could tell them apart
            most = self.bound * (n1**-0.5 + n2**-0.5)
            one, two = tree.counts[a], tree.counts[b]
            for s in one.keys() | two.keys():
                if abs(one.get(s, 0) / n1 - two.get(s, 0) / n2) > most:
                    return False
            pairs += [(tree.step[a][s], n) for s, n in tree.step[b].items() if s in tree.step[a]]
        return True

    def _tables(self, cases: list[Ids], vocab: int) -> None:
        base = overall(cases, vocab)
        kinds = [max(len(counts), 1) for counts in self.counts]  # as Witten and Bell (1991) mix
        self._chances = np.array(kinds)[:, None] * base
        self._next = np.full((len(self.step), vocab), -1, np.int64)
        led = np.zeros((vocab, len(self.step)))
        for q, counts in enumerate(self.counts):
            for s, n in counts.items():
                self._chances[q, s] += n
                self._next[q, s] = self.step[q][s]
                led[s, self.step[q][s]] += n
        self._chances /= self._chances.sum(1, keepdims=True)
        home = led.argmax(1)  # state 0 for a symbol never seen
        self._next = np.where(self._next >= 0, self._next, home)

    def start(self, rows: int) -> NDArray[Any]:
        """State 0."""
        return np.zeros((rows, 1), np.int64)

    def read(self, state: NDArray[Any], symbols: Int[np.ndarray, " B"]) -> NDArray[Any]:
        """One arrow."""
        return self._next[state[:, 0], symbols][:, None]

    def chances(self, state: NDArray[Any]) -> Float[np.ndarray, "B V"]:
        """The frequencies in the state; the rarer it was, the more of those overall."""
        return self._chances[state[:, 0]]

    def places(self, state: NDArray[Any]) -> Int[np.ndarray, " B"]:
        """The state."""
        return state[:, 0]


class _Tree:
    """A prefix tree with counts; merging folds one state and all below it into another."""

    def __init__(self, cases: list[Ids]) -> None:
        self.step: list[dict[int, int]] = [{}]
        self.counts: list[dict[int, int]] = [{}]
        self.totals: list[int] = [0]
        self._above: list[tuple[int, int]] = [(-1, -1)]
        for case in cases:
            q = 0
            for s in case.tolist():
                if s not in self.step[q]:
                    self.step[q][s] = len(self.step)
                    self.step.append({})
                    self.counts.append({})
                    self.totals.append(0)
                    self._above.append((q, s))
                self.counts[q][s] = self.counts[q].get(s, 0) + 1
                self.totals[q] += 1
                q = self.step[q][s]

    def merge(self, r: int, q: int) -> list[tuple[int, int]]:
        """Fold q, a state of the tree that only one arrow leads to, into r.

        Returns:
            The states that hang somewhere else now, each with the one above it.
        """
        above, symbol = self._above[q]
        self.step[above][symbol] = r
        moved: list[tuple[int, int]] = []
        pairs = [(r, q)]
        while pairs:
            into, from_ = pairs.pop()
            for s, n in self.counts[from_].items():
                self.counts[into][s] = self.counts[into].get(s, 0) + n
            self.totals[into] += self.totals[from_]
            for s, below in self.step[from_].items():
                if s in self.step[into]:
                    pairs.append((self.step[into][s], below))
                else:
                    self.step[into][s] = below
                    self._above[below] = (into, s)
                    moved.append((into, below))
        return moved
