"""Counts of all grams of cases, up to a length; and the two methods that are made of them.

Every case begins with a symbol of its own (V), which is read but never asked for, so that "the
first event" is a context like any other. The context of length k after a step is a number, the
place of its gram in a sorted table, and -1 where training never showed it: one search a step.
"""

from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from stepscan.apps.baselines.symbols import Ids, SymbolModel

FEWEST = 8  # events in a context for it to be a place of its own


class Grams:
    """How often each string of up to `longest` symbols occurs within a case."""

    def __init__(self, cases: list[Ids], vocab: int, longest: int) -> None:
        self.vocab, self.size = vocab, vocab + 1
        text = np.concatenate([part for case in cases for part in (np.array([vocab]), case)])
        lengths = np.array([len(case) + 1 for case in cases])
        place = np.arange(len(text)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        before = np.zeros(len(text), np.int64)  # the gram one shorter, that ends one step before
        self.keys: list[Ids] = []
        """For each length, the grams: number of all but the last symbol, times size, plus that."""
        self.counts: list[NDArray[np.int64]] = []
        self.shorter: list[Ids] = []
        """For each gram, the number of the same one without its oldest symbol."""
        ends: Ids = np.zeros(len(text), np.int64)
        for k in range(1, longest + 1):
            there = place >= k - 1
            keys, first, inverse, count = np.unique(
                before[there] * self.size + text[there],
                return_index=True,
                return_inverse=True,
                return_counts=True,
            )
            self.keys.append(keys)
            self.counts.append(count)
            at = np.flatnonzero(there)
            self.shorter.append(ends[at[first]] if k > 1 else np.zeros(len(keys), np.int64))
            ends = np.full(len(text), -1, np.int64)
            ends[at] = inverse
            before = np.append(-1, ends[:-1])

    def find(self, k: int, before: Ids, symbols: Int[np.ndarray, " B"]) -> Ids:
        """Numbers of the grams of length k that add a symbol to these of length k - 1; or -1."""
        keys = self.keys[k - 1]
        key = before * self.size + symbols
        at = np.searchsorted(keys, key).clip(max=len(keys) - 1)
        return np.where((before >= 0) & (keys[at] == key), at, -1)

    def following(self, k: int, context: Ids) -> tuple[Ids, Ids, NDArray[np.int64]]:
        """What comes after each context of length k: row, symbol, count; the start is left out."""
        keys = self.keys[k]
        known = np.maximum(context, 0)
        low = np.searchsorted(keys, known * self.size)
        high = np.where(context >= 0, np.searchsorted(keys, known * self.size + self.vocab), low)
        many = high - low
        rows = np.repeat(np.arange(len(context)), many)
        at = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many) + low[rows]
        return rows, keys[at] % self.size, self.counts[k][at]

    def table(self, k: int, context: Ids) -> Float[np.ndarray, "B V"]:
        """`following` as counts."""
        counts = np.zeros((len(context), self.vocab))
        rows, symbols, count = self.following(k, context)
        counts[rows, symbols] = count
        return counts


class _Contexts(SymbolModel):
    """Base of what looks at the last symbols: a state holds the context of every length."""

    most: ClassVar[int | None] = 500_000

    def __init__(self, depth: int) -> None:
        self.depth = depth  # symbols of the longest context

    def fit(self, cases: list[Ids], vocab: int) -> None:
        """Count."""
        self.grams = Grams(cases, vocab, self.depth + 1)
        counts = self.grams.table(0, np.zeros(1, np.int64))[0] + 0.5 / vocab
        self.base = counts / counts.sum()

    def start(self, rows: int) -> NDArray[Any]:
        """After the symbol that begins a case."""
        nothing = np.full((rows, self.depth), -1, np.int64)
        return self._then(nothing, np.full(rows, self.grams.vocab))

    def read(self, state: NDArray[Any], symbols: Int[np.ndarray, " B"]) -> NDArray[Any]:
        """One search for each length."""
        return self._then(state, np.asarray(symbols, np.int64))

    def _then(self, state: NDArray[Any], symbols: Ids) -> NDArray[Any]:
        empty = np.zeros(len(state), np.int64)
        before = [empty, *state.T[:-1]]
        return np.stack([self.grams.find(k, b, symbols) for k, b in enumerate(before, 1)], 1)

    def places(self, state: NDArray[Any]) -> Int[np.ndarray, " B"]:
        """The longest context that was seen often enough."""
        found = np.zeros(len(state), np.int64)
        for k in range(1, self.depth + 1):
            ids = state[:, k - 1]
            often = (ids >= 0) & (self.grams.counts[k - 1][ids] >= FEWEST)
            found = np.where(often, ids * (self.depth + 1) + k, found)
        return found


class BackOff(_Contexts):
    """n-gram with interpolation down to shorter contexts, in the way of Witten and Bell (1991).

        P(s | h) = (c(h s) + N(h) P(s | h')) / (c(h) + N(h))

    c counts, N(h) is the number of different symbols seen after h, h' is h without its oldest
    symbol. Equation in Chen and Goodman 1999, section 2.5.
    """

    name: ClassVar[str] = "4-gram, back-off"

    def __init__(self, order: int = 4) -> None:
        super().__init__(order - 1)

    def chances(self, state: NDArray[Any]) -> Float[np.ndarray, "B V"]:
        """From the shortest context to the longest."""
        p = np.tile(self.base, (len(state), 1))
        for k in range(1, self.depth + 1):
            counts = self.grams.table(k, state[:, k - 1])
            kinds = (counts > 0).sum(1, keepdims=True)
            total = counts.sum(1, keepdims=True)
            p = np.where(total > 0, (counts + kinds * p) / np.maximum(total + kinds, 1), p)
        return p


class SuffixTree(_Contexts):
    """Probabilistic suffix tree (Ron, Singer and Tishby 1996, "The power of amnesia").

    A context is a node if it is seen often enough and if, for some symbol that is likely enough
    after it, the ratio of its probability to that after the context one symbol shorter is above
    `ratio` or below its inverse; the shorter contexts of a node are nodes too. The longest node
    that ends what was read gives the probabilities, kept from zero by mixing in a little of the
    uniform distribution (gamma in the paper).
    """

    name: ClassVar[str] = "suffix tree"

    def __init__(
        self, depth: int = 5, *, fewest: int = 20, ratio: float = 1.05, least: float = 1e-3
    ) -> None:
        super().__init__(depth)
        self.fewest, self.ratio, self.least = fewest, ratio, least

    def fit(self, cases: list[Ids], vocab: int) -> None:
        """Count, then keep what tells more than its shorter contexts."""
        super().fit(cases, vocab)
        grams, shorter = self.grams, self.base[None]  # after the empty context
        kept: list[NDArray[np.bool_]] = []
        for k in range(1, self.depth + 1):
            every = np.arange(len(grams.keys[k - 1]))
            own = np.zeros(len(every), bool)
            for piece in np.array_split(every, max(1, len(every) * vocab // 4_000_000)):
                counts = grams.table(k, piece)
                total = counts.sum(1, keepdims=True)
                p = counts / np.maximum(total, 1)
                suffix = grams.shorter[k - 1][piece]
                q = self._after(k - 1, suffix) if k > 1 else np.tile(shorter, (len(piece), 1))
                ratio = p / np.maximum(q, 1e-12)
                likely = p >= (1 + self.ratio) * self.least
                tells = likely & ((ratio >= self.ratio) | (ratio <= 1 / self.ratio))
                own[piece] = (total[:, 0] >= self.fewest) & tells.any(1)
            kept.append(own)
        for k in range(self.depth, 1, -1):  # a tree: the suffixes of a node are nodes
            kept[k - 2][grams.shorter[k - 1][kept[k - 1]]] = True
        self.kept = kept

    def _after(self, k: int, context: Ids) -> Float[np.ndarray, "B V"]:
        counts = self.grams.table(k, context)
        return counts / np.maximum(counts.sum(1, keepdims=True), 1)

    def _node(self, state: NDArray[Any]) -> Ids:
        """The length of the longest node that ends here."""
        length = np.zeros(len(state), np.int64)
        for k in range(1, self.depth + 1):
            ids = state[:, k - 1]
            length = np.where((ids >= 0) & self.kept[k - 1][ids], k, length)
        return length

    def chances(self, state: NDArray[Any]) -> Float[np.ndarray, "B V"]:
        """Of the longest node."""
        length = self._node(state)
        p = np.tile(self.base, (len(state), 1))
        for k in range(1, self.depth + 1):
            here = length == k
            if here.any():
                p[here] = self._after(k, state[here, k - 1])
        p = np.where(p.sum(1, keepdims=True) > 0, p, self.base)
        share = self.least * self.grams.vocab
        mixed = (1 - share) * p + self.least if share < 0.5 else 0.5 * p + 0.5 * self.base
        return mixed / mixed.sum(1, keepdims=True)

    def places(self, state: NDArray[Any]) -> Int[np.ndarray, " B"]:
        """The node."""
        length = self._node(state)
        ids = np.take_along_axis(state, np.maximum(length - 1, 0)[:, None], 1)[:, 0]
        return np.where(length > 0, ids * (self.depth + 1) + length, 0)
