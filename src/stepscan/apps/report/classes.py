"""Pictures of a classifier: which class was taken for which, and how far to trust a probability."""

from collections.abc import Mapping, Sequence
from typing import Any

from stepscan.apps.report.drawing import (
    BOTTOM,
    HEIGHT,
    LEFT,
    LETTER,
    TOP,
    WIDTH,
    Looks,
    axes_frame,
    cut,
    svg,
)
from stepscan.apps.report.markup import Markup, join, tag
from stepscan.apps.report.scales import Scale

LONG = 14  # letters of a class name beside the matrix
ROOMY = 15  # classes: with more, names and numbers would not be read
CELL = 44  # largest side of a cell
FAINT = 0.08  # how strongly the rarest confusion is drawn


def confusion(example: Mapping[str, Any], looks: Looks) -> Markup:
    """Return a matrix for each model: a row is a class, a column is what it was called."""
    classes = [str(name) for name in example["classes"]]
    figures = [
        tag(
            "figure",
            tag("figcaption", looks.chip(str(one["from"])), one["from"]),
            _matrix(classes, one["counts"], str(one["from"]), looks),
        )
        for one in example["matrices"]
    ]
    note = (
        "Row: the class; column: what it was called. Numbers are held-out sequences, shades are "
        "shares of the row: in the model's colour where it was right, in orange where it was not."
    )
    return join(
        tag("h4", example["title"]),
        tag("div", *figures, class_="charts"),
        tag("p", note, class_="note"),
    )


def calibration(example: Mapping[str, Any], looks: Looks) -> Markup:
    """Return a curve for each model: share right against the probability that was given."""
    figures = [
        tag(
            "figure",
            tag("figcaption", looks.chip(str(one["from"])), one["from"]),
            _curve(one["bins"], str(one["from"]), looks),
        )
        for one in example["curves"]
    ]
    note = (
        "Across: mean probability of the likeliest class, in bins; up: share of them that was "
        "right; the larger a mark, the more sequences. On the dashed line probabilities can be "
        "taken at their word; below it they promise too much."
    )
    return join(
        tag("h4", example["title"]),
        tag("div", *figures, class_="charts"),
        tag("p", note, class_="note"),
    )


def _matrix(
    classes: Sequence[str], counts: Sequence[Sequence[int]], name: str, looks: Looks
) -> Markup:
    shown = [cut(one, LONG) for one in classes]
    named = len(classes) <= ROOMY
    letters = max(map(len, shown), default=0)
    left = 26 + (LETTER * letters if named else 0)
    side = min(CELL, (WIDTH - left - 8) / max(1, len(classes)))
    upright = letters * LETTER <= side - 4
    top = 22 + (0 if not named else 14 if upright else 0.75 * LETTER * letters)
    wide, high = left + side * len(classes) + 8, top + side * len(classes) + 8
    middle = (left + wide - 8) / 2, (top + high - 8) / 2
    turned = f"rotate(-90 12 {middle[1]:.1f})"
    parts = [
        tag("text", "called", x=middle[0], y=13, class_="tick middle"),
        tag("text", "is", x=12, y=middle[1], class_="tick middle", transform=turned),
    ]
    for i, words in enumerate(shown if named else ()):
        at = left + (i + 0.5) * side
        down = top + (i + 0.5) * side + 4
        slant = f"rotate({0 if upright else -45} {at + 3:.1f} {top - 5:.1f})"
        turn = "tick middle" if upright else "tick start"
        parts.append(tag("text", words, x=left - 6, y=down, class_="tick end"))
        across = at if upright else at + 3
        parts.append(tag("text", words, x=across, y=top - 5, class_=turn, transform=slant))
    for i, row in enumerate(counts):
        whole = sum(row)
        for j, count in enumerate(row):
            x, y = left + j * side, top + i * side
            share = count / whole if whole else 0.0
            said = f"{count:,} of {whole:,} of class {classes[i]} called {classes[j]}"
            shade = {"fill_opacity": FAINT + (1 - FAINT) * share} if count else {}
            kind = "cell" if not count else "cell hit" if i == j else "cell miss"
            box = {"x": x + 0.5, "y": y + 0.5, "width": side - 1, "height": side - 1}
            parts.append(tag("rect", tag("title", said), class_=kind, **box, **shade))
            if count and side >= 18:
                strong = " strong" if share > 0.55 else ""
                place = {"x": x + side / 2, "y": y + side / 2 + 4}
                parts.append(tag("text", f"{count}", class_=f"number middle{strong}", **place))
    label = f"confusion matrix of {name}"
    body = tag("g", *parts, class_=looks.colour(name))
    most = f"max-width: {max(wide, 200) * 1.25:.0f}px"
    box = f"0 0 {wide:.0f} {high:.0f}"
    return tag("svg", body, viewBox=box, class_="chart", role="img", aria_label=label, style=most)


def _curve(bins: Sequence[Sequence[float]], name: str, looks: Looks) -> Markup:
    across = Scale(0.0, 1.0, LEFT, WIDTH - 12)
    down = Scale(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    words = [f"{x:.0%}" for x in ticks]
    parts = axes_frame(across, down, ticks, words)
    floor = HEIGHT - BOTTOM
    for x, label in zip(ticks, words, strict=True):
        parts.append(tag("text", label, x=across(x), y=floor + 17, class_="tick middle"))
    middle = (LEFT + across.end) / 2
    parts.append(tag("text", "probability given", x=middle, y=HEIGHT - 6, class_="tick middle"))
    ends = {"x1": across(0), "y1": down(0), "x2": across(1), "y2": down(1)}
    parts.append(tag("line", class_="level", **ends))
    places = [(across(x), down(y)) for x, y, _ in bins]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    total = sum(n for _, _, n in bins) or 1
    marks = [tag("path", d=path, class_="line")] if len(places) > 1 else []
    for (x, y), (mean, right, n) in zip(places, bins, strict=True):
        said = f"{n:,} sequences: given {mean:.0%}, right {right:.0%}"
        size = 3 + 9 * (n / total) ** 0.5
        marks.append(tag("circle", tag("title", said), cx=x, cy=y, r=size, class_="mark"))
    parts.append(tag("g", *marks, class_=looks.colour(name)))
    return tag("div", svg(parts, f"calibration of {name}"), style=f"max-width: {1.1 * WIDTH:.0f}px")
