"""Which items are near an item: taken by the same users, soon after or before, and regularly.

    similarity_ij = sum over users who took both 1 / log(1 + n_u) / sqrt(n_i n_j)
    time_ij       = mean time between the two, over these users
    score_ij      = 0.4 s / (1 + s) + 0.8 / (1 + log(1 + time_ij)) + 0.5 / (1 + log(1 + var_j))

n_u counts the items of a user, n_i the users of an item, var_j is the variance of the times between
takings of j by anyone. Times are in seconds, or units of plain numbers.
Source: Liu, Wang and Feng 2024, arXiv:2406.18470 (UniRec), as in the authors' code. There every two
items of a user are a pair, and of an item taken again every time counts; here the first time does,
and pairs are at most REACH items apart, which is what a window of theirs holds.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan.data.base import Packed
from stepscan.data.tables import ticks
from stepscan.train.enhance import Tables

KEPT = 10
"""Neighbours of an item, as published."""
REACH = 50


def tables(train: Packed, counts: Int[Tensor, " V"], *, calendar: bool, kept: int = KEPT) -> Tables:
    """What `Enhance` wants to know of the training part.

    Args:
        train: Histories, with "when" and "uneven".
        counts: How often each item is in it; 0 for symbol 0.
        calendar: Whether times are dates.
        kept: Neighbours of each item K.
    """
    assert train.tokens is not None
    everything = train.targets_at(torch.arange(len(train)))
    items = train.tokens[:, 0].long()
    when = everything["when"].double() / ticks(calendar)
    owner = torch.repeat_interleave(train.lengths)
    variance = item_variances(items, when, len(counts))
    near = nearest(items, owner, when, variance, len(counts), kept)
    known = variance[variance.isfinite()]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    spread = ((variance - low) / max(float(high - low), 1e-9)).clamp(max=1).float()
    ends = train.begins + train.lengths - 1
    return Tables(counts, spread, near, everything["uneven"][ends])


def item_variances(
    items: Int[Tensor, " N"], when: Float[Tensor, " N"], vocab: int
) -> Float[Tensor, " V"]:
    """Of the times between takings of each item by anyone (n - 1 below); infinite where it is taken
    fewer than three times."""
    order = torch.argsort(when, stable=True)
    order = order[torch.argsort(items[order], stable=True)]
    item, time = items[order], when[order]
    same = item[1:] == item[:-1]
    gap, which = (time[1:] - time[:-1])[same], item[1:][same]
    zero = torch.zeros(vocab, dtype=torch.float64)
    count = zero.index_add(0, which, torch.ones_like(gap))
    mean = zero.index_add(0, which, gap) / count.clamp_min(1)
    square = zero.index_add(0, which, (gap - mean[which]).square())
    return torch.where(count > 1, square / (count - 1).clamp_min(1), torch.inf)


def nearest(
    items: Int[Tensor, " N"],
    owner: Int[Tensor, " N"],
    when: Float[Tensor, " N"],
    variance: Float[Tensor, " V"],
    vocab: int,
    kept: int,
) -> Int[Tensor, "V K"]:
    """The items of the highest scores, best first; itself where there are not so many."""
    first = _first_takings(items, owner, vocab)
    items, owner, when = items[first], owner[first], when[first]
    users = owner.bincount()[owner].double()
    takers = items.bincount(minlength=vocab).double()
    keys, values = [], []
    for apart in range(1, REACH + 1):
        together = (owner[apart:] == owner[:-apart]).nonzero()[:, 0]
        if not len(together):
            break
        a, b = items[together], items[together + apart]
        weight = 1 / (1 + users[together]).log()
        between = when[together + apart] - when[together]
        one = torch.stack([weight, between, torch.ones_like(weight)], 1)
        key, place = torch.cat([a * vocab + b, b * vocab + a]).unique(return_inverse=True)
        keys.append(key)
        values.append(one.new_zeros(len(key), 3).index_add(0, place, torch.cat([one, one])))
    found = torch.arange(vocab)[:, None].repeat(1, kept)
    if not keys:
        return found
    key, place = torch.cat(keys).unique(return_inverse=True)
    weight, between, count = (
        torch.zeros(len(key), 3, dtype=torch.float64).index_add(0, place, torch.cat(values)).T
    )
    i, j = key // vocab, key % vocab
    score = scores(weight / (takers[i] * takers[j]).sqrt(), between / count, variance[j])
    order = torch.argsort(score, descending=True, stable=True)
    order = order[torch.argsort(i[order], stable=True)]
    i, j = i[order], j[order]
    rank = torch.arange(len(i)) - torch.searchsorted(i, i)
    few = rank < kept
    found[i[few], rank[few]] = j[few]
    return found


def scores(
    similarity: Float[Tensor, " P"], between: Float[Tensor, " P"], variance: Float[Tensor, " P"]
) -> Float[Tensor, " P"]:
    """How good a neighbour is, see the module docstring."""
    near, even = (1 / (1 + torch.log1p(x)) for x in (between, variance))
    return 0.4 * similarity / (1 + similarity) + 0.8 * near + 0.5 * even


def _first_takings(
    items: Int[Tensor, " N"], owner: Int[Tensor, " N"], vocab: int
) -> Int[Tensor, " M"]:
    """Where each user takes each item for the first time."""
    _, place = (owner * vocab + items).unique(return_inverse=True)
    at = torch.full((int(place.max()) + 1 if len(place) else 0,), len(items))
    at = at.scatter_reduce(0, place, torch.arange(len(items)), "amin")
    return at.sort().values
