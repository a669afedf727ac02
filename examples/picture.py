"""The picture of the README from a results.json: quality against decode speed.

python examples/picture.py RESULTS.json PICTURE.svg
"""

import json
import re
import sys
from importlib.resources import files
from pathlib import Path

from stepscan.apps.report.charts import trade_off
from stepscan.apps.report.drawing import HEIGHT, WIDTH, Looks
from stepscan.apps.report.markup import Markup, tag

GAP, HEAD, FOOT, INDENT = 40, 40, 26, 46
FONT = "ui-sans-serif, system-ui, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"


def style() -> str:
    """The rules of the report that its charts use: colours, light and dark, and chart classes."""
    sheet = files("stepscan.apps.report").joinpath("style.css").read_text()
    colours = sheet[: sheet.index("* { box-sizing")]
    chart = sheet[sheet.index(".chart text") : sheet.index(".wide {")]
    more = f"""
svg {{ font-family: {FONT} }} .chart {{ overflow: visible }} .board {{ fill: var(--paper) }}
.title {{ font-size: 14px; font-weight: 600; fill: var(--ink) }} .foot {{ fill: var(--soft) }}
"""
    return colours + chart + more


def caption(sections: list[dict]) -> str:
    """How the figures came about: the budget of the first section, which all share in one run."""
    budget = sections[0]["budget"]
    seeds = len(budget["seeds"])
    return (
        f"Trained for {60 * budget['minutes']:.0f} seconds each, {seeds} seed{'s' * (seeds != 1)}. "
        "Small circle: after 1,024 steps of past; large mark: after 65,536. "
        "Dashed: the best simple method."
    )


def picture(results: dict) -> str:
    """All panels beside each other, as one file that needs nothing else."""
    sections = results["sections"]
    looks = Looks(sections)
    panels: list[Markup] = []
    for section in sections:
        chart = trade_off(section, looks, "decode_per_second")
        if chart is None:
            continue
        metric = next(m for m in section["metrics"] if m["name"] == section["metric"])
        words = f"{section['data']['name']}: {metric['name']}, {metric['better']} is better"
        left = GAP / 2 + len(panels) * (WIDTH + GAP)
        # A picture has a name to those who cannot see it; nested ones need a size.
        inner = Markup(re.sub(r"<svg ", f'<svg width="{WIDTH}" height="{HEIGHT}" ', chart, count=1))
        title = tag("text", words, x=INDENT, y=-14, class_="title")
        panels.append(tag("g", title, inner, transform=f"translate({left:g} {HEAD})"))
    if not panels:
        raise ValueError("no candidate of these results has a decode speed")
    width, height = len(panels) * (WIDTH + GAP), HEIGHT + HEAD + FOOT
    board = tag("rect", width=width, height=height, class_="board")
    return str(
        tag(
            "svg",
            Markup(f"<style>{style()}</style>"),
            board,
            *panels,
            tag("text", caption(sections), x=INDENT, y=height - 10, class_="foot", font_size=12),
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width} {height}",
            role="img",
            aria_label="Quality against decode speed of the mixers, one panel for each data set",
        )
    )


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(picture(json.loads(source.read_text())) + "\n")
    print(f"drawn  {target}")
