"""The report of a bench: heat maps of mixers x tasks, lines over length, tables, the protocol."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from stepscan.apps.report import heat_map_png
from stepscan.apps.report.document import document, write_page
from stepscan.apps.report.drawing import (
    BOTTOM,
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    Looks,
    axes_frame,
    cut,
    end_labels,
    label_room,
    svg,
)
from stepscan.apps.report.figures import count, size
from stepscan.apps.report.markup import Markup, tag
from stepscan.apps.report.scales import Scale, logarithmic, texts

Results = Mapping[str, Any]
Cell = Mapping[str, Any]

BOX, NAMES, HEAD = (46, 22), 190, 130
LINES = 8
"""Mixers that a picture of lines shows: the first of the ranking."""
FONT = "ui-sans-serif, system-ui, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"
HUE = "11 102 183"
PNG_TITLE = "stepscan bench: percent of what can be gained over guessing"


def write(results: Results, folder: Path) -> None:
    """report.html and matrix.svg into the folder."""
    picture = heat_map(results, "1", alone=True)
    write_page(f'<?xml version="1.0" encoding="UTF-8"?>\n{picture}\n', folder / "matrix.svg")
    write_page(page(results), folder / "report.html")


def write_png(results: Results, path: Path) -> None:
    """The heat map at the training length; `ImportError` names the extra that it wants."""
    scores = _above_chance(results, "1")
    heat_map_png.write(path, _rows(results), _columns(results), scores, title=PNG_TITLE)


def page(results: Results) -> Markup:
    """The whole page."""
    factors = _factors(results)
    far = factors[-1]
    body = [
        tag("p", "stepscan bench", class_="brand"),
        tag("h1", "Which memory does a task need?"),
        tag("p", _meta(results), class_="meta"),
    ]
    main = [
        tag("section", tag("h2", "What was found"), _list(results["findings"])),
        tag(
            "section",
            tag("h2", "Mixers and tasks"),
            tag("p", LEGEND, class_="note"),
            tag("figure", heat_map(results, "1"), class_="wide"),
        ),
    ]
    if far != "1":
        main += [
            tag(
                "section",
                tag("h2", f"At {far} times the training length"),
                tag("figure", heat_map(results, far), class_="wide"),
            ),
            tag("section", tag("h2", "Score by length"), *_length_figures(results, factors)),
        ]
    if "sweep" in results:
        main.append(tag("section", tag("h2", "Hybrids"), _hybrids(results["sweep"])))
    main += [
        tag("section", tag("h2", "Score by bytes of state"), *_state_figures(results)),
        tag("section", tag("h2", "What was published, held against it"), _orderings(results)),
        tag("section", tag("h2", "Every cell"), _numbers(results, factors)),
        tag("section", tag("h2", "Protocol"), _protocol(results)),
    ]
    return document(
        results["title"], [tag("header", *body), tag("main", *main), tag("footer", _foot(results))]
    )


LEGEND = (
    "Each number is the share of what can be gained over guessing: 0 guesses, 100 answers "
    "everything. Best learning rate of the sweep, mean over seeds. Columns stand together by the "
    "ability they ask for; rows by their mean. Empty: diverged, failed or not run."
)


def _meta(results: Results) -> str:
    plan = results["protocol"]
    equal = {"parameters": "parameters", "state": "bytes of state", "width": "channels"}
    parts = (
        f"{len(results['mixers'])} mixers, {len(results['tasks'])} tasks",
        f"about {plan['size']:,} {equal[plan['match']]} each",
        f"{_several(len(plan['rates']), 'learning rate')}, {_several(plan['seeds'], 'seed')}",
        str(results.get("created", ""))[:10],
    )
    return " · ".join(parts)


def _several(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number > 1)}"


# Heat maps --------------------------------------------------------------------------------------


def heat_map(results: Results, factor: str, *, alone: bool = False) -> Markup:
    """Mixers down, tasks across, at one length; `alone` makes it a file of its own."""
    scores = _above_chance(results, factor)
    mixers, tasks = _rows(results), _columns(results)
    wide, high = BOX
    parts: list[Markup] = []
    for i, (ability, task) in enumerate(tasks):
        x = NAMES + i * wide + wide / 2 + 4
        turn = f"translate({x:g} {HEAD - 8}) rotate(-52)"
        parts.append(tag("text", cut(task, 22), transform=turn, class_="name"))
        if i and tasks[i - 1][0] != ability:
            line = {"x1": NAMES + i * wide, "x2": NAMES + i * wide}
            parts.append(tag("line", y1=HEAD, y2=HEAD + len(mixers) * high, class_="apart", **line))
    for j, mixer in enumerate(mixers):
        y = HEAD + j * high
        at = {"x": NAMES - 8, "y": y + high / 2 + 4}
        parts.append(tag("text", cut(mixer, 26), class_="name end", **at))
        for i, (_, task) in enumerate(tasks):
            score = scores.get((mixer, task))
            if score is not None:
                parts.append(_square(NAMES + i * wide, y, score, f"{mixer} on {task}"))
    width, height = NAMES + len(tasks) * wide + 60, HEAD + len(mixers) * high + 8
    style = [tag("style", Markup(_style(alone=alone)))]
    if alone:
        style.append(tag("rect", width=width, height=height, class_="board"))
    return tag(
        "svg",
        *style,
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        width=width,
        role="img",
        class_="heat",
        aria_label=f"Scores of mixers on tasks at {factor} times the training length",
    )


def _square(x: float, y: float, score: float, title: str) -> Markup:
    wide, high = BOX
    kind = "cell dark" if score > 0.55 else "cell"
    fill = f"rgb({HUE} / {0.04 + 0.96 * score:.2f})"
    box = tag("rect", x=x + 1, y=y + 1, width=wide - 2, height=high - 2, rx=3, fill=fill)
    words = tag("text", f"{100 * score:.0f}", x=x + wide / 2, y=y + high / 2 + 4, class_=kind)
    return tag("g", tag("title", f"{title}: {score:.3f}"), box, words)


def _style(*, alone: bool) -> str:
    ink = ".heat { --i: #1b2127; --b: #fff } "
    dark = "@media (prefers-color-scheme: dark) { .heat { --i: #e8ebed; --b: #13171b } } "
    return (
        f"{ink}{dark}.heat text {{ font: 12px {FONT}; fill: var(--i) }} "
        ".heat .end { text-anchor: end } .heat .cell { text-anchor: middle; font-size: 11px } "
        ".heat .dark { fill: #fff } .heat .apart { stroke: var(--i); stroke-opacity: .35 } "
        f"{'.heat .board { fill: var(--b) }' if alone else ''}"
    )


# Lines and points -------------------------------------------------------------------------------


def _length_figures(results: Results, factors: Sequence[str]) -> list[Markup]:
    looks = _looks(results)
    shown = _rows(results)[:LINES]
    figures = []
    for _, task in _columns(results):
        lines = {
            mixer: [(float(f), s) for f in factors if (s := scores.get(f)) is not None]
            for mixer in shown
            if (scores := _by_factor(results, mixer, task))
        }
        if lines:
            figures.append(_figure(task, _lines(lines, looks, [float(f) for f in factors])))
    note = (
        f"The first {LINES} of the ranking. 1 is the training length, both axes from guessing to 1."
    )
    return [tag("p", note, class_="note"), tag("div", *figures, class_="pair")]


def _lines(
    lines: Mapping[str, Sequence[tuple[float, float]]], looks: Looks, at: Sequence[float]
) -> Markup:
    right = WIDTH - label_room([cut(name) for name in lines])
    across, down = logarithmic(at, LEFT, right), Scale(-0.05, 1.05, HEIGHT - BOTTOM, TOP)
    parts = _frame(across, down, at, "times the training length", [f"{x:g}" for x in at])
    ends = []
    for name, points in lines.items():
        colour = looks.colour(name)
        path = "L".join(f"{across(x):.1f} {down(y):.1f}" for x, y in points)
        parts.append(tag("path", tag("title", name), d=f"M{path}", class_=f"line {colour}"))
        x, y = points[-1]
        ends.append((cut(name), colour, across(x), down(y)))
    return svg([*parts, *end_labels(ends, right)], "Score by length")


def _state_figures(results: Results) -> list[Markup]:
    looks = _looks(results)
    groups: dict[str, list[Cell]] = {}
    for cell in results["cells"]:
        groups.setdefault(results["abilities"][cell["task"]], []).append(cell)
    scores = _above_chance(results, "1")
    figures = []
    for ability, cells in groups.items():
        points = {
            mixer: [
                (c["state_bytes"], scores[mixer, c["task"]])
                for c in cells
                if c["mixer"] == mixer and c["state_bytes"] and (mixer, c["task"]) in scores
            ]
            for mixer in _rows(results)
        }
        found = {
            m: (fmean(x for x, _ in p), fmean(y for _, y in p)) for m, p in points.items() if p
        }
        if len(found) > 1:
            figures.append(_figure(ability, _points(found, looks)))
    note = "Mean over the tasks of an ability; bytes of one row's state after a training sequence."
    return [tag("p", note, class_="note"), tag("div", *figures, class_="pair")]


def _middle(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return fmean(x for x, _ in points), fmean(y for _, y in points)


def _points(found: Mapping[str, tuple[float, float]], looks: Looks) -> Markup:
    right = WIDTH - label_room([cut(name) for name in found])
    xs = [x for x, _ in found.values()]
    across, down = logarithmic(xs, LEFT, right), Scale(-0.05, 1.05, HEIGHT - BOTTOM, TOP)
    ticks = across.ticks(4, binary=True)
    parts = _frame(across, down, ticks, "bytes of state", texts(ticks, log=True, binary=True))
    ends = []
    for name, (x, y) in found.items():
        colour = looks.colour(name)
        at = {"cx": across(x), "cy": down(y), "r": 4}
        parts.append(tag("circle", tag("title", f"{name}: {y:.2f}"), class_=f"dot {colour}", **at))
        ends.append((cut(name), colour, across(x), down(y)))
    labels = end_labels(ends, right) if len(ends) <= 2 * LINES else []
    return svg([*parts, *labels], "Score by bytes of state")


def _frame(
    across: Scale, down: Scale, ticks: Sequence[float], title: str, words: Sequence[str]
) -> list[Markup]:
    levels = [0.0, 0.25, 0.5, 0.75, 1.0]
    parts = axes_frame(across, down, levels, [f"{x:g}" for x in levels])
    for x, label in zip(ticks, words, strict=True):
        parts.append(tag("text", label, x=across(x), y=HEIGHT - BOTTOM + 16, class_="tick middle"))
    middle = (LEFT + across.end) / 2
    return [*parts, tag("text", title, x=middle, y=HEIGHT - 6, class_="tick middle")]


def _figure(caption: str, picture: Markup) -> Markup:
    return tag("figure", tag("figcaption", caption), picture)


# Tables -----------------------------------------------------------------------------------------


def _orderings(results: Results) -> Markup:
    if not results["orderings"]:
        return tag("p", "None of the mixers and tasks at hand bears on a published ordering.")
    show = lambda group: ", ".join(f"{m} {100 * v:.0f}" for m, v in group.items())  # noqa: E731
    rows = []
    for o in results["orderings"]:
        task = f"{o['task']} x{o['length']}"
        groups = show(o["better"]), show(o["worse"])
        rows.append((o["claim"], task, *groups, o["verdict"], o["source"]))
    return _table(("published", "task", "should win", "should lose", "here", "source"), rows)


def _hybrids(sweep: Mapping[str, Any]) -> Markup:
    rows = [
        (
            row["task"],
            row["linear"] or "none",
            row["ratio"],
            f"{row['mean']:.3f}",
            "-" if row["spread"] is None else f"{row['spread']:.3f}",
            str(row["seeds"]),
        )
        for row in sorted(sweep["grid"], key=lambda r: (r["task"], r["linear"] or "~", r["full"]))
    ]
    head = ("task", "linear mixer", "linear:full", "above chance", "deviation", "seeds")
    return _table(head, rows)


def _numbers(results: Results, factors: Sequence[str]) -> Markup:
    head = ("task", "mixer", *(f"x{f}" for f in factors), "rate", "steps")
    head += ("core seconds", "parameters", "state")
    rows = []
    for _, task in _columns(results):
        for mixer in _rows(results):
            cell = _cell(results, mixer, task)
            if cell is not None:
                scores = [_with_spread(cell["scores"].get(f, [])) for f in factors]
                steps = f"{fmean(cell['steps']):.0f}"
                seconds = f"{fmean(cell.get('total_seconds', cell['seconds'])):.1f}"
                cost = (seconds, count(cell["parameters"]), size(cell["state_bytes"]))
                rows.append((task, mixer, *scores, f"{cell['rate']:g}", steps, *cost))
    rows += [(f["task"], f["mixer"], f["why"]) for f in results["failed"]]
    return _table(head, rows)


def _with_spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"


def _protocol(results: Results) -> Markup:
    rows = [(name, str(value)) for name, value in results["protocol"].items()]
    rows += [(f"chance of {task}", f"{value:.3f}") for task, value in results["chance"].items()]
    return _table(("what", "value"), rows)


def _foot(results: Results) -> Markup:
    machine = ", ".join(str(v) for v in results.get("machine", {}).values())
    versions = ", ".join(f"{k} {v}" for k, v in results.get("versions", {}).items())
    said = f"{results.get('command', '')} · {machine} · {versions}"
    return tag("p", said, class_="note")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    top = tag("tr", *(tag("th", word) for word in head))
    body = [tag("tr", *(tag("td", word) for word in row)) for row in rows]
    return tag("div", tag("table", tag("thead", top), tag("tbody", *body)), class_="scroll")


def _list(lines: Sequence[str]) -> Markup:
    return tag("ul", *(tag("li", line) for line in lines))


# What the cells hold ----------------------------------------------------------------------------


def _cell(results: Results, mixer: str, task: str) -> Cell | None:
    found = (c for c in results["cells"] if (c["mixer"], c["task"]) == (mixer, task))
    return next(found, None)


def _by_factor(results: Results, mixer: str, task: str) -> dict[str, float]:
    cell, chance = _cell(results, mixer, task), results["chance"][task]
    scores = cell["scores"] if cell else {}
    gain = lambda values: max(0.0, (fmean(values) - chance) / (1 - chance))  # noqa: E731
    return {factor: gain(values) for factor, values in scores.items() if values}


def _above_chance(results: Results, factor: str) -> dict[tuple[str, str], float]:
    found = {}
    for cell in results["cells"]:
        scores = _by_factor(results, cell["mixer"], cell["task"])
        if factor in scores:
            found[cell["mixer"], cell["task"]] = scores[factor]
    return found


def _rows(results: Results) -> list[str]:
    """Mixers by their mean over tasks, best first; what was not scored counts as guessing."""
    scores = _above_chance(results, "1")
    mean = lambda mixer: fmean(scores.get((mixer, task), 0.0) for task in results["tasks"])  # noqa: E731
    return sorted(results["mixers"], key=lambda mixer: -mean(mixer))


def _columns(results: Results) -> list[tuple[str, str]]:
    """(ability, task), abilities in the order of their first task."""
    order = list(dict.fromkeys(results["abilities"][task] for task in results["tasks"]))
    pairs = [(results["abilities"][task], task) for task in results["tasks"]]
    return sorted(pairs, key=lambda pair: order.index(pair[0]))


def _factors(results: Results) -> list[str]:
    return [str(factor) for factor in results["protocol"]["factors"]]


def _looks(results: Results) -> Looks:
    return Looks([{"candidates": [{"name": mixer} for mixer in _rows(results)]}])
