"""A forecast over its history: the recent past, what came, the median and the bands."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from stepscan.apps.report.drawing import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, Looks, axes_frame, svg
from stepscan.apps.report.markup import Markup, tag
from stepscan.apps.report.scales import Scale, linear, tick_texts
from stepscan.apps.report.standings import finite

PAST = 3
"""At most so many horizons of history are shown, or the forecast would be a sliver."""
STEPS = (
    *(timedelta(minutes=m) for m in (1, 5, 15, 30)),
    *(timedelta(hours=h) for h in (1, 3, 6, 12)),
    *(timedelta(days=d) for d in (1, 2, 7, 14, 30, 91, 182, 365, 730, 1826, 3652)),
)


def panels(example: Mapping[str, Any], looks: Looks) -> list[tuple[str, Markup]]:
    """Return a picture for each forecaster of the example, all on the same axes."""
    actual = [finite(x) for x in example["actual"]]
    history = [finite(x) for x in example["history"]][-PAST * len(actual) :]
    bands = [
        (str(one["from"]), {float(q): [finite(x) for x in y] for q, y in one["quantiles"].items()})
        for one in example["forecasts"]
    ]
    shown = [*history, *actual, *(x for _name, b in bands for y in b.values() for x in y)]
    known = [x for x in shown if x is not None]
    if not known:
        return []
    total = len(history) + len(actual)
    times = [str(x) for x in example.get("times") or ()][-total:]
    down = linear(known, HEIGHT - BOTTOM, TOP)
    across = Scale(0, max(total - 1, 1), LEFT, WIDTH - 8)
    return [
        (name, _panel(name, history, actual, band, times, across, down, example, looks))
        for name, band in bands
    ]


def _panel(
    name: str,
    history: list[float | None],
    actual: list[float | None],
    band: Mapping[float, list[float | None]],
    times: Sequence[str],
    across: Scale,
    down: Scale,
    example: Mapping[str, Any],
    looks: Looks,
) -> Markup:
    begin = len(history)
    quantiles = sorted(band)
    ticks = down.ticks(5)
    parts = axes_frame(across, down, ticks, tick_texts(ticks), str(example.get("unit", "")))
    parts += _time_axis(times, begin + len(actual), across)
    if history:
        edge = across(begin - 0.5)
        parts.append(tag("line", x1=edge, x2=edge, y1=TOP, y2=HEIGHT - BOTTOM, class_="now"))
    coloured = []
    for low, high in zip(quantiles, reversed(quantiles), strict=True):
        if low < high:
            area = _area(band[low], band[high], begin, across, down)
            coloured.append(tag("path", d=area, class_="band"))
    middle = min(quantiles, key=lambda q: abs(q - 0.5), default=None)
    parts.append(tag("path", d=_line(history, 0, across, down), class_="past"))
    joined = [history[-1] if history else None, *actual]
    parts.append(tag("g", *coloured, class_=looks.colour(name)))
    parts.append(tag("path", d=_line(joined, begin - 1, across, down), class_="actual"))
    if middle is not None:
        path = _line(band[middle], begin, across, down)
        parts.append(tag("path", d=path, class_=f"line {looks.colour(name)}"))
    return svg(parts, f"forecast of {name}: {example['title']}")


def _line(values: Sequence[float | None], start: int, across: Scale, down: Scale) -> str:
    words, pen = [], "M"
    for k, y in enumerate(values, start):
        if y is None:
            pen = "M"
            continue
        words.append(f"{pen}{across(k):.1f} {down(y):.1f}")
        pen = "L"
    return "".join(words)


def _area(
    low: Sequence[float | None],
    high: Sequence[float | None],
    start: int,
    across: Scale,
    down: Scale,
) -> str:
    rows = enumerate(zip(low, high, strict=True), start)
    both = [(k, a, b) for k, (a, b) in rows if a is not None and b is not None]
    above = [f"{across(k):.1f} {down(b):.1f}" for k, _a, b in both]
    below = [f"{across(k):.1f} {down(a):.1f}" for k, a, _b in reversed(both)]
    return f"M{'L'.join([*above, *below])}Z" if both else ""


def _time_axis(times: Sequence[str], total: int, across: Scale) -> list[Markup]:
    """Return ticks at round times; at round step numbers where the times cannot be read."""
    marks = _round_times(times) if len(times) == total else None
    if marks is None:
        marks = [(x, f"{x:,.0f}") for x in across.ticks(5)]
    floor = HEIGHT - BOTTOM
    parts = []
    for x, label in marks:
        place = across(x)
        parts.append(tag("line", x1=place, x2=place, y1=floor, y2=floor + 4, class_="axis"))
        parts.append(tag("text", label, x=place, y=floor + 17, class_="tick middle"))
    return parts


def _round_times(times: Sequence[str]) -> list[tuple[float, str]] | None:
    try:
        moments = [datetime.fromisoformat(x).replace(tzinfo=None) for x in times]
    except ValueError:
        return None
    span = moments[-1] - moments[0]
    step = next((s for s in STEPS if span / s <= 6), STEPS[-1])
    if span <= timedelta(0):
        return None
    marks: list[tuple[float, str]] = []
    for k, moment in enumerate(moments[1:], 1):
        if _period(moment, step) != _period(moments[k - 1], step):
            marks.append((k, _moment_words(moment, step, first=not marks)))
    least = len(times) / 9  # long ticks (months) may fall close together
    return [m for j, m in enumerate(marks) if j == 0 or m[0] - marks[j - 1][0] >= least] or None


def _period(moment: datetime, step: timedelta) -> int:
    """Return the number of the hour, day, month ... that `moment` lies in, counted by steps."""
    if step < timedelta(days=30):
        return math.floor((moment - datetime(1970, 1, 5)) / step)  # a Monday: weeks begin there
    months = max(1, round(step / timedelta(days=30.44)))
    return (moment.year * 12 + moment.month - 1) // months


def _moment_words(moment: datetime, step: timedelta, *, first: bool) -> str:
    if step < timedelta(days=1):
        midnight = moment.hour == moment.minute == 0
        return f"{moment.day} {moment:%b}" if midnight else f"{moment:%H:%M}"
    if step < timedelta(days=30):
        return f"{moment.day} {moment:%b}"
    if step < timedelta(days=365):
        return f"{moment:%b %Y}" if first or moment.month == 1 else f"{moment:%b}"
    return f"{moment:%Y}"
