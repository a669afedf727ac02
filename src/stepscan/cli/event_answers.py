"""What a model of events answers, as rows of a table for people."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stepscan.names import lookup

VERBS = MappingProxyType(
    {"next": "predict", "time": "next_time", "remaining": "remaining_time", "suffix": "suffix"}
)


def event_rows(
    model: Any,
    history: tuple[str, ...],
    file: Path | None,
    *,
    what: str,
    times: tuple[str, ...],
    top: int,
    exclude_seen: bool,
    beams: int | None,
) -> list[dict[str, Any]]:
    """One row for each answer; those to a file have the name of the case in front."""
    verb = lookup(VERBS, what, kind="question to a model of events")
    if file is not None:
        if times:
            raise ValueError("predict: --times are of a history; a table has its own")
        answers: Mapping[str, Any] = model.predict_table(
            file, what=what, top=top, exclude_seen=exclude_seen, beams=beams
        )
        each = ((name, row) for name, one in answers.items() for row in _rows(model, what, one))
        return [{"of": name} | row for name, row in each]
    known = times or None
    if what == "next":
        answer = model.predict(history, top=top, times=known, exclude_seen=exclude_seen)
    elif what == "suffix":
        answer = model.suffix(history, known, beams=beams)[: beams or top]
    else:
        answer = getattr(model, verb)(history, known)
    return _rows(model, what, answer)


def _rows(model: Any, what: str, answer: Any) -> list[dict[str, Any]]:
    """`answer` is what the verb returns; of a case in a table one suffix, of a history several."""
    unit = "seconds" if model.schema.calendar else "units of time"
    if what == "next":
        return [
            {"place": i, "what": p.what, "probability": p.probability}
            for i, p in enumerate(answer, start=1)
        ]
    if what != "suffix":
        name = {"time": "to the next event", "remaining": "to the last event"}[what]
        return [{f"{unit} {name}": answer}]
    return [
        {
            "place": i,
            "what": " ".join(one.what) + (" (ends)" if one.ended else " ..."),
            "events": len(one.what),
            f"{unit} to the last of them": one.times[-1] if one.times else 0.0,
            "probability": one.probability,
        }
        for i, one in enumerate(answer if isinstance(answer, list) else [answer], start=1)
    ]
