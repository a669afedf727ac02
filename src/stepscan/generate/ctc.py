"""Reading a text out of what a CTC head says: symbols and blanks, step after step.

    B(path)      drop repeats, then blanks (symbol 0): a a 0 a b b -> a a b
    greedy       B of the likeliest symbol at each step
    beam         the text with the largest sum over its paths, among `width` kept after each step

Both read forwards and keep a state, so that a text grows while the sequence arrives; how it is cut
makes no difference.

Sources: Graves et al. 2006 (CTC, best path); Hannun et al. 2014, arXiv:1408.2873, algorithm 1
(prefix beam search; without a language model here).
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

BLANK = 0


class Greedy(NamedTuple):
    """The text so far, and the symbol of the last step."""

    text: tuple[int, ...] = ()
    last: int = BLANK

    def read(self, scores: Float[Tensor, "T V"]) -> "Greedy":
        """Go on by some steps."""
        text, last = list(self.text), self.last
        for symbol in scores.argmax(-1).tolist():
            if symbol not in (BLANK, last):
                text.append(symbol)
            last = symbol
        return Greedy(tuple(text), last)


class Beam(NamedTuple):
    """Texts so far, the likeliest first, with the log probabilities of their paths."""

    width: int
    texts: tuple[tuple[tuple[int, ...], float, float], ...] = (((), 0.0, -math.inf),)
    """Text, paths that end in a blank, paths that end in its last symbol."""

    @property
    def text(self) -> tuple[int, ...]:
        """The likeliest."""
        return self.texts[0][0]

    @property
    def log_probability(self) -> float:
        """Of the likeliest text: what was kept of the sum over its paths."""
        return _add(self.texts[0][1:])

    def read(self, log_p: Float[Tensor, "T V"]) -> "Beam":
        """Go on by some steps; rows are log probabilities."""
        kept = self.texts
        for row in log_p.tolist():
            kept = _step(kept, row, self.width)
        return Beam(self.width, kept)


def greedy(scores: Float[Tensor, "T V"]) -> list[int]:
    """The likeliest path without repeats and blanks; scores or log probabilities."""
    return list(Greedy().read(scores).text)


def beam(log_p: Float[Tensor, "T V"], width: int = 16) -> list[int]:
    """The likeliest text that a search of this width finds."""
    if width < 1:
        raise ValueError(f"beam: want width >= 1, got {width}")
    return list(Beam(width).read(log_p).text)


def _step(
    texts: Iterable[tuple[tuple[int, ...], float, float]], row: Sequence[float], width: int
) -> tuple[tuple[tuple[int, ...], float, float], ...]:
    found: dict[tuple[int, ...], list[list[float]]] = {}

    def give(text: tuple[int, ...], ends_in_blank: bool, amount: float) -> None:
        found.setdefault(text, [[], []])[0 if ends_in_blank else 1].append(amount)

    for text, blank, symbol in texts:
        both = _add((blank, symbol))
        give(text, True, both + row[BLANK])
        if text:
            give(text, False, symbol + row[text[-1]])
        for new in range(1, len(row)):
            # After its own repeat a symbol is a new one only where a blank lies between.
            before = blank if text and new == text[-1] else both
            give((*text, new), False, before + row[new])
    summed = [(text, _add(a), _add(b)) for text, (a, b) in found.items()]
    possible = [one for one in summed if max(one[1:]) > -math.inf]
    possible.sort(key=lambda one: -_add(one[1:]))
    return tuple(possible[:width])


def _add(logs: Sequence[float]) -> float:
    """log of the sum of exponentials."""
    largest = max(logs, default=-math.inf)
    if largest == -math.inf:
        return largest
    return largest + math.log(sum(math.exp(x - largest) for x in logs))
