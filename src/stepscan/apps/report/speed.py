"""Pictures of speed: time per token against length, one panel for each op and pass."""

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from stepscan.apps.report.drawing import (
    BOTTOM,
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    axes,
    cut,
    end_labels,
    label_room,
    marker,
    svg,
)
from stepscan.apps.report.markup import Markup, tag
from stepscan.apps.report.scales import logarithmic

GAP, HEAD, ACROSS, COLOURS = 32, 36, 3, 8
FONT = "ui-sans-serif, system-ui, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"

Row = Mapping[str, Any]


def picture(rows: Sequence[Row]) -> str:
    """A file that needs nothing else; both axes are logarithmic."""
    timed = [row for row in rows if row["us/token"]]
    names = list(dict.fromkeys((row["op"], row["pass"]) for row in timed))
    if not names:
        raise ValueError("speed: nothing was timed, so there is nothing to draw")
    panels: list[Markup] = []
    for i, (op, what) in enumerate(names):
        found = [row for row in timed if (row["op"], row["pass"]) == (op, what)]
        left, top = i % ACROSS * (WIDTH + GAP) + GAP / 2, i // ACROSS * (HEIGHT + HEAD) + HEAD
        title = tag("text", f"{op}, {what}", x=LEFT, y=-8, class_="title")
        panels.append(tag("g", title, _panel(found), transform=f"translate({left:g} {top:g})"))
    width = min(len(names), ACROSS) * (WIDTH + GAP)
    height = -(-len(names) // ACROSS) * (HEIGHT + HEAD)
    board = tag("rect", width=width, height=height, class_="board")
    return str(
        tag(
            "svg",
            Markup(f"<style>{_style()}</style>"),
            board,
            *panels,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width} {height}",
            role="img",
            aria_label="Time per token against length, one panel for each op and pass",
        )
    )


def _panel(rows: Sequence[Row]) -> Markup:
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        lines.setdefault(row["form"], []).append((row["T"], row["us/token"]))
    right = WIDTH - label_room([cut(name) for name in lines])
    across = logarithmic([row["T"] for row in rows], LEFT, right)
    down = logarithmic([row["us/token"] for row in rows], HEIGHT - BOTTOM, TOP)
    parts, ends = axes(across, down, "tokens T, microseconds per token"), []
    for i, (name, points) in enumerate(lines.items()):
        colour = f"c{i % COLOURS}"
        places = [(across(T), down(time)) for T, time in sorted(points)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(tag("path", tag("title", name), d=path, class_=f"line {colour}"))
        parts += [tag("g", marker(x, y, "circle", 3), class_=colour) for x, y in places]
        ends.append((cut(name), colour, *places[-1]))
    parts += end_labels(ends, right)
    inner = svg(parts, "Time per token against length")
    # Nested pictures need a size.
    return Markup(re.sub("<svg ", f'<svg width="{WIDTH}" height="{HEIGHT}" ', inner, count=1))


def _style() -> str:
    """The rules of the report that its charts use: colours, light and dark, and chart classes."""
    sheet = files("stepscan.apps.report").joinpath("style.css").read_text()
    colours = sheet[: sheet.index("* { box-sizing")]
    chart = sheet[sheet.index(".chart text") : sheet.index(".wide {")]
    return f"""{colours}{chart}
svg {{ font-family: {FONT} }} .chart {{ overflow: visible }} .board {{ fill: var(--paper) }}
.title {{ font-size: 14px; font-weight: 600; fill: var(--ink) }}
"""
