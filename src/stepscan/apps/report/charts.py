"""The pictures of a section as inline SVG: scores, learning curves, quality against cost.

Line weights and colours live in style.css. Baselines are grey, hollow or dashed. Nothing is drawn
outside its axes: what lies beyond is put at the edge with an arrow.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stepscan.apps.report.drawing import (
    BOTTOM,
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    Looks,
    axes,
    beside,
    cut,
    end_labels,
    inside,
    label_room,
    level_line,
    marker,
    share,
    svg,
)
from stepscan.apps.report.figures import decimals, score
from stepscan.apps.report.markup import Markup, tag
from stepscan.apps.report.scales import Scale, linear, logarithmic, spans_decades, tick_texts
from stepscan.apps.report.standings import (
    LONG,
    SHORT,
    Section,
    Standing,
    at_length,
    best,
    finite,
    lower_is_better,
    noun,
    overall_best,
    standings,
)


def focus(values: Sequence[float], *, lower: bool, reach: float = 4) -> tuple[float, float]:
    """Return the stretch worth looking at: from the best value to `reach` times past the median.

    One candidate that learnt nothing must not press all the others into one line.
    """
    ordered = sorted(values, reverse=not lower)
    lead, middle, last = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    limit = lead + reach * (middle - lead) if middle != lead else last
    worst = min(last, limit) if lower else max(last, limit)
    return (lead, worst) if lower else (worst, lead)


def window(ranked: Sequence[Standing], *, lower: bool) -> list[float]:
    """Return what the axis of the scores must hold: the models, their bars, the best baseline.

    Bars are held up to a third of the range, since two seeds can make them absurdly long, and the
    baseline unless it is so far off that the models would become a single dot.
    """
    models = [one for one in ranked if not one.baseline and one.interval] or ranked
    low, high = focus([x for one in models for x in one.scores if x is not None], lower=lower)
    spare = (high - low) / 3
    held = [one.interval for one in models if one.interval and low <= one.interval.mean <= high]
    bars = [x.mean + side * min(x.half or 0.0, spare) for x in held for side in (-1, 1)]
    low, high = min([low, *bars]), max([high, *bars])
    rival = best(list(ranked), baseline=True)
    mark = rival.interval.mean if rival and rival.interval else low
    far = max(low - mark, mark - high) > 10 * (high - low)
    return [low, high] if far else [low, high, mark]


# Scores -----------------------------------------------------------------------------------------


def scores(section: Section, looks: Looks) -> Markup:
    """Return every candidate's score with its interval: rows of HTML, which fit any width."""
    ranked = standings(section)
    if not any(one.interval for one in ranked):
        return tag("p", "Every candidate failed.", class_="note")
    lower = lower_is_better(section, section["metric"])
    scale = linear(window(ranked, lower=lower), 0.0, 100.0)
    ticks = scale.ticks(4)
    places = decimals(one.interval for one in ranked)
    leader = overall_best(ranked, lower=lower)
    rows = []
    for k, one in enumerate(ranked):
        first_baseline = one.baseline and (k == 0 or not ranked[k - 1].baseline)
        lines = [
            tag("line", x1=share(scale(x)), x2=share(scale(x)), y1=0, y2=26, class_="grid")
            for x in ticks
        ]
        track = tag("svg", *lines, *_row(one, scale, looks), class_="track", height=26)
        value = score(one.interval, places) if one.interval else ""
        name = tag("span", looks.chip(one.name), one.name, class_="name", title=one.name)
        classes = ["row", *(["apart"] if first_baseline else [])]
        classes += ["best"] if one is leader else []
        rows.append(
            tag("div", name, track, tag("span", value, class_="value"), class_=" ".join(classes))
        )
    marks = [
        tag("text", label, x=share(scale(x)), y=12, class_="tick middle")
        for x, label in zip(ticks, tick_texts(ticks), strict=True)
    ]
    axis = tag("svg", *marks, class_="track", height=16)
    empty = tag("span")
    rows.append(tag("div", empty, axis, empty, class_="row foot"))
    return tag("div", *rows, class_=f"scores {looks.colour(ranked[0].name)}", role="img")


def _row(one: Standing, scale: Scale, looks: Looks) -> list[Markup]:
    if one.interval is None:
        word = "failed" if one.failed else "not scored"
        return [tag("text", word, x="100%", y=17, class_="end failed")]
    mean, half, _n = one.interval
    if not scale.holds(mean):  # an arrow at the edge that it lies beyond
        beyond, side = ("▸", "end") if mean > scale.high else ("◂", "start")
        word = tag("text", beyond, x=share(scale.clamp(mean)), y=18, class_=f"beyond {side}")
        return [tag("g", word, class_=looks.colour(one.name))]
    parts = []
    if half is not None:
        left, right = share(scale.clamp(mean - half)), share(scale.clamp(mean + half))
        parts.append(tag("line", x1=left, x2=right, y1=13, y2=13, class_="whisker"))
    if len(one.scores) > 1:
        parts += [
            tag("circle", tag("title", f"{x:.5g}"), cx=share(scale(x)), cy=22, r=1.6, class_="seed")
            for x in one.scores
            if x is not None and scale.holds(x)
        ]
    mark = marker(0, 13, looks.shape(one.name), 5.5, title=f"{one.name}: {mean:.5g}")
    parts.append(tag("svg", mark, x=share(scale(mean)), class_="at"))
    if one.failed:
        word = f"{one.failed} of {len(one.scores)} failed"
        parts.append(tag("text", word, x="100%", y=17, class_="end failed"))
    return [tag("g", *parts, class_=looks.colour(one.name))]


# Learning curves --------------------------------------------------------------------------------


class Curve(NamedTuple):
    """One candidate's way down: a line per seed, and their mean where all were measured."""

    name: str
    seeds: list[list[tuple[float, float | None]]]
    mean: list[tuple[float, float]]
    """Of the seeds that did not fail; of all while they lived, if none came through."""
    label: str
    """The name, and how many seeds failed on the way."""


def learning_curves(section: Section, looks: Looks, by: str) -> Markup | None:
    """Return the score during training by `"seconds"` or by `"tokens"`; None without curves.

    A baseline that gives a curve (one point will do) is a dashed level: only then is its score
    known on the part of the data that the curves are measured on.
    """
    found = [_curve(one, by) for one in section["candidates"]]
    curves = [x for x in found if x.name in looks.order and x.mean]
    if not curves:
        return None
    lower = lower_is_better(section, section["metric"])
    levels = {x.name: x.mean[-1][1] for x in found if x.name not in looks.order and x.mean}
    xs = [x for curve in curves for seed in curve.seeds for x, y in seed if y is not None]
    log = spans_decades(xs)
    right = WIDTH - label_room([curve.label for curve in curves])
    start = min(xs) if log else 0.0
    across = Scale(start, max(*xs, start + 1e-9), LEFT, right, log=log)
    lines_of_seeds = [seed for curve in curves for seed in curve.seeds]
    settled = [y for seed in lines_of_seeds for _x, y in seed[len(seed) // 2 :] if y is not None]
    settled += [y for curve in curves for _x, y in curve.mean[-1:]]
    down = linear([*focus(settled, lower=lower, reach=3), *levels.values()], HEIGHT - BOTTOM, TOP)
    by_name = f"{noun(section)} read" if by == "tokens" else "training time"
    lines = [level_line(name, y, down, right) for name, y in levels.items()]
    for curve in curves:
        colour = looks.colour(curve.name)
        if len(curve.seeds) > 1:
            lines += [_path(seed, across, down, f"line thin {colour}") for seed in curve.seeds]
        lines.append(_path(curve.mean, across, down, f"line {colour}", title=curve.name))
    box = (LEFT, TOP - 4, right - LEFT + 2, HEIGHT - BOTTOM - TOP + 4)
    ends = [
        (curve.label, looks.colour(curve.name), across(x), down.clamp(y))
        for curve in curves
        for x, y in curve.mean[-1:]
    ]
    parts = [
        *axes(across, down, by_name, clock=by == "seconds"),
        inside(box, lines),
        *end_labels(ends, right),
    ]
    return svg(parts, f"{section['metric']} by {by_name}")


def _curve(candidate: Mapping[str, Any], by: str) -> Curve:
    name, seeds = str(candidate["name"]), []
    for run in candidate.get("curve") or ():
        pairs = zip(run.get(by) or (), run.get("score") or (), strict=False)
        points = [(x, finite(y)) for raw, y in pairs if (x := finite(raw)) is not None]
        if any(y is not None for _x, y in points):
            seeds.append(points)
    alive = [seed for seed in seeds if seed[-1][1] is not None]
    known = [[(x, y) for x, y in seed if y is not None] for seed in alive or seeds]
    failed = len(seeds) - len(alive)
    label = f"{cut(name)} ({failed} failed)" if failed else cut(name)
    return Curve(name, seeds, _mean(known), label)


def _mean(seeds: list[list[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Return the mean over seeds at every place that lies within all of them."""
    if len(seeds) <= 1:
        return seeds[0] if seeds else []
    start, end = max(seed[0][0] for seed in seeds), min(seed[-1][0] for seed in seeds)
    places = sorted({x for seed in seeds for x, _y in seed if start <= x <= end} | {start, end})
    rows = [[_between(seed, x) for seed in seeds] for x in places if start <= end]
    return [(x, sum(row) / len(row)) for x, row in zip(places, rows, strict=False)]


def _between(line: list[tuple[float, float]], x: float) -> float:
    k = min(max(bisect_right(line, x, key=lambda point: point[0]), 1), len(line) - 1)
    if len(line) == 1:
        return line[0][1]
    (x0, y0), (x1, y1) = line[k - 1], line[k]
    return y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def _path(
    points: Sequence[tuple[float, float | None]],
    across: Scale,
    down: Scale,
    class_: str,
    title: str | None = None,
) -> Markup:
    """Return a line that breaks where a value is missing."""
    words, pen = [], "M"
    for x, y in points:
        if y is None or (across.log and x <= 0):
            pen = "M"
            continue
        words.append(f"{pen}{across(x):.1f} {down(y):.1f}")
        pen = "L"
    return tag("path", tag("title", title) if title else None, d="".join(words), class_=class_)


# Quality against cost ---------------------------------------------------------------------------


class Point(NamedTuple):
    """One candidate on a picture of quality against cost."""

    one: Standing
    early: float | None
    """Cost with a short past."""
    late: float
    """Cost with a long past."""


def trade_off(section: Section, looks: Looks, entry: str) -> Markup | None:
    """Return score against `"decode_per_second"` or `"state_bytes"`; None if nobody has it."""
    ranked = [one for one in standings(section) if one.interval is not None]
    points, levels = [], []
    for one in ranked:
        measured = one.candidate.get(entry)
        early, late = at_length(measured, SHORT), at_length(measured, LONG)
        if late:
            points.append(Point(one, early or None, late))
        elif one.baseline:
            levels.append(one)
    if not points:
        return None
    lower = lower_is_better(section, section["metric"])
    binary = entry == "state_bytes"
    level = best(levels, baseline=True)
    shown = [*(p.one for p in points), *([level] if level else [])]
    down = linear(window(shown, lower=lower), HEIGHT - BOTTOM, TOP, room=0.1)
    costs = [x for p in points for x in (p.early, p.late) if x]
    across = logarithmic(costs, LEFT, WIDTH - 16)
    title = "bytes of state per sequence" if binary else f"decoding, {noun(section)}/s, one stream"
    parts = axes(across, down, title, binary=binary)
    marks = [_cost_mark(p, across, down, looks) for p in points]
    taken = [area for _mark, areas in marks for area in areas]
    if level and level.interval:
        parts.append(level_line(level.name, level.interval.mean, down, across.end, taken))
    parts += [mark for mark, _areas in reversed(marks)]  # the best on top
    wanted = [
        (p.one.name, looks.colour(p.one.name), areas[0])
        for p, (_mark, areas) in zip(points, marks, strict=True)
    ]
    parts += beside(wanted, taken)
    return svg(parts, f"{section['metric']} against {title}")


def _cost_mark(
    p: Point, across: Scale, down: Scale, looks: Looks
) -> tuple[Markup, list[tuple[float, float, float, float]]]:
    """Return a mark at the long past, joined to where the candidate began with a short one.

    Also the boxes it covers, its own first.
    """
    interval = p.one.interval
    assert interval is not None
    x, y = across(p.late), down.clamp(interval.mean)
    areas = [(x - 7, y - 7, x + 7, y + 7)]
    parts = []
    if p.early and abs(across(p.early) - x) > 3:
        start = across(p.early)
        parts.append(tag("line", x1=start, x2=x, y1=y, y2=y, class_="trail"))
        parts.append(marker(start, y, "circle", 3, class_="hollow", title="after 1k"))
        areas.append((min(start - 4, x), y - 4, max(start + 4, x), y + 4))
    if interval.half is not None and down.holds(interval.mean):
        ends = down.clamp(interval.mean - interval.half), down.clamp(interval.mean + interval.half)
        parts.append(tag("line", x1=x, x2=x, y1=ends[0], y2=ends[1], class_="whisker"))
        areas.append((x - 2, min(ends), x + 2, max(ends)))
    shape = looks.shape(p.one.name)
    if not down.holds(interval.mean):
        shape = "up" if interval.mean > down.high else "down"
    kind = "hollow" if p.one.baseline else "mark"
    parts.append(marker(x, y, shape, 5.5, class_=kind, title=f"{p.one.name}: {interval.mean:.5g}"))
    return tag("g", *parts, class_=looks.colour(p.one.name)), areas
