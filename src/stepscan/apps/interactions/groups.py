"""Who is served well: users of even and of uneven habits, items taken often and seldom.

A mean over all users hides that most models serve the regular user and the popular item. Users
are even where the variance of the times between their interactions, up to the question, is at most
the median over all users asked; items are of the head if they are among the fifth that is taken
most often in training, else of the tail.
Source: Liu, Wang and Feng 2024, arXiv:2406.18470 (UniRec): uniformity as low variance of intervals,
results by uniform and other sequences, by frequent and other items; the cuts are ours.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepscan.apps.ranking import TOP, measures

HEAD = 0.2
"""Share of the items that are of the head."""


def groups(
    uneven: Float[Tensor, " U"], wanted: Int[Tensor, " U"], counts: Int[Tensor, " V"]
) -> dict[str, Bool[Tensor, " U"]]:
    """Which users belong to which group.

    Args:
        uneven: Variance of the intervals of each user; NaN where there are fewer than two.
        wanted: The item that each user took; 0 for one never seen.
        counts: How often each item, from 1 on, is in the training part.
    """
    known = ~uneven.isnan()
    middle = uneven[known].median() if known.any() else torch.tensor(torch.nan)
    size = max(1, round(HEAD * len(counts)))
    head = torch.zeros(len(counts) + 1, dtype=torch.bool)
    head[counts.argsort(descending=True, stable=True)[:size] + 1] = True
    return {
        "users of even intervals": known & (uneven <= middle),
        "users of uneven intervals": known & (uneven > middle),
        f"items of the head ({HEAD:.0%} taken most)": head[wanted],
        "items of the tail": ~head[wanted],
    }


def table(
    found: Mapping[str, Bool[Tensor, " U"]], ranks: Mapping[str, Float[Tensor, " U"]]
) -> dict[str, Any]:
    """NDCG of every model in every group, as apps/report shows a table."""
    rows: list[list[Any]] = []
    for name, inside in found.items():
        cells = [
            f"{measures(rank[inside])[f'NDCG@{TOP}']:.3f}" if inside.any() else "-"
            for rank in ranks.values()
        ]
        rows.append([name, f"{int(inside.sum()):,}", *cells])
    return {
        "type": "table",
        "title": f"Who is served well: NDCG@{TOP} by group",
        "columns": ["group", "users", *ranks],
        "rows": rows,
    }
