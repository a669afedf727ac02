"""The field's own simple methods: one ability per user (IRT), and counts per skill (PFA).

    Rasch   p = sigmoid(ability_u - difficulty_q)        abilities and difficulties ~ N(0, 1)
    PFA     p = sigmoid(b_q + d_s + g_s log(1 + right_us) + r_s log(1 + wrong_us))

Users held out are new: the Rasch model starts each at ability 0 and updates it after every answer
by one step of an extended Kalman filter, PFA goes on counting.
Sources: Rasch 1960; Pavlik, Cen and Koedinger 2009 (performance factors analysis; there the counts
enter as they are, the logarithm is the usual choice for long histories).
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch.nn import functional as F

from stepscan.data.base import Packed

ROUNDS = 40
DECAY = 1e-4  # of the weights of PFA


class History(NamedTuple):
    """Answers of one user after another."""

    starts: Bool[np.ndarray, " N"]
    question: Int[np.ndarray, " N"]
    skill: Int[np.ndarray, " N"]
    right: Int[np.ndarray, " N"]


def history_of(packed: Packed) -> History:
    """The answers of a part."""
    at = torch.arange(len(packed))
    tokens, _ = packed.inputs_at(at)
    assert tokens is not None
    right = packed.targets_at(at)["label"]
    return History(packed.starts.numpy(), tokens[:, 0].numpy(), tokens[:, 1].numpy(), right.numpy())


def share(train: History, test: History, questions: int) -> Float[np.ndarray, " N"]:
    """How often each question was answered right, with two made-up answers of the mean."""
    mean = train.right.mean()
    right = np.bincount(train.question, train.right, minlength=questions)
    count = np.bincount(train.question, minlength=questions)
    return ((right + 2 * mean) / (count + 2))[test.question]


def rasch(train: History, test: History, questions: int) -> Float[np.ndarray, " N"]:
    """Probability of a right answer, with the ability of each user as it was before."""
    difficulty = _difficulties(train, questions)
    said = np.zeros(len(test.right))
    ability, variance = 0.0, 1.0
    for i, begins in enumerate(test.starts):
        if begins:
            ability, variance = 0.0, 1.0
        said[i] = p = 1 / (1 + np.exp(difficulty[test.question[i]] - ability))
        variance = 1 / (1 / variance + p * (1 - p))
        ability += variance * (test.right[i] - p)
    return said


def _difficulties(train: History, questions: int) -> Float[np.ndarray, " Q"]:
    """The mode of the posterior, by Newton steps for users and questions in turn."""
    user = np.cumsum(train.starts) - 1
    ability, difficulty = np.zeros(user[-1] + 1), np.zeros(questions)
    for _ in range(ROUNDS):
        for who, sign in ((user, 1), (train.question, -1)):
            value = ability if sign == 1 else difficulty
            p = 1 / (1 + np.exp(difficulty[train.question] - ability[user]))
            slope = np.bincount(who, sign * (train.right - p), minlength=len(value)) - value
            bend = np.bincount(who, p * (1 - p), minlength=len(value)) + 1
            value += slope / bend
    return difficulty


def pfa(train: History, test: History, questions: int, skills: int) -> Float[np.ndarray, " N"]:
    """Probability of a right answer from the counts of the same skill so far."""
    shift = torch.zeros(questions, dtype=torch.float64)
    factors = torch.zeros(3, skills, dtype=torch.float64)
    shift.requires_grad_(True)
    factors.requires_grad_(True)
    question, skill, counts = _counted(train)
    right = torch.from_numpy(train.right).double()
    optimizer = torch.optim.LBFGS([shift, factors], max_iter=100, line_search_fn="strong_wolfe")

    def logits(question: torch.Tensor, skill: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        base, *slopes = factors[:, skill]
        return shift[question] + base + sum(s * c for s, c in zip(slopes, counts, strict=True))

    def cost() -> torch.Tensor:
        optimizer.zero_grad()
        found = F.binary_cross_entropy_with_logits(logits(question, skill, counts), right)
        found = found + DECAY * (shift.square().sum() + factors.square().sum())
        found.backward()
        return found

    optimizer.step(cost)  # type: ignore[arg-type]
    with torch.no_grad():
        return logits(*_counted(test)).sigmoid().numpy()


def _counted(history: History) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Question, skill, and the logarithms of right and wrong answers to the skill so far."""
    counts = np.zeros((2, len(history.right)))
    seen: dict[int, list[int]] = {}
    for i, begins in enumerate(history.starts):
        if begins:
            seen = {}
        own = seen.setdefault(int(history.skill[i]), [0, 0])
        counts[:, i] = own
        own[1 - int(history.right[i])] += 1
    return (
        torch.from_numpy(history.question),
        torch.from_numpy(history.skill),
        torch.from_numpy(np.log1p(counts)),
    )
