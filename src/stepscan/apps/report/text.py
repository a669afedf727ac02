"""The leaderboard as plain text, for a terminal."""

from collections.abc import Mapping
from typing import Any

from stepscan.apps.report.figures import CANNOT, clock, count, decimals, score, size
from stepscan.apps.report.standings import (
    LONG,
    SHORT,
    Section,
    Standing,
    at_length,
    noun,
    standings,
)


def opening(section: Section) -> str:
    """Return the line above the leaderboard: what every candidate was given."""
    budget = section["budget"]
    seeds = len(budget["seeds"])
    each = clock(60 * budget["minutes"])
    return f"equal time on this machine: {each} each, interleaved, {seeds} seed{'s' * (seeds != 1)}"


def leaderboard(section: Section) -> list[str]:
    """Return the table, header first: one line a candidate, best first, baselines last."""
    ranked = standings(section)
    places = decimals(one.interval for one in ranked)
    unit = noun(section)
    rows = [["", section["metric"], f"{unit}/s", f"decode {unit}/s at 64k", "state after 64k"]]
    rows += [[one.name, score_or_failed(one, places), *_costs(one.candidate)] for one in ranked]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "   ".join(x.ljust(width) for x, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def score_or_failed(one: Standing, places: int) -> str:
    """Return the score, with the number of failed seeds said."""
    if not one.failed:
        return score(one.interval, places)
    if one.interval is None:
        return "failed"
    return f"{score(one.interval, places)} ({one.failed} of {len(one.scores)} failed)"


def mean_rate(candidate: Mapping[str, Any]) -> float | None:
    """Return tokens per second of training, averaged over seeds."""
    rates = [x for x in candidate.get("tokens_per_second") or () if x]
    return sum(rates) / len(rates) if rates else None


def state(candidate: Mapping[str, Any]) -> str:
    """Return the size of the state after 64k tokens, and whether it grew on the way."""
    sizes = candidate.get("state_bytes")
    early, late = at_length(sizes, SHORT), at_length(sizes, LONG)
    if late is None:
        return CANNOT
    return size(late) + (" (grows)" if early is not None and early != late else "")


def _costs(candidate: Mapping[str, Any]) -> list[str]:
    decode = at_length(candidate.get("decode_per_second"), LONG)
    return [count(mean_rate(candidate)), count(decode), state(candidate)]
