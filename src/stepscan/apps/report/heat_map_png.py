"""A heat map as a PNG, for places that show no SVG: slides, chats, a README elsewhere.

By matplotlib's Agg alone: no window, and none of its global settings is read or changed.
"""

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType

BOX = (0.42, 0.22)
"""Inches of a square."""
DOTS = 200
"""Pixels per inch."""
HUE = (11 / 255, 102 / 255, 183 / 255)
DARK = 0.55
"""Squares above it have white numbers."""


def check(path: Path) -> None:
    """`ValueError` or `ImportError` if `write` could not draw there, before hours of training."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"want the name of a picture that ends in .png, got {path}")
    if not path.parent.is_dir():
        raise ValueError(f"want a folder that exists for {path.name}, got {path.parent}")
    _matplotlib()


def write(
    path: Path,
    rows: Sequence[str],
    columns: Sequence[tuple[str, str]],
    scores: Mapping[tuple[str, str], float],
    *,
    title: str = "",
) -> Path:
    """Draw the map, under another name first.

    Args:
        path: The file, *.png.
        rows: Names down the side, best first.
        columns: (group, name) across; a line stands between groups.
        scores: From 0 to 1 by (row, column name); squares without one stay empty.
        title: Above it.
    """
    check(path)
    matplotlib = _matplotlib()
    wide, high = (n * inches for n, inches in zip((len(columns), len(rows)), BOX, strict=True))
    figure = matplotlib.figure.Figure(figsize=(max(wide, 1.0), max(high, 0.5)), layout=None)
    matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), frame_on=False)
    for j, row in enumerate(rows):
        for i, (_, name) in enumerate(columns):
            score = scores.get((row, name))
            if score is None:
                continue
            fill = (*HUE, 0.04 + 0.96 * min(max(score, 0.0), 1.0))
            box = matplotlib.patches.Rectangle((i + 0.02, j + 0.04), 0.96, 0.92, color=fill, lw=0)
            axes.add_patch(box)
            ink = "white" if score > DARK else "#1b2127"
            middle = {"ha": "center", "va": "center", "fontsize": 8}
            axes.text(i + 0.5, j + 0.5, f"{100 * score:.0f}", color=ink, **middle)
    for i, (before, after) in enumerate(pairwise(columns)):
        if before[0] != after[0]:
            axes.axvline(i + 1, color="#1b2127", alpha=0.35, lw=0.8)
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    axes.set_yticks([j + 0.5 for j in range(len(rows))], rows, fontsize=8)
    names = [name for _, name in columns]
    middles = [i + 0.5 for i in range(len(columns))]
    axes.set_xticks(middles, names, fontsize=8, rotation=52, ha="left")
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    if title:
        axes.set_title(title, fontsize=9, loc="left")
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(draft, format="png", dpi=DOTS, bbox_inches="tight", facecolor="white")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def _matplotlib() -> ModuleType:
    try:
        for part in ("backends.backend_agg", "figure", "patches"):
            import_module(f"matplotlib.{part}")
    except ImportError:
        raise ImportError("a PNG needs matplotlib: pip install 'stepscan[plot]'") from None
    return import_module("matplotlib")
