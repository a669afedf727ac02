"""What came most often, and what came most often after this: for events and for items."""

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray


class Markov:
    """Counts of each next symbol, overall and after each symbol.

    Args:
        before: Each symbol that something came after; of a training part only.
        after: What came.
        vocab: Number of symbols V.
        order: 0 looks at nothing (popularity), 1 at the last symbol.
    """

    def __init__(
        self, before: Int[np.ndarray, " N"], after: Int[np.ndarray, " N"], vocab: int, order: int
    ) -> None:
        self.overall = np.bincount(after, minlength=vocab).astype(np.float64)
        self.order, self.vocab = order, vocab
        by_symbol = np.argsort(before, kind="stable")
        self._next = after[by_symbol]
        self._bounds = np.searchsorted(before[by_symbol], np.arange(vocab + 1))

    def scores(self, symbol: int) -> Float[np.ndarray, " V"]:
        """Higher is likelier; where the counts after `symbol` tie, the overall counts decide."""
        overall = self.overall / (self.overall.sum() + 1)
        if self.order == 0:
            return overall
        chosen = self._next[self._bounds[symbol] : self._bounds[symbol + 1]]
        return np.bincount(chosen, minlength=self.vocab) + overall

    def table(self, symbols: Int[np.ndarray, " N"]) -> NDArray[np.float64]:
        """`scores` of many symbols, [N V]."""
        different, inverse = np.unique(symbols, return_inverse=True)
        return np.stack([self.scores(int(symbol)) for symbol in different])[inverse]
