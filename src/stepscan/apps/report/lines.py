"""Values at named places, a line each: error by steps ahead, influence by distance."""

import math
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
    end_labels,
    label_room,
    marker,
    svg,
)
from stepscan.apps.report.markup import Markup, join, tag
from stepscan.apps.report.scales import Scale, linear, tick_texts
from stepscan.apps.report.standings import finite

GAP = 8
"""Between the names of two places."""


def example(one: Mapping[str, Any], looks: Looks) -> Markup:
    """Return the picture under its title, with what there is to say of it."""
    picture = lines(one, looks)
    figure = tag("figure", tag("figcaption", one["y"]), picture) if picture else None
    note = tag("p", one["note"], class_="note") if one.get("note") else None
    return join(tag("h4", one["title"]), tag("div", figure, note, class_="charts"))


def lines(one: Mapping[str, Any], looks: Looks) -> Markup | None:
    """Return the picture; None if there is nothing finite to draw."""
    places = [str(place) for place in one["places"]]
    drawn = [(str(x["from"]), [finite(y) for y in x["values"]]) for x in one["lines"]]
    known = [y for _, values in drawn for y in values if y is not None]
    if not known:
        return None
    down = linear([0.0, *known], HEIGHT - BOTTOM, TOP)
    right = WIDTH - label_room([cut(name) for name, _ in drawn])
    across = Scale(0, max(len(places) - 1, 1), LEFT + 8, right)
    ticks = down.ticks(5)
    parts = axes_frame(across, down, ticks, tick_texts(ticks))
    parts += _places(places, str(one["x"]), across)
    ends = []
    for name, values in drawn:
        colour = looks.colour(name)
        points = [(k, y) for k, y in enumerate(values) if y is not None]
        if not points:
            continue
        path = "L".join(f"{across(k):.1f} {down(y):.1f}" for k, y in points)
        kind = "line" if name in looks.order else "line dashed"
        parts.append(tag("path", tag("title", name), d=f"M{path}", class_=f"{kind} {colour}"))
        shape = looks.shape(name)
        marks = [
            marker(across(k), down(y), shape, 3, title=f"{name}, {places[k]}: {y:.3g}")
            for k, y in points
        ]
        parts.append(tag("g", *marks, class_=colour))
        ends.append((cut(name), colour, across(points[-1][0]), down(points[-1][1])))
    return svg([*parts, *end_labels(ends, right)], f"{one['y']} by {one['x']}: {one['title']}")


def _places(places: Sequence[str], title: str, across: Scale) -> list[Markup]:
    """Return ticks with as many names as there is room for, and the title below."""
    floor = HEIGHT - BOTTOM
    between = (across.end - across.start) / max(1, len(places) - 1)
    every = math.ceil((GAP + LETTER * max(map(len, places))) / between)
    parts = []
    for k in range(0, len(places), every):
        x = across(k)
        parts.append(tag("line", x1=x, x2=x, y1=floor, y2=floor + 4, class_="axis"))
        parts.append(tag("text", places[k], x=x, y=floor + 17, class_="tick middle"))
    middle = (LEFT + across.end) / 2
    return [*parts, tag("text", title, x=middle, y=HEIGHT - 6, class_="tick middle")]
