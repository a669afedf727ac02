"""Where the wanted item stands in a full ranking, and the usual figures made from it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan.apps.domain import Metric, Scores

TOP = 10
METRICS = (
    Metric(
        f"HR@{TOP}",
        "higher",
        f"Share of users whose held-out last item is among the {TOP} best of all items (full "
        "ranking, nothing sampled, items seen before included; ties share their places).",
    ),
    Metric(
        f"NDCG@{TOP}",
        "higher",
        f"1 / log2(1 + rank) of the held-out item where its rank is at most {TOP}, else 0; mean "
        "over users.",
    ),
    Metric("MRR", "higher", "1 / rank of the held-out item among all items; mean over users."),
)


def ranks(scores: Float[Tensor, "N V"], wanted: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """The place of each wanted item, 1 for the best; equal scores share their places evenly.

    Symbol 0 is what was never seen: it is never offered, and wanting it is a rank of infinity.
    """
    scores = scores.clone()
    scores[:, 0] = -torch.inf
    own = scores.gather(1, wanted[:, None])
    above = (scores > own).sum(1)
    ties = (scores == own).sum(1) - 1
    place = 1 + above + ties / 2
    place = torch.where(wanted == 0, torch.inf, place.double())
    return place.masked_fill(own[:, 0].isnan(), torch.nan)  # a broken model ranks nothing


def without(logits: Float[Tensor, "... V"], seen: Tensor | None = None) -> Float[Tensor, "... V"]:
    """Logits of what may be offered: symbol 0 never, nor what is in `seen`."""
    logits = logits.index_fill(
        -1, torch.zeros(1, dtype=torch.long, device=logits.device), -torch.inf
    )
    return logits if seen is None else logits.index_fill(-1, seen.unique(), -torch.inf)


def best(logits: Float[Tensor, " V"], count: int) -> list[int]:
    """The likeliest symbols that may be offered, best first; fewer where there are not so many."""
    return logits.topk(min(count, int(logits.isfinite().sum()))).indices.tolist()


def measures(rank: Float[Tensor, " N"], at: Sequence[int] = (TOP,)) -> Scores:
    """HR, NDCG, MRR, recall and precision at each of these lengths of a list.

    One item is wanted of each user, so recall@k equals HR@k, and precision@k is HR@k / k. MRR@k
    counts a rank beyond k as 0; `summary` has the MRR without a limit.
    """
    found: Scores = {}
    for k in at:
        if k < 1:
            raise ValueError(f"measures: want lengths of at least 1, got {k}")
        inside = (rank <= k).double().where(~rank.isnan(), torch.nan)
        values = {
            "HR": inside,
            "NDCG": inside / (1 + rank).log2(),
            "MRR": inside / rank,
            "recall": inside,
            "precision": inside / k,
        }
        found |= {f"{name}@{k}": float(value.mean()) for name, value in values.items()}
    return found


def summary(rank: Float[Tensor, " N"]) -> Scores:
    """The METRICS of these ranks."""
    inside = rank <= TOP
    values = (inside.double(), inside / (1 + rank).log2(), 1 / rank)
    return {m.name: float(v.mean()) for m, v in zip(METRICS, values, strict=True)}
