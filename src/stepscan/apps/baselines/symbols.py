"""Classical methods over symbols, behind one interface: fitted to cases, then read step by step.

A state is an array with one row per case read side by side, so that any method can be asked for
probabilities after every event, go on from them, and be compared with any other.
"""

import abc
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from stepscan.apps.baselines.markov import Markov

Ids = NDArray[np.int64]
ROWS = 2048  # cases read side by side


class SymbolModel(abc.ABC):
    """One method. `fit` makes it; the rest is a walk: start, read, read ... and ask anywhere."""

    name: ClassVar[str]
    most: ClassVar[int | None] = None
    """Events that it is fitted to at the most: what is slow is bounded, and said."""

    @abc.abstractmethod
    def fit(self, cases: list[Ids], vocab: int) -> None:
        """Learn from whole cases; symbols are below `vocab`."""

    @abc.abstractmethod
    def start(self, rows: int) -> NDArray[Any]:
        """The state of so many cases before their first event."""

    @abc.abstractmethod
    def read(self, state: NDArray[Any], symbols: Int[np.ndarray, " B"]) -> NDArray[Any]:
        """The state after one more event in each row."""

    @abc.abstractmethod
    def chances(self, state: NDArray[Any]) -> Float[np.ndarray, "B V"]:
        """Of each next symbol; every row sums to 1, and no symbol is impossible."""

    @abc.abstractmethod
    def places(self, state: NDArray[Any]) -> Int[np.ndarray, " B"]:
        """Where each row stands, as a number: events in the same place are alike to the method."""


class MostFrequent(SymbolModel):
    """What came most often, whatever was read."""

    name: ClassVar[str] = "most frequent"

    def fit(self, cases: list[Ids], vocab: int) -> None:
        """Count what comes after something."""
        self._chance = _smoothed(_chain(cases, vocab, order=0).overall)

    def start(self, rows: int) -> NDArray[Any]:
        """Nothing to remember."""
        return np.zeros((rows, 1), np.int64)

    def read(self, state: NDArray[Any], symbols: Int[np.ndarray, " B"]) -> NDArray[Any]:
        """Nothing is remembered."""
        return state

    def chances(self, state: NDArray[Any]) -> Float[np.ndarray, "B V"]:
        """The same everywhere."""
        return np.tile(self._chance, (len(state), 1))

    def places(self, state: NDArray[Any]) -> Int[np.ndarray, " B"]:
        """All the same."""
        return np.zeros(len(state), np.int64)


class SameAgain(SymbolModel):
    """The last event again, as often as that happens in training; else what comes most often.

    The one simple method that needs no symbol to be known: where cases keep to something of their
    own, it can be ahead of all that only know what cases have in common.
    """

    name: ClassVar[str] = "same again"

    def fit(self, cases: list[Ids], vocab: int) -> None:
        """Count repetitions, and what comes instead."""
        again = sum(int((case[1:] == case[:-1]).sum()) for case in cases)
        self._again = (again + 0.5) / (sum(len(case) - 1 for case in cases) + 1)
        self._overall = _smoothed(_chain(cases, vocab, order=0).overall)

    def start(self, rows: int) -> NDArray[Any]:
        """Nothing yet."""
        return np.zeros((rows, 1), np.int64)

    def read(self, state: NDArray[Any], symbols: Int[np.ndarray, " B"]) -> NDArray[Any]:
        """The last symbol is all."""
        return np.asarray(symbols, np.int64)[:, None]

    def chances(self, state: NDArray[Any]) -> Float[np.ndarray, "B V"]:
        """The rest is shared among the other symbols as they occur."""
        last, rows = state[:, 0], np.arange(len(state))
        found = np.tile(self._overall, (len(state), 1))
        known = last > 0  # nobody can say again what has no name
        found[rows[known], last[known]] = 0.0
        found[known] *= (1 - self._again) / found[known].sum(-1, keepdims=True)
        found[rows[known], last[known]] = self._again
        return found

    def places(self, state: NDArray[Any]) -> Int[np.ndarray, " B"]:
        """The last symbol."""
        return state[:, 0]


class MarkovChain(SymbolModel):
    """What came most often after the last event; where that ties, what came most often."""

    name: ClassVar[str] = "Markov chain"

    def fit(self, cases: list[Ids], vocab: int) -> None:
        """Count pairs."""
        chain = _chain(cases, vocab, order=1)
        self._chances = _smoothed(np.stack([chain.scores(s) for s in range(vocab)]))

    def start(self, rows: int) -> NDArray[Any]:
        """As after a symbol never seen."""
        return np.zeros((rows, 1), np.int64)

    def read(self, state: NDArray[Any], symbols: Int[np.ndarray, " B"]) -> NDArray[Any]:
        """The last symbol is all."""
        return np.asarray(symbols, np.int64)[:, None]

    def chances(self, state: NDArray[Any]) -> Float[np.ndarray, "B V"]:
        """A row of the table."""
        return self._chances[state[:, 0]]

    def places(self, state: NDArray[Any]) -> Int[np.ndarray, " B"]:
        """The last symbol."""
        return state[:, 0]


def walk(
    model: SymbolModel, cases: list[Ids], rows: int = ROWS
) -> Iterator[tuple[Ids, Ids, NDArray[Any]]]:
    """Read all cases side by side: which of them, how many events each has shown, their states."""
    order = np.argsort([-len(case) for case in cases], kind="stable")
    for block in np.split(order, range(rows, len(order), rows)):
        lengths = np.array([len(cases[i]) for i in block])
        if not len(block) or not lengths[0]:
            continue
        padded = np.zeros((len(block), lengths[0]), np.int64)
        for row, i in enumerate(block):
            padded[row, : lengths[row]] = cases[i]
        state = model.start(len(block))
        for t in range(lengths[0]):
            left = int((lengths > t).sum())  # longest first: those that go on are in front
            state = model.read(state[:left], padded[:left, t])
            yield block[:left], np.full(left, t + 1), state


def log_likelihood(model: SymbolModel, cases: list[Ids]) -> float:
    """Of all symbols of all cases, the first ones too, natural logarithm."""
    total = 0.0
    for case in cases:
        state = model.start(1)
        for symbol in case:
            total += float(np.log(model.chances(state)[0, symbol]))
            state = model.read(state, np.array([symbol]))
    return total


def overall(cases: list[Ids], vocab: int) -> Float[np.ndarray, " V"]:
    """How often each symbol occurs at all; none is impossible."""
    counts = np.bincount(np.concatenate(cases), minlength=vocab) + 0.5 / vocab
    return counts / counts.sum()


def _chain(cases: list[Ids], vocab: int, *, order: int) -> Markov:
    before = np.concatenate([case[:-1] for case in cases])
    after = np.concatenate([case[1:] for case in cases])
    return Markov(before, after, vocab, order)


def _smoothed(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counts as probabilities; half a count is shared among all symbols."""
    mass = counts + 0.5 / counts.shape[-1]
    return mass / mass.sum(-1, keepdims=True)
