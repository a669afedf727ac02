"""What the pictures share: colours and shapes, axes, and labels that do not cover each other."""

from collections.abc import Sequence

from stepscan.apps.report.markup import Markup, tag
from stepscan.apps.report.scales import Scale, texts, tick_texts
from stepscan.apps.report.standings import Section

WIDTH, HEIGHT = 440, 300
TOP, BOTTOM, LEFT = 14, 44, 46
LETTER = 7.1
"""A cautious width of one letter of a label."""
LINE = 14
"""Least distance between two labels, one above the other."""


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


class Looks:
    """Which colour and shape each candidate wears, the same in all sections."""

    COLOURS = 8
    SHAPES = ("circle", "square", "triangle", "diamond")

    def __init__(self, sections: Sequence[Section]) -> None:
        every = [one for section in sections for one in section["candidates"]]
        names = (str(one["name"]) for one in every if not one.get("baseline"))
        self.order = {name: k for k, name in enumerate(dict.fromkeys(names))}

    def colour(self, name: str) -> str:
        """Return the class that sets the colour."""
        return f"c{self.order[name] % self.COLOURS}" if name in self.order else "base"

    def shape(self, name: str) -> str:
        """Return the shape of the marker; differs even where colours come round again."""
        k = self.order.get(name, 0)
        return self.SHAPES[(k + k // self.COLOURS) % len(self.SHAPES)]

    def chip(self, name: str) -> Markup:
        """Return a small marker to stand before the name in running text."""
        mark = marker(7, 7, self.shape(name), 4.5)
        return tag("svg", mark, class_=f"chip {self.colour(name)}", width=14, height=14)


def marker(
    x: float, y: float, shape: str, r: float, *, class_: str = "mark", title: str | None = None
) -> Markup:
    """Return a marker centred on (x, y)."""
    label = tag("title", title) if title else None
    if shape == "circle":
        return tag("circle", label, cx=float(x), cy=float(y), r=r, class_=class_)
    points = {
        "square": ((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)),
        "triangle": ((0, -1.15), (1.1, 0.85), (-1.1, 0.85)),
        "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
        "up": ((0, -1), (0.9, 0.6), (-0.9, 0.6)),
        "down": ((0, 1), (0.9, -0.6), (-0.9, -0.6)),
    }[shape]
    path = " ".join(f"{x + r * dx:.1f},{y + r * dy:.1f}" for dx, dy in points)
    return tag("polygon", label, points=path, class_=class_)


def axes(
    across: Scale, down: Scale, title: str, *, binary: bool = False, clock: bool = False
) -> list[Markup]:
    """Return the grid and both axes; `clock` labels seconds, `binary` labels bytes."""
    levels = down.ticks(5)
    parts = axes_frame(across, down, levels, tick_texts(levels))
    if clock:
        ticks, labels = _time_ticks(across)
    else:
        ticks = across.ticks(5, binary=binary)
        labels = texts(ticks, log=across.log or across.high >= 1e4, binary=binary)
    floor = HEIGHT - BOTTOM
    for x, label in zip(ticks, labels, strict=True):
        parts.append(tag("line", x1=across(x), x2=across(x), y1=floor, y2=floor + 4, class_="axis"))
        parts.append(tag("text", label, x=across(x), y=floor + 17, class_="tick middle"))
    middle = (LEFT + across.end) / 2
    parts.append(tag("text", title, x=middle, y=HEIGHT - 6, class_="tick middle"))
    return parts


def axes_frame(
    across: Scale, down: Scale, ticks: Sequence[float], labels: Sequence[str], unit: str = ""
) -> list[Markup]:
    """Return the horizontal grid with its labels, the floor, and the unit above the labels."""
    parts = []
    for y, label in zip(ticks, labels, strict=True):
        parts.append(tag("line", x1=LEFT, x2=across.end, y1=down(y), y2=down(y), class_="grid"))
        parts.append(tag("text", label, x=LEFT - 6, y=down(y) + 4, class_="tick end"))
    floor = HEIGHT - BOTTOM
    parts.append(tag("line", x1=LEFT, x2=across.end, y1=floor, y2=floor, class_="axis"))
    if unit:
        parts.append(tag("text", cut(unit), x=LEFT + 6, y=TOP - 2, class_="tick start"))
    return parts


def _time_ticks(across: Scale) -> tuple[list[float], list[str]]:
    """Return round seconds, minutes or hours."""
    if across.log:
        ticks = across.ticks(5)
        return ticks, texts(ticks, log=True, binary=False)
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
    step = next((s for s in steps if across.high / s <= 6), 86400)
    ticks = [float(k * step) for k in range(int(across.high / step) + 1)]
    unit, word = (1, "s") if step < 60 else (60, "min") if step < 3600 else (3600, "h")
    labels = [f"{x / unit:g}" for x in ticks]
    return ticks, [*labels[:-1], f"{labels[-1]} {word}"]


def level_line(name: str, y: float, down: Scale, right: float, taken: Sequence[Box] = ()) -> Markup:
    """Return a dashed line across the picture with its name, or words at the edge it is beyond."""
    words = cut(name, 30)
    if not down.holds(y):
        place, arrow = (TOP + 8, "▴") if y > down.high else (HEIGHT - BOTTOM - 8, "▾")
        return tag("text", f"{arrow} {words} {y:.4g}", x=LEFT + 6, y=place, class_="label base")
    place = down(y)
    line = tag("line", x1=LEFT, x2=right, y1=place, y2=place, class_="level")
    wide = LETTER * len(words)
    starts = (LEFT + 6, right - wide, (LEFT + right - wide) / 2, LEFT + 40)
    spots = [(x, place + rise) for rise in (-9, 10) for x in starts]
    free = [
        (x, middle)
        for x, middle in spots
        if middle > TOP and not any(_meet(_area(x, middle, wide, "start"), b) for b in taken)
    ]
    x, middle = (free or spots)[0]
    return tag("g", line, tag("text", words, x=x, y=middle + 4, class_="label base"))


def end_labels(wanted: Sequence[tuple[str, str, float, float]], right: float) -> list[Markup]:
    """Return labels (words, colour, x, y) at the ends of lines, moved apart up and down."""
    ordered = sorted(wanted, key=lambda one: one[3])
    floor = HEIGHT - BOTTOM - 2.0
    gap = min(LINE, (floor - TOP) / len(ordered))
    places: list[float] = []
    for _words, _colour, _x, y in ordered:  # push down
        places.append(max(y, places[-1] + gap) if places else y)
    for k in reversed(range(len(places))):  # and back up from the floor
        places[k] = min(places[k], floor)
        floor = places[k] - gap
    parts = []
    for (words, colour, x, y), place in zip(ordered, places, strict=True):
        bend = f"M{x + 2:.1f} {y:.1f}L{right + 4:.1f} {y:.1f}L{right + 9:.1f} {place:.1f}"
        parts.append(tag("path", d=bend, class_=f"leader {colour}"))
        at = {"x": right + 12, "y": place + 4}
        parts.append(tag("text", words, class_=f"label start {colour}", **at))
    return parts


def label_room(labels: Sequence[str]) -> float:
    """Return the width to keep free on the right for `end_labels`."""
    return 14 + LETTER * max(map(len, labels))


def cut(name: str, most: int = 18) -> str:
    """Return the name, shortened to `most` letters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def inside(box: tuple[float, float, float, float], children: list[Markup]) -> Markup:
    """Return the children, cut off at the edges of the box."""
    x, y, width, height = box
    view = f"{x:g} {y:g} {width:g} {height:g}"
    return tag("svg", *children, x=x, y=y, width=width, height=height, viewBox=view)


def svg(parts: Sequence[Markup], label: str) -> Markup:
    """Return a whole picture; `label` says what it shows to those who cannot see it."""
    view = f"0 0 {WIDTH} {HEIGHT}"
    return tag("svg", *parts, viewBox=view, class_="chart", role="img", aria_label=label)


def share(percent: float) -> str:
    """Return a place along a row of HTML."""
    return f"{percent:.2f}%"


def beside(wanted: Sequence[tuple[str, str, Box]], taken: Sequence[Box]) -> list[Markup]:
    """Return labels (name, colour, box of its mark) beside their marks, wherever there is room."""
    full, placed = list(taken), []
    for name, colour, box in wanted:
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        words = cut(name)
        wide = LETTER * len(words)
        spots = [(x + 10, y, "start"), (x - 10, y, "end")]
        for rise in (16, -16, 28, -28, 41, -41, 54, -54):
            spots += [(x, y - rise, "middle"), (x + 8, y - rise, "start"), (x - 8, y - rise, "end")]
        areas = [(_area(px, py, wide, side), (px, py, side)) for px, py, side in spots]
        free = [one for one in areas if _fits(one[0]) and not any(_meet(one[0], b) for b in full)]
        area, (px, py, side) = (free or areas)[0]
        full.append(area)
        placed.append(tag("text", words, x=px, y=py + 4, class_=f"label {side} {colour}"))
    return placed


def _area(x: float, y: float, wide: float, side: str) -> Box:
    left = x - {"start": 0.0, "end": wide, "middle": wide / 2}[side]
    return left, y - 7, left + wide, y + 7


def _fits(area: Box) -> bool:
    left, top, right, bottom = area
    return left >= LEFT + 2 and right <= WIDTH and top >= TOP - 8 and bottom <= HEIGHT - BOTTOM


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
