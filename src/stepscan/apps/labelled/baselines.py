"""Simple methods for labelled sequences: the commonest answer, and a linear model of statistics.

The statistics of a channel are its mean, deviation, smallest, largest, first and last value, the
mean change and the mean absolute change from step to step; of words, how often each occurs; and the
logarithm of the length. For sequences of one length, the values themselves join them, at up to
VALUES places. The linear model is ridge regression, or logistic regression with the same penalty,
chosen on the validation part.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from stepscan.data.base import Packed
from stepscan.data.patches import unfold

PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
VALUES = 128
"""Most places of a channel whose values themselves are statistics."""


def statistics(
    packed: Packed, places: int, vocabularies: tuple[int, ...], patch: int = 1
) -> Float[Tensor, "S F"]:
    """What the linear model knows of each sequence.

    Args:
        packed: The sequences.
        places: Steps of every sequence if they are all as long, and their values are to be used.
        vocabularies: Sizes of the columns of words.
        patch: Samples of a step; the statistics are those of samples.
    """
    tokens, reals = packed.inputs_at(torch.arange(len(packed)))
    lengths = packed.lengths
    parts = [lengths.double().log()[:, None]]
    if reals is not None:
        rows = []
        samples = unfold(reals.double(), patch)
        for x in samples.split((lengths * patch).tolist()):
            change = x.diff(dim=0) if len(x) > 1 else torch.zeros_like(x)
            ends = (x.mean(0), x.std(0, correction=0), x.amin(0), x.amax(0), x[0], x[-1])
            rows.append(torch.cat([*ends, change.mean(0), change.abs().mean(0)]))
        parts.append(torch.stack(rows))
        if places:
            which = torch.linspace(0, places * patch - 1, min(places * patch, VALUES))
            same = samples.view(len(lengths), places * patch, -1)
            parts.append(same[:, which.round().long()].flatten(1))
    if tokens is not None:
        sequence = torch.arange(len(lengths)).repeat_interleave(lengths)
        for column, size in zip(tokens.unbind(-1), vocabularies, strict=True):
            counts = torch.zeros(len(lengths), size, dtype=torch.float64)
            counts.index_put_((sequence, column), torch.ones(len(column)).double(), accumulate=True)
            parts.append(counts / lengths[:, None])
    return torch.cat(parts, 1)


class Standard:
    """Centres and scales by the training part, and adds a column of ones."""

    def __init__(self, train: Float[Tensor, "S F"]) -> None:
        self.mean, self.scale = train.mean(0), train.std(0, correction=0).clamp_min(1e-9)

    def __call__(self, x: Float[Tensor, "S F"]) -> Float[Tensor, "S G"]:
        """The same for any part; kept within 10 deviations, as channels are."""
        scaled = ((x - self.mean) / self.scale).clamp(-10, 10)
        return torch.cat([scaled, torch.ones(len(x), 1, dtype=x.dtype)], 1)


def ridge(x: Float[Tensor, "S G"], y: Float[Tensor, " S"], penalty: float) -> Float[Tensor, " G"]:
    """Weights that minimise |x w - y|^2 + penalty |w|^2; the last column, of ones, is free."""
    free = torch.eye(x.shape[1], dtype=x.dtype)
    free[-1, -1] = 0
    return torch.linalg.lstsq(x.T @ x + penalty * free, x.T @ y, driver="gelsd").solution


def logistic(
    x: Float[Tensor, "S G"], label: Int[Tensor, " S"], classes: int, penalty: float
) -> Float[Tensor, "G K"]:
    """Weights that minimise the summed log loss + penalty / 2 |w|^2; the last row is free."""
    weights = torch.zeros(x.shape[1], classes, dtype=x.dtype, requires_grad=True)
    descent = torch.optim.LBFGS([weights], max_iter=300, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        descent.zero_grad()
        loss = F.cross_entropy(x @ weights, label, reduction="sum")
        loss = loss + penalty / 2 * weights[:-1].square().sum()
        loss.backward()
        return loss

    descent.step(cost)
    return weights.detach()


def linear_classes(
    x: dict[str, Tensor], label: dict[str, Tensor], classes: int
) -> Float[np.ndarray, "S K"]:
    """Probabilities for the test part; the penalty with the least log loss on the validation part.

    Args:
        x: Statistics of the parts train, valid and test.
        label: Classes of train and valid.
        classes: How many.
    """
    scaled = Standard(x["train"])
    design = {part: scaled(values) for part, values in x.items()}
    tried = []
    for penalty in PENALTIES:
        weights = logistic(design["train"], label["train"], classes, penalty)
        tried.append((float(F.cross_entropy(design["valid"] @ weights, label["valid"])), weights))
    weights = min(tried, key=lambda one: one[0])[1]
    return (design["test"] @ weights).softmax(-1).numpy()


def linear_numbers(x: dict[str, Tensor], y: dict[str, Tensor]) -> Float[np.ndarray, " S"]:
    """Numbers for the test part; the penalty with the least squared validation error."""
    scaled = Standard(x["train"])
    design = {part: scaled(values) for part, values in x.items()}
    tried = []
    for penalty in PENALTIES:
        weights = ridge(design["train"], y["train"], penalty)
        error = (design["valid"] @ weights - y["valid"]).square().mean()
        tried.append((float(error), weights))
    return (design["test"] @ min(tried, key=lambda one: one[0])[1]).numpy()
