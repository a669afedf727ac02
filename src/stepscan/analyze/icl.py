"""What does a model learn in context? Its answers beside those of known algorithms.

A learner is anything that answers queries from examples (x, y): a trained model that read them, or
least squares, ridge regression, one step of gradient descent, nearest neighbours. Two measures
compare learners on the same prompts:

    difference(A, B)      = E |A(q) - B(q)|^2            over prompts and fresh queries q
    implied_weights(A)    = argmin_w E |A(q) - w.q|^2    what A would be if it were linear in q

`probe` says whether a quantity can be read off hidden states by a linear map. Source: Akyürek et
al. 2022, arXiv:2211.15661, "squared prediction difference" and "implied linear weights". The step
of gradient descent has the size that is best in the mean over prompts, which is our choice: the
difference to it is then the least that any fixed step has.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

Learner = Callable[
    [Float[Tensor, "B P D"], Float[Tensor, "B P"], Float[Tensor, "B Q D"]], Float[Tensor, "B Q"]
]
"""(x, y, queries) -> answers: P examples and Q queries for each of B prompts."""

ROWS = 4096  # prompts that a model reads at a time


class Implied(NamedTuple):
    """The linear predictor nearest to a learner, for each prompt."""

    weights: Float[Tensor, "B D"]
    explained: Float[Tensor, "B"]
    """The part of the learner's answers that it accounts for: R^2, 1 for a linear learner."""


class Probe(NamedTuple):
    """How well a linear map reads a quantity from features of prompts that it was not fitted to."""

    explained: float
    """R^2, at most 1; below 0 worse than the mean."""
    control: float
    """The same for a map that was fitted to the quantities of other prompts."""


def least_squares(x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
    """The smallest w among those that fit best."""
    w = torch.linalg.lstsq(x.double(), y.double()[..., None], driver="gelsd").solution
    return (queries.double() @ w).squeeze(-1)


def ridge(noise: float) -> Learner:
    """Bayes' answer where w is standard normal and y has this much noise (standard deviation)."""

    def answer(x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        x, y = x.double(), y.double()[..., None]
        inner = x.mT @ x + noise**2 * torch.eye(x.shape[-1], dtype=x.dtype)
        return (queries.double() @ torch.linalg.solve(inner, x.mT @ y)).squeeze(-1)

    return answer


def one_step(noise: float = 0.0) -> Learner:
    """One step of gradient descent from w = 0: w = X^T y / (P + D + 1 + noise^2).

    The size is that which leaves the smallest expected error of w, for standard normal x and w:
    from E[X^T X] = P and E[(X^T X)^2] = P (P + D + 1), times the identity.
    """

    def answer(x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        x, y = x.double(), y.double()[..., None]
        w = x.mT @ y / (x.shape[1] + x.shape[2] + 1 + noise**2)
        return (queries.double() @ w).squeeze(-1)

    return answer


def neighbours(count: int = 3) -> Learner:
    """The mean of the nearest examples, each weighted by one over its distance."""

    def answer(x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        far, which = torch.cdist(queries.double(), x.double()).topk(count, largest=False)
        weight = 1 / far.clamp_min(1e-12)
        near = y.double()[:, None].expand(*which.shape[:2], -1).gather(2, which)
        return (weight * near).sum(-1) / weight.sum(-1)

    return answer


def prompts(
    x: Float[Tensor, "B P D"], y: Float[Tensor, "B P"], query: Float[Tensor, "B D"]
) -> Float[Tensor, "B T D+1"]:
    """What a model reads, T = 2 P + 1: as the task `in_context_regression` writes it."""
    B, P, D = x.shape
    input = torch.zeros(B, P + 1, 2, D + 1)
    input[:, :P, 0, :D], input[:, :P, 1, D], input[:, P, 0, :D] = x, y, query
    return input.flatten(1, 2)[:, :-1]


def of_model(model: Callable[[Tensor], tuple[Tensor, object]]) -> Learner:
    """A model of `in_context_regression` as a learner; each query has a prompt of its own."""

    @torch.no_grad()
    def answer(x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        Q = queries.shape[1]
        input = prompts(x.repeat_interleave(Q, 0), y.repeat_interleave(Q, 0), queries.flatten(0, 1))
        said = [model(part)[0][:, -1, 0] for part in input.split(ROWS)]
        return torch.cat(said).view(-1, Q).double()

    return answer


def difference(a: Learner, b: Learner, x: Tensor, y: Tensor, queries: Tensor) -> float:
    """Squared prediction difference: the mean over prompts and queries."""
    return (a(x, y, queries) - b(x, y, queries)).square().mean().item()


def implied_weights(learner: Learner, x: Tensor, y: Tensor, queries: Tensor) -> Implied:
    """The linear predictor that a learner comes nearest to, from its answers to Q > D queries."""
    if queries.shape[1] <= queries.shape[2]:
        raise ValueError(
            f"implied_weights: want more queries than the {queries.shape[2]} weights of a prompt, "
            f"got {queries.shape[1]}"
        )
    answers, q = learner(x, y, queries).double(), queries.double()
    w = torch.linalg.lstsq(q, answers[..., None]).solution
    error = (answers - (q @ w).squeeze(-1)).square().sum(1)
    return Implied(w.squeeze(-1), 1 - error / answers.square().sum(1))


def probe(
    features: Float[Tensor, "B F"], wanted: Float[Tensor, "B O"], *, ridge: float = 1e-3
) -> Probe:
    """Fit a linear map on the first half of the prompts, judge it on the second.

    Args:
        features: Hidden states, one row a prompt.
        wanted: What is looked for in them.
        ridge: Penalty, in parts of the features' mean square.
    """
    half = len(features) // 2
    if half <= features.shape[1]:
        raise ValueError(
            f"probe: want more than {2 * features.shape[1]} prompts for {features.shape[1]} "
            f"features, got {len(features)}"
        )
    x = features.double() - features[:half].double().mean(0)
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    wanted = wanted.double()
    penalty = ridge * x[:half].square().mean() * half * torch.eye(x.shape[1], dtype=x.dtype)

    def explained(target: Tensor) -> float:
        inner = x[:half].T @ x[:half] + penalty
        fit = torch.linalg.solve(inner, x[:half].T @ target[:half])
        error = (wanted[half:] - x[half:] @ fit).square().mean(0)
        return (1 - error / wanted[half:].var(0, correction=0)).mean().item()

    return Probe(explained(wanted), explained(wanted.roll(half // 2, 0)))


@torch.no_grad()
def hidden(model: nn.Module, blocks: nn.ModuleList, input: Tensor) -> list[Float[Tensor, "B D"]]:
    """The stream after each block, at the last step."""
    seen: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda m, i, o: seen.append(o[0][:, -1])) for b in blocks]
    try:
        model(input)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
