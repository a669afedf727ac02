"""The figures that event predictions are judged by."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan.apps.domain import Metric, Scores
from stepscan.apps.ranking import without

NEXT = (
    Metric(
        "accuracy",
        "higher",
        "Share of held-out events whose activity was the likeliest in the prediction made right "
        "after the event before, in cases never trained on; first events are not asked. Where "
        "cases end, the end counts as an activity.",
    ),
    Metric("top 3", "higher", "The same, counted right among the three likeliest."),
    Metric(
        "macro-F1",
        "higher",
        "F1 of each activity that came or was predicted, mean over activities: rare ones count as "
        "much as frequent ones. The prediction is the likeliest activity.",
    ),
    Metric(
        "Brier",
        "lower",
        "Sum over all activities of (probability given - 1 for the one that came, else - 0) "
        "squared, mean over events; from 0 to 2.",
    ),
    Metric(
        "nats",
        "lower",
        "Minus the log probability given to the activity that came, mean (natural logarithm).",
    ),
)
GAP = Metric(
    "gap error",
    "lower",
    "Mean absolute difference of the predicted median and the real time to the next event.",
)
REMAINING = Metric(
    "remaining error",
    "lower",
    "Mean absolute difference of the predicted median and the real time from an event to the last "
    "one of its case, over all events of the cases whose end is known.",
)
SUFFIX = Metric(
    "suffix similarity",
    "higher",
    "1 - Damerau-Levenshtein distance / length of the longer one, of the events predicted to come "
    "and those that came: at most 200 held-out cases, cut after a quarter, a half or three "
    "quarters in turn; mean. The prediction of a method is, of 16 ways to go on drawn by its "
    "probabilities and the way of the likeliest steps, the one most like those drawn. Where cases "
    "do not end, the next 10 events.",
)


class Tally:
    """Sums over events, filled piece by piece; `scores` at any time."""

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab
        self._sums = torch.zeros(4, dtype=torch.float64)
        self._classes = torch.zeros(3, vocab, dtype=torch.int64)  # right, predicted, came
        self._errors: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self.count = 0

    def next(self, log_chance: Float[Tensor, "N V"], wanted: Int[Tensor, " N"]) -> None:
        """Predictions of the next activity, and what came."""
        if not len(wanted):
            return
        likely = without(log_chance).topk(min(3, self.vocab - 1)).indices
        chance = log_chance.double().exp()
        own = chance.gather(1, wanted[:, None])[:, 0]
        figures = (
            (likely[:, 0] == wanted).sum(),
            (likely == wanted[:, None]).any(1).sum(),
            (chance.square().sum(1) - 2 * own + 1).sum(),
            -log_chance.double().gather(1, wanted[:, None]).sum(),
        )
        self._sums += torch.stack([figure.double() for figure in figures])
        for row, symbols in enumerate((wanted[likely[:, 0] == wanted], likely[:, 0], wanted)):
            self._classes[row] += torch.bincount(symbols, minlength=self.vocab)
        self.count += len(wanted)

    def times(self, name: str, error: Tensor) -> None:
        """Absolute errors of a time, in the unit they are to be shown in."""
        self._errors[name] = self._errors.get(name, 0.0) + float(error.double().sum())
        self._counts[name] = self._counts.get(name, 0) + len(error)

    def scores(self) -> Scores:
        """Of what was seen so far."""
        right, near, brier, nats = (self._sums / self.count).tolist()
        hits, predicted, came = self._classes.double()
        there = predicted + came > 0
        f1 = float((2 * hits / (predicted + came).clamp(min=1))[there].mean())
        found = dict(zip((m.name for m in NEXT), (right, near, f1, brier, nats), strict=True))
        return found | {name: self._errors[name] / n for name, n in self._counts.items() if n}


def damerau_levenshtein(a: Sequence[Any], b: Sequence[Any]) -> int:
    """The fewest insertions, deletions, replacements and swaps of neighbours that turn a into b.

    The unrestricted distance (Lowrance and Wagner 1975): what was swapped may be edited again.
    """
    far = len(a) + len(b)
    table = [[far] * (len(b) + 2) for _ in range(len(a) + 2)]  # row and column 0 lie outside
    for i in range(len(a) + 1):
        table[i + 1][1] = i
    for j in range(len(b) + 1):
        table[1][j + 1] = j
    seen: dict[Any, int] = {}  # the last row of each symbol of a
    for i, x in enumerate(a, 1):
        matched = 0  # the last column of b where this row matched
        for j, y in enumerate(b, 1):
            row, column = seen.get(y, 0), matched
            if x == y:
                matched = j
            table[i + 1][j + 1] = min(
                table[i][j] + (x != y),
                table[i + 1][j] + 1,
                table[i][j + 1] + 1,
                table[row][column] + (i - row - 1) + 1 + (j - column - 1),
            )
        seen[x] = i
    return table[-1][-1]


def similarity(a: Sequence[Any], b: Sequence[Any]) -> float:
    """1 for equal sequences, 0 for those that share nothing; two empty ones are equal."""
    longer = max(len(a), len(b))
    return 1 - damerau_levenshtein(a, b) / longer if longer else 1.0


def by_likeness(
    ways: Sequence[tuple[int, ...]], also: Sequence[tuple[int, ...]] = ()
) -> list[tuple[int, ...]]:
    """The different ones among these and others, those most similar to all of `ways`, in the mean,
    first.
    """
    count = Counter(ways)
    mean = {
        way: sum(n * similarity(way, other) for other, n in count.items()) / len(ways)
        for way in (*count, *also)
    }
    return sorted(mean, key=lambda way: -mean[way])
