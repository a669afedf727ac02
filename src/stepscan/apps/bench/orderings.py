"""What was published about which mixer beats which, held against the cells at hand."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

from stepscan.apps.bench.matrix import Cell, above_chance
from stepscan.apps.bench.pairs import on_task
from stepscan.tasks import TASKS

CLEAR = 0.1
"""Difference of scores above chance that counts, where the seeds do not decide."""
SOLVED = 0.9


class Claim(NamedTuple):
    """On these tasks, every mixer of the first group beats every one of the second."""

    words: str
    source: str
    tasks: tuple[str, ...]
    better: tuple[str, ...]
    worse: tuple[str, ...]
    factor: str = "1"
    """At which length."""
    least: float = 0.0
    """What the first group scores, where it is said to solve the task."""


CLAIMS = (
    Claim(
        "factors down to -1 solve parity, which factors from 0 to 1 cannot",
        "Grazzi et al. 2024, arXiv:2411.12537",
        ("parity",),
        ("min_gru[eig_range=(-1,1)]",),
        ("min_gru",),
        "4",
        SOLVED,
    ),
    Claim(
        "nonlinear recurrence tracks states over lengths that gates in [0, 1] cannot",
        "Merrill et al. 2024, arXiv:2404.08819",
        ("parity", "word_problem"),
        ("lstm", "slstm", "elman", "gru"),
        ("mamba", "gla", "linear_attention", "attention"),
        "4",
    ),
    Claim(
        "recurrence keeps a bit where attention glitches",
        "Liu et al. 2023, arXiv:2306.00946",
        ("flip_flop",),
        ("lstm", "gru"),
        ("attention",),
        "4",
    ),
    Claim(
        "products of Householder steps solve S3, one step does not",
        "Siems et al. 2025, arXiv:2502.10297",
        ("word_problem",),
        ("gated_delta_product",),
        ("delta_net", "gated_delta_net"),
        least=SOLVED,
    ),
    Claim(
        "the delta rule overwrites, linear attention adds",
        "Schlag et al. 2021, arXiv:2102.11174",
        ("rebinding",),
        ("delta_net", "gated_delta_net"),
        ("linear_attention", "retnet"),
    ),
    Claim(
        "softmax attention wins exact lookup by its growing memory",
        "Arora et al. 2023, arXiv:2312.04927",
        ("recall",),
        ("attention",),
        ("linear_attention", "mamba", "gla", "lstm"),
    ),
    Claim(
        "selection by the input copies what a fixed filter cannot",
        "Gu and Dao 2023, arXiv:2312.00752",
        ("selective_copy",),
        ("mamba",),
        ("s4d", "lru"),
    ),
    Claim(
        "gating helps selectivity: linear attention with gates beats that without",
        "arXiv:2601.12598",
        ("rule_grammar",),
        ("gla", "gated_delta_net"),
        ("linear_attention",),
    ),
    Claim(
        "state spaces started from HiPPO remember signals better than gated cells",
        "Gu et al. 2021, arXiv:2111.00396",
        ("delay",),
        ("s4d", "s4"),
        ("gru", "lstm"),
    ),
    Claim(
        "attention copies strings longer than those it was trained on worse than it copies those",
        "Jelassi et al. 2024, arXiv:2402.01032",
        ("copying",),
        ("attention",),
        ("mamba", "gla"),
    ),
)


def check(cells: Sequence[Cell], claims: Sequence[Claim] = CLAIMS) -> list[dict[str, Any]]:
    """Each claim, with the scores that speak for or against it; those without any are left out."""
    found = []
    for claim in claims:
        for task in claim.tasks:
            if task in TASKS and (row := _check(claim, task, cells)) is not None:
                found.append(row)
    return found


def _check(claim: Claim, task: str, cells: Sequence[Cell]) -> dict[str, Any] | None:
    at_hand = {
        cell["mixer"]: [above_chance(v, task) for v in cell["scores"].get(claim.factor, [])]
        for cell in cells
        if cell["task"] == task
    }
    better = {m: v for m, v in at_hand.items() if v and _of(m, claim.better)}
    worse = {m: v for m, v in at_hand.items() if v and _of(m, claim.worse) and m not in better}
    if not better or not worse:
        return None
    pairs = [(fmean(a) - fmean(b), _sure(a, b)) for a in better.values() for b in worse.values()]
    if all(gap > 0 and sure for gap, sure in pairs):
        solved = all(fmean(v) >= claim.least for v in better.values())
        verdict = "reproduced" if solved else "in part"
    elif any(gap < 0 and sure for gap, sure in pairs):
        verdict = "contradicted"
    elif any(gap > 0 and sure for gap, sure in pairs):
        verdict = "in part"
    else:
        verdict = "not shown"
    return {
        "claim": claim.words,
        "source": claim.source,
        "task": task,
        "length": claim.factor,
        "better": {m: fmean(v) for m, v in better.items()},
        "worse": {m: fmean(v) for m, v in worse.items()},
        "verdict": verdict,
        "leads": [
            {"better": a, "worse": b, "mean": gap.mean, "half": gap.half, "seeds": gap.count}
            for a in better
            for b in worse
            if (gap := on_task(cells, a, b, task, claim.factor)) is not None
        ],
    }


def _of(mixer: str, group: Sequence[str]) -> bool:
    """Whether a mixer belongs to a group. With options it counts as that mixer, delta_net[window=1]
    as delta_net; where the group names options, only with these.
    """
    return mixer.replace(" ", "") in group or mixer.partition("[")[0] in group


def _sure(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two groups of seeds lie apart: by more than CLEAR, and without overlap."""
    return abs(fmean(a) - fmean(b)) > CLEAR and (min(a) > max(b) or max(a) < min(b))
