"""Targets without an order of their own: learn them in the order that the model finds easiest.

    loss = -log p(Y_o | X),    o among K candidates: the likeliest, or drawn with p(Y_o | X)

A set, or the variables of a joint distribution, can be written in any order, and by the chain rule
every order is right; but some are learned far sooner. Vinyals et al. 2015, arXiv:1511.06391: first
train with all orders alike, then with those that the model itself prefers. Drawing keeps exploring
where taking the best would settle on the first habit.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

LogLikelihood = Callable[[Int[Tensor, "B N"]], Float[Tensor, " B"]]
"""Orders, one for each row of a batch -> log p of the row's target written in it."""


def random_orders(rows: int, size: int, count: int, rng: torch.Generator) -> Int[Tensor, "K B N"]:
    """`count` random orders of `size` things for each of `rows` rows."""
    return torch.rand(count, rows, size, generator=rng).argsort(-1)


@torch.no_grad()
def best_order(
    log_likelihood: LogLikelihood,
    candidates: Int[Tensor, "K B N"],
    *,
    rng: torch.Generator | None = None,
) -> Int[Tensor, "B N"]:
    """For each row one of its candidates, to descend on afterwards.

    Args:
        log_likelihood: What the model gives each row for an order; called K times, no gradients.
        candidates: K orders for each row.
        rng: Draw in proportion to the likelihood; None: take the likeliest.
    """
    likely = torch.stack([log_likelihood(orders) for orders in candidates], 1)
    if rng is None:
        pick = likely.argmax(1)
    else:
        pick = torch.multinomial(likely.double().softmax(1), 1, generator=rng)[:, 0]
    return candidates[pick, torch.arange(len(pick))]


@torch.no_grad()
def settled_order(
    log_likelihood: LogLikelihood, start: Int[Tensor, " N"], rows: int
) -> Int[Tensor, " N"]:
    """One order for all rows: move one thing elsewhere at a time, while the mean rises."""

    def mean(order: list[int]) -> float:
        return log_likelihood(torch.tensor(order).expand(rows, -1)).mean().item()

    order = start.tolist()
    best, better = mean(order), True
    while better:
        better = False
        for thing in sorted(order):
            rest = [other for other in order if other != thing]
            moved = [[*rest[:at], thing, *rest[at:]] for at in range(len(order))]
            values = [mean(each) for each in moved]
            if max(values) > best + 1e-6:
                best, order = max(values), moved[values.index(max(values))]
                better = True
    return torch.tensor(order)
