"""Tables of the report on events: held-out cases, and what the simple methods took."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from stepscan.apps.events.classical import Judged
from stepscan.apps.events.metrics import GAP, similarity
from stepscan.apps.events.mixture import median
from stepscan.apps.events.questions import cut, suffix_questions
from stepscan.apps.events.suffix import read_histories
from stepscan.apps.events.suffix import suffixes as continued
from stepscan.apps.ranking import best, without
from stepscan.models import SequenceModel

if TYPE_CHECKING:
    from stepscan.apps.events.domain import Events

SHOWN = 6  # cases
WORDS = 8  # events of a suffix


def next_events(domain: "Events", models: Mapping[str, SequenceModel]) -> dict[str, Any]:
    """The last events of some cases, what came next and when, and what each model expected."""
    schema, packed = domain.schema, domain.dataset.parts["test"]
    assert packed.tokens is not None
    names = schema.names
    cases = torch.linspace(0, len(packed.begins) - 1, SHOWN + 2).long()[1:-1].unique()
    cases = cases[packed.lengths[cases] > 2]
    begins = packed.begins[cases]
    ends = begins + packed.lengths[cases] - 2
    came = packed.targets_at(ends)
    rows: list[list[Any]] = []
    told = (begins, ends, came["token"], came["gap"])
    for begin, end, token, gap in zip(*(x.tolist() for x in told), strict=True):
        last = packed.tokens[max(end - 2, begin) : end + 1, 0].tolist()
        after = domain.real_time(GAP.name, gap)
        rows.append([" ".join(names[i] for i in last), names[token], after])
    for model in models.values():
        if not rows:
            break
        said = read_histories(model, packed, begins, ends, reach=domain.reach).said
        middle = median(said.gap[:, 0]).tolist()
        for row, logits, gap in zip(rows, said.logits[:, 0], middle, strict=True):
            chance = logits.softmax(-1)
            likely = best(without(logits), 2)
            words = ", ".join(f"{names[i]} {chance[i]:.0%}" for i in likely)
            row.append(f"{words}; {domain.real_time(GAP.name, gap)}")
    return {
        "type": "table",
        "title": "Next events of held-out cases, with probabilities and median times",
        "columns": ["last events", "came next", "after", *models],
        "rows": rows,
    }


def suffixes(domain: "Events", models: Mapping[str, SequenceModel]) -> dict[str, Any]:
    """How some cases went on, and how each model thought they would."""
    schema, packed = domain.schema, domain.dataset.parts["test"]
    asked = suffix_questions(packed, schema, most=SHOWN)
    rows: list[list[Any]] = [
        [f"... {schema.names[history[-1]]}", len(history), _words(real, schema.names)]
        for history, real in zip(asked.histories, asked.real, strict=True)
    ]
    for model in models.values():
        found = continued(model, schema, packed, asked.begins, asked.ends, reach=domain.reach)
        said = cut([one[0].symbols if one else [] for one in found], asked, schema)
        for row, symbols, real in zip(rows, said, asked.real, strict=True):
            row.append(f"{_words(symbols, schema.names)} ({similarity(symbols, real):.2f})")
    what = "The rest of held-out cases" if schema.ends else "What came next in held-out cases"
    return {
        "type": "table",
        "title": f"{what}, as predicted (similarity)",
        "columns": ["after", "events read", "came", *models],
        "rows": rows,
    }


def methods(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """What the simple methods took; those that are slow were fitted to fewer events."""
    if not judged:
        return []
    return [
        {
            "type": "table",
            "title": "Simple methods: events they were fitted to, and how long that took",
            "columns": ["method", "events", "seconds"],
            "rows": [[one.name, one.events, round(one.seconds, 3)] for one in judged],
        }
    ]


def _words(symbols: Sequence[int], names: Sequence[str]) -> str:
    if not symbols:
        return "nothing more"
    more = f" ... {len(symbols) - WORDS} more" if len(symbols) > WORDS else ""
    return " ".join(names[i] for i in symbols[:WORDS]) + more
