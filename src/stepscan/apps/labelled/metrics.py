"""How well probabilities of classes, numbers and texts fit what was the case.

Checked against scikit-learn in the tests; written out here so that judging needs only numpy.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from stepscan.apps.domain import Metric, Scores

BINS = 15
"""Of the calibration error, as in Guo et al. 2017."""
CLASS_METRICS = (
    Metric("accuracy", "higher", "Share of held-out sequences whose class was the likeliest."),
    Metric(
        "balanced accuracy",
        "higher",
        "The same share within each class, mean over the classes that occur.",
    ),
    Metric(
        "macro F1",
        "higher",
        "2 TP / (2 TP + FP + FN) of each class that occurs or is said, mean over them.",
    ),
    Metric(
        "AUC",
        "higher",
        "Chance that a sequence of the class gets a higher probability of it than one of another "
        "class, ties half; mean over classes (of two classes: of the second).",
    ),
    Metric(
        "log loss",
        "lower",
        "Minus the log probability given to the class, mean (natural logarithm, probabilities "
        "at least 1e-12).",
    ),
    Metric(
        "Brier score",
        "lower",
        "Sum over classes of (probability - 1 or 0) squared, mean over sequences; from 0 to 2.",
    ),
    Metric(
        "ECE",
        "lower",
        f"Expected calibration error: sequences in {BINS} equal bins of the likeliest class's "
        "probability; |share right - mean probability| of a bin, weighed by its sequences.",
    ),
)
NUMBER_METRICS = (
    Metric("RMSE", "lower", "Root of the mean squared error, in the unit of the label."),
    Metric("MAE", "lower", "Mean absolute error, in the unit of the label."),
    Metric("R2", "higher", "1 - squared error / squared deviation from the test part's mean."),
)
TEXT_METRICS = (
    Metric(
        "CER",
        "lower",
        "Character error rate: insertions, deletions and substitutions that turn what was read "
        "into what is written, over the letters written, all held-out texts together.",
    ),
    Metric("exact", "higher", "Share of held-out texts read without any error."),
)


def class_scores(chance: Float[np.ndarray, "M K"], label: Int[np.ndarray, " M"]) -> Scores:
    """The CLASS_METRICS; NaN where a model that diverged gives no probabilities."""
    names = [m.name for m in CLASS_METRICS]
    if not np.isfinite(chance).all():
        return dict.fromkeys(names, float("nan"))
    table = confusion(chance.argmax(1), label, chance.shape[1])
    values = (
        table.trace() / table.sum(),
        balanced_accuracy(table),
        macro_f1(table),
        auc(chance, label),
        -np.log(np.maximum(chance[np.arange(len(label)), label], 1e-12)).mean(),
        ((chance - np.eye(chance.shape[1])[label]) ** 2).sum(1).mean(),
        calibration_error(chance, label),
    )
    return dict(zip(names, map(float, values), strict=True))


def number_scores(said: Float[np.ndarray, " M"], real: Float[np.ndarray, " M"]) -> Scores:
    """The NUMBER_METRICS; R2 of labels that are all the same is 0."""
    error = said - real
    deviation = ((real - real.mean()) ** 2).sum()
    r2 = 1 - (error**2).sum() / deviation if deviation else 0.0 * error.sum()
    values = (np.sqrt((error**2).mean()), np.abs(error).mean(), r2)
    return {m.name: float(v) for m, v in zip(NUMBER_METRICS, values, strict=True)}


def text_scores(said: Sequence[str], real: Sequence[str]) -> Scores:
    """The TEXT_METRICS."""
    errors = sum(edit_distance(a, b) for a, b in zip(said, real, strict=True))
    letters = sum(map(len, real))
    exact = np.mean([a == b for a, b in zip(said, real, strict=True)])
    return {"CER": errors / max(1, letters), "exact": float(exact)}


def confusion(
    said: Int[np.ndarray, " M"], label: Int[np.ndarray, " M"], classes: int
) -> Int[np.ndarray, "K K"]:
    """How often class i (row) was called class j (column)."""
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (label, said), 1)
    return table


def balanced_accuracy(table: Int[np.ndarray, "K K"]) -> float:
    """Mean recall of the classes that occur."""
    occur = table.sum(1) > 0
    return float((table.diagonal()[occur] / table.sum(1)[occur]).mean())


def macro_f1(table: Int[np.ndarray, "K K"]) -> float:
    """Mean F1 of the classes that occur or are said."""
    both = table.sum(0) + table.sum(1)
    return float((2 * table.diagonal()[both > 0] / both[both > 0]).mean())


def auc(chance: Float[np.ndarray, "M K"], label: Int[np.ndarray, " M"]) -> float:
    """One class against the rest, by ranks (Mann and Whitney 1947); 0.5 without two classes."""
    classes = range(chance.shape[1]) if chance.shape[1] > 2 else [1]
    found = []
    for k in classes:
        own = label == k
        if own.any() and not own.all():
            n = own.sum()
            ranks = average_ranks(chance[:, k])
            found.append((ranks[own].sum() - n * (n + 1) / 2) / (n * (len(own) - n)))
    return float(np.mean(found)) if found else 0.5


def average_ranks(values: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
    """Ranks from 1; equal values share theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


def reliability(
    chance: Float[np.ndarray, "M K"], label: Int[np.ndarray, " M"]
) -> list[tuple[float, float, int]]:
    """Mean probability of the likeliest class, share right, and count, of every bin in use."""
    top, right = chance.max(1), chance.argmax(1) == label
    bin_ = np.minimum((top * BINS).astype(int), BINS - 1)
    return [
        (float(top[bin_ == b].mean()), float(right[bin_ == b].mean()), int((bin_ == b).sum()))
        for b in np.unique(bin_)
    ]


def calibration_error(chance: Float[np.ndarray, "M K"], label: Int[np.ndarray, " M"]) -> float:
    """See ECE in CLASS_METRICS; Guo et al. 2017, arXiv:1706.04599."""
    found = reliability(chance, label)
    return sum(n * abs(right - mean) for mean, right, n in found) / len(label)


def edit_distance(a: Sequence[object], b: Sequence[object]) -> int:
    """The fewest insertions, deletions and substitutions from a to b (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]
