"""What the report shows of labelled sequences; see docs/results.md for the form."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from stepscan.apps.labelled.metrics import confusion, reliability

MANY = 30  # classes of a confusion matrix and rows of the table; the commonest of them
SHOWN = 12


def of_classes(
    chance: Mapping[str, Float[np.ndarray, "M K"]],
    label: Int[np.ndarray, " M"],
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """Confusion matrices, a table of the classes, and how often probabilities came true."""
    counts = np.bincount(label, minlength=len(classes))
    shown = np.sort(np.argsort(-counts, kind="stable")[:MANY])
    more = f"; the {MANY} commonest of {len(classes)} classes" if len(classes) > MANY else ""
    tables = {
        name: confusion(p.argmax(1), label, len(classes))
        for name, p in chance.items()
        if np.isfinite(p).all()
    }
    found: list[dict[str, Any]] = [
        {
            "type": "confusion",
            "title": f"Which class was taken for which{more}",
            "classes": [classes[i] for i in shown],
            "matrices": [
                {"from": name, "counts": table[np.ix_(shown, shown)].tolist()}
                for name, table in tables.items()
            ],
        }
    ]
    rows: list[list[Any]] = []
    for i in shown:
        row: list[Any] = [classes[i], int(counts[i])]
        for table in tables.values():
            hit, said = table[i, i], table[:, i].sum()
            row += [float(hit / counts[i]) if counts[i] else None]
            row += [float(hit / said) if said else None]
        rows.append(row)
    heads = [f"{name}: {what}" for name in tables for what in ("found", "right when said")]
    found.append(
        {
            "type": "table",
            "title": "Class by class: share found (recall), and share right (precision)",
            "columns": ["class", "sequences", *heads],
            "rows": rows,
        }
    )
    curves = [
        {"from": name, "bins": [list(b) for b in reliability(chance[name], label)]}
        for name in tables
    ]
    if curves:
        title = "How often the likeliest class was right, by its probability"
        found.append({"type": "calibration", "title": title, "curves": curves})
    return found


def of_texts(said: Mapping[str, Sequence[str]], real: Sequence[str]) -> list[dict[str, Any]]:
    """Some held-out texts as they are written and as they were read."""
    rows = [list(row) for row in zip(real, *said.values(), strict=True)]
    title = "Some held-out sequences: what is written, and what was read"
    return [{"type": "table", "title": title, "columns": ["written", *said], "rows": rows}]


def of_numbers(
    said: Mapping[str, Float[np.ndarray, " M"]], real: Float[np.ndarray, " M"]
) -> list[dict[str, Any]]:
    """Some held-out numbers, from the smallest to the largest, and what was said."""
    order = np.argsort(real, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int)]
    rows = [[float(real[i]), *(float(x[i]) for x in said.values())] for i in chosen]
    title = "Some held-out sequences, from the smallest number to the largest"
    return [{"type": "table", "title": title, "columns": ["is", *said], "rows": rows}]
