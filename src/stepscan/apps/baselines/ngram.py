"""n-gram language model with interpolated Kneser-Ney smoothing (Kneser and Ney 1995; Chen and
Goodman 1999, section 3): the classical yardstick of text.

    P_k(w | h) = max(c(h w) - D_k, 0) / c(h .) + D_k N(h .) / c(h .) P_{k-1}(w | h')

h' is h without its oldest token, N(h .) the number of different tokens seen after h, and below the
highest order c counts the different tokens seen before, not the occurrences. P_0 is uniform. One
discount per order, D = n1 / (n1 + 2 n2), with n1 at least 1 where some gram was never seen. A
context that was never seen passes on to the next order.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


class Order(NamedTuple):
    """All grams of one length: a gram is its context's number times V plus its last token."""

    keys: Ids
    """Sorted; the place of a key is the number of its gram."""
    counts: NDArray[np.float64]
    totals: NDArray[np.float64]
    """Per context, the sum of counts."""
    kinds: NDArray[np.float64]
    """Per context, the number of different next tokens."""
    discount: float


class NGram:
    """Counts of one text; a few numpy passes per order, no Python loop over tokens."""

    def __init__(self, tokens: Ids, vocab: int, order: int = 5) -> None:
        if order < 1 or len(tokens) <= order:
            raise ValueError(f"n-gram: want more than {order} tokens, got {len(tokens)}")
        self.vocab = vocab
        grams: list[Ids] = [np.zeros(len(tokens) + 1, dtype=np.int64)]  # [k][i]: ends before i
        keys: list[Ids] = []
        raw: list[NDArray[np.int64]] = []
        firsts: list[Ids] = []
        for k in range(1, order + 1):
            key = grams[-1][:-1] * vocab + tokens
            found, first, inverse, count = np.unique(
                key[k - 1 :], return_index=True, return_inverse=True, return_counts=True
            )
            ends = np.full(len(tokens) + 1, -1, dtype=np.int64)
            ends[k:] = inverse
            grams.append(ends)
            keys.append(found)
            raw.append(count)
            firsts.append(first + k)
        self.orders: list[Order] = []
        for k in range(1, order + 1):
            counts = raw[k - 1].astype(np.float64)
            if k < order:  # how many different tokens came before: one per different longer gram
                counts = np.bincount(grams[k][firsts[k]], minlength=len(counts)).astype(np.float64)
            contexts = keys[k - 1] // vocab
            size = 1 if k == 1 else len(keys[k - 2])
            seen = counts > 0
            once, twice = int((counts == 1).sum()), int((counts == 2).sum())
            if seen.sum() < size * vocab:  # what was never seen must stay possible
                once = max(once, 1)
            self.orders.append(
                Order(
                    keys[k - 1],
                    counts,
                    np.bincount(contexts, counts, size).astype(np.float64),
                    np.bincount(contexts[seen], minlength=size).astype(np.float64),
                    once / (once + 2 * twice) if once else 0.0,
                )
            )

    def log_probabilities(self, tokens: Ids) -> NDArray[np.float64]:
        """log P(token | the tokens before it), natural logarithm, for every token."""
        p = np.full(len(tokens), 1 / self.vocab)
        contexts = np.zeros(len(tokens), dtype=np.int64)  # of length k - 1, or -1: never seen
        for k, table in enumerate(self.orders, start=1):
            key = contexts * self.vocab + tokens
            place = np.searchsorted(table.keys, key).clip(max=len(table.keys) - 1)
            known = (contexts >= 0) & (table.keys[place] == key)
            context = contexts.clip(min=0)
            total = np.where(contexts >= 0, table.totals[context], 0)
            count = np.where(known, table.counts[place], 0)
            safe = np.maximum(total, 1e-300)
            here = (np.maximum(count - table.discount, 0) / safe) + (
                table.discount * table.kinds[context] / safe
            ) * p
            p = np.where(total > 0, here, p)
            # The context of the next order: the gram of k tokens that ends just before a token.
            gram = np.where(known, place, -1)
            contexts = np.full(len(tokens), -1, dtype=np.int64)
            contexts[k:] = gram[k - 1 : -1]
        return np.log(p)
