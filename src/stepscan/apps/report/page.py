"""The report as one HTML file: no network, no script, light and dark, on paper and on a phone."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

from stepscan.analyze.intervals import Interval
from stepscan.apps.report import charts, classes, forecasts, lines
from stepscan.apps.report.document import document, write_page
from stepscan.apps.report.drawing import Looks
from stepscan.apps.report.figures import CANNOT, clock, column, count, decimals, score, size
from stepscan.apps.report.markup import Child, Markup, join, tag
from stepscan.apps.report.standings import (
    LONG,
    SHORT,
    Section,
    Standing,
    at_length,
    behind,
    best,
    described,
    lower_is_better,
    noun,
    overall_best,
    standings,
)
from stepscan.apps.report.text import mean_rate, opening

VERSION = 1
"""The version of results.json that this module reads."""


def write(results: Mapping[str, Any], path: Path) -> Path:
    """Write the report of `results` (the content of results.json) to `path`, whole or not at all.

    All text in `results` is taken for hostile and shown as text.
    """
    if results.get("version") != VERSION:
        raise ValueError(
            f"want results of version {VERSION}, got {results.get('version')!r}: "
            "write them with this version of stepscan."
        )
    return write_page(page(results), path)


def page(results: Mapping[str, Any]) -> Markup:
    """Return the whole page."""
    sections = results["sections"]
    looks = Looks(sections)
    body = [
        tag("header", *_title(results)),
        tag("main", *_tops(sections, looks), *map_sections(sections, looks)),
        tag("footer", *_colophon(results)),
    ]
    return document(results["title"], body)


def _title(results: Mapping[str, Any]) -> list[Markup]:
    budgets = dict.fromkeys(opening(section) for section in results["sections"])
    when = _date(str(results.get("created", "")))
    return [
        tag("p", "stepscan", class_="brand"),
        tag("h1", results["title"]),
        tag("p", " · ".join([when, *budgets]), class_="meta"),
    ]


def _date(created: str) -> str:
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{moment.day} {moment:%B %Y, %H:%M}"


# The top: each section's verdict and the picture that shows it --------------------------------


def _tops(sections: Iterable[Section], looks: Looks) -> list[Markup]:
    tops = []
    for k, section in enumerate(sections):
        data, metric = section["data"], described(section, section["metric"])
        says = [
            tag("p", tag("a", data["name"], href=f"#s{k}"), _aside(data["kind"]), class_="eyebrow"),
            tag("h2", _sentence(section["verdict"]), class_="verdict"),
        ]
        caption = tag("figcaption", metric["name"], _aside(f"{metric['better']} is better"))
        picture = tag("figure", caption, charts.scores(section, looks))
        tops.append(tag("article", tag("div", *says), picture, class_="top"))
    note = (
        "Shapes: mean over seeds. Bars: 95 % t interval of the mean. Small dots: single seeds. "
        "◂ ▸: beyond the picture. Grey: baselines."
    )
    return [*tops, tag("p", note, class_="note")]


def _sentence(words: str) -> str:
    words = str(words).strip()
    return words if words.endswith((".", "!", "?")) else f"{words}."


def _aside(words: Child) -> Markup:
    return tag("span", words, class_="aside")


# One section -----------------------------------------------------------------------------------


def map_sections(sections: Iterable[Section], looks: Looks) -> list[Markup]:
    """Return every section in full."""
    return [tag("section", *_section(one, looks), id=f"s{k}") for k, one in enumerate(sections)]


def _section(section: Section, looks: Looks) -> list[Child]:
    data = section["data"]
    return [
        tag("h2", data["name"], _aside(data["kind"])),
        tag("h3", "Leaderboard"),
        _leaderboard(section, looks),
        *_learning(section, looks),
        *_scaling(section),
        *_costs(section, looks),
        *_examples(section, looks),
        tag("div", *_data(section), *_definitions(section), class_="pair"),
        *_settings(section, looks),
    ]


def _leaderboard(section: Section, looks: Looks) -> Markup:
    lower = lower_is_better(section, section["metric"])
    ranked = standings(section)
    leader = best(ranked, baseline=False)
    gaps = {one.name: behind(one, leader, lower=lower) for one in ranked}
    others = [m["name"] for m in section["metrics"] if m["name"] != section["metric"]]
    metrics = [section["metric"], *others]
    columns = [_scores(section, name) for name in metrics]
    gap_places = decimals(gaps.values())
    unit = noun(section)
    head = ["candidate", section["metric"], "behind the best model", *others, "parameters"]
    head += [f"training {unit}/s", f"decode {unit}/s", "state"]
    rows = []
    for k, one in enumerate(ranked):
        lead, *rest = (column[one.name] for column in columns)
        cells = [tag("th", looks.chip(one.name), one.name, scope="row"), lead]
        cells += [_gap(gaps[one.name], gap_places), *rest, *_measured(one)]
        apart = one.baseline and (k == 0 or not ranked[k - 1].baseline)
        classes = [*(["base-row"] if one.baseline else []), *(["apart"] if apart else [])]
        rows.append(tag("tr", *cells, class_=" ".join(classes) or None))
    header = tag("thead", tag("tr", *(tag("th", words, scope="col") for words in head)))
    table = tag("div", tag("table", header, tag("tbody", *rows)), class_="wide")
    note = (
        "± is the half-width of the 95 % t interval over seeds. Behind the best model: the paired "
        "difference, seed by seed, positive is worse; ≈ marks a difference whose interval contains "
        "zero, so that these seeds do not tell the two apart. Bold: best without a failed seed. "
        f"Decode speed and state of one sequence; with an arrow: after 1k → after 64k {unit}. "
        "1 KB is 1,024 bytes."
    )
    return join(table, tag("p", note, class_="note"))


def _scores(section: Section, metric: str) -> dict[str, Markup]:
    """Return the cells of one metric's column by candidate."""
    ranked = standings(section, metric)
    places = decimals(one.interval for one in ranked)
    leader = overall_best(ranked, lower=lower_is_better(section, metric))
    cells = {}
    for one in ranked:
        words = score(one.interval, places)
        few = f"{one.failed} of {len(one.scores)} failed" if one.interval else "failed"
        warning = tag("span", few, class_="failed") if one.failed else None
        number = words if one.interval or not one.failed else None
        cells[one.name] = tag("td", number, warning, class_="best" if one is leader else None)
    return cells


def _gap(gap: Interval | None, places: int) -> Markup:
    if gap is None:
        return tag("td", class_="muted")
    words = score(gap, places, signed=True)
    open_question = gap.half is not None and not gap.excludes_zero
    return tag("td", f"≈ {words}" if open_question else words, class_="muted")


def _measured(one: Standing) -> list[Markup]:
    candidate = one.candidate
    decode, sizes = candidate.get("decode_per_second"), candidate.get("state_bytes")
    slow, fast = at_length(decode, LONG), at_length(decode, SHORT)
    speed = count(slow)
    if slow and fast and max(slow, fast) > 1.1 * min(slow, fast):
        speed = f"{count(fast)} → {speed}"
    early, late = at_length(sizes, SHORT), at_length(sizes, LONG)
    room = size(late) if early in {None, late} else f"{size(early)} → {size(late)}"
    parameters = candidate.get("parameters")
    many = f"{parameters:,}" if parameters is not None else CANNOT
    return [tag("td", words) for words in (many, count(mean_rate(candidate)), speed, room)]


def _figure(caption: Child, picture: Markup | None) -> Markup | None:
    return tag("figure", tag("figcaption", caption), picture) if picture else None


def _learning(section: Section, looks: Looks) -> list[Child]:
    metric = described(section, section["metric"])
    pictures = [
        _figure(f"{metric['name']} by {words}", charts.learning_curves(section, looks, by))
        for by, words in (("seconds", "time"), ("tokens", f"{noun(section)} read"))
    ]
    if not any(pictures):
        return []
    note = (
        f"{metric['name']} measured while training, {metric['better']} is better. Thick: mean over "
        "seeds; thin: single seeds. The steep beginning may lie outside."
    )
    grid = tag("div", *pictures, class_="charts")
    return [tag("h3", "Learning curves"), grid, tag("p", note, class_="note")]


def _scaling(section: Section) -> list[Child]:
    if "scaling" not in section:
        return []
    said = (tag("li", line) for line in section["scaling"]["findings"])
    return [tag("h3", "Scaling"), tag("ul", *said, class_="facts")]


def _costs(section: Section, looks: Looks) -> list[Child]:
    name = section["metric"]
    height = "bottom" if lower_is_better(section, name) else "top"
    speed = charts.trade_off(section, looks, "decode_per_second")
    room = charts.trade_off(section, looks, "state_bytes")
    if not speed and not room:
        return []
    pictures = (
        _figure([f"{name} against decode speed", _aside(f"best: {height} right")], speed),
        _figure([f"{name} against state size", _aside(f"best: {height} left")], room),
    )
    note = (
        f"Full marks: after 64k {noun(section)} of context; small rings: after 1k. A candidate "
        "whose cost does not depend on the past has no trail. Bars: 95 % interval. Dashed: best "
        "baseline."
    )
    grid = tag("div", *pictures, class_="charts")
    return [tag("h3", "Quality against cost"), grid, tag("p", note, class_="note")]


# Examples --------------------------------------------------------------------------------------


def _examples(section: Section, looks: Looks) -> list[Child]:
    parts: list[Child] = []
    for title, key in (("Examples", "examples"), ("Where it errs and what it heeds", "details")):
        shown = [EXAMPLES[one["type"]](one, looks) for one in section.get(key) or ()]
        parts += [tag("h3", title), *shown] if shown else []
    return parts


def _text_example(example: Mapping[str, Any], looks: Looks) -> Markup:
    samples = [
        tag(
            "figure",
            tag("figcaption", looks.chip(str(one["from"])), one["from"]),
            tag("pre", tag("span", example["prompt"], class_="prompt"), one["text"]),
        )
        for one in example["samples"]
    ]
    return join(tag("h4", example["title"]), tag("div", *samples, class_="charts samples"))


def _forecast_example(example: Mapping[str, Any], looks: Looks) -> Markup:
    figures = [
        tag("figure", tag("figcaption", looks.chip(name), name), picture)
        for name, picture in forecasts.panels(example, looks)
    ]
    levels = sorted({float(q) for one in example["forecasts"] for q in one["quantiles"]})
    bands = ", ".join(f"{q:g}" for q in levels)
    note = (
        "Grey line: history. Thin line after the dots: what came. Thick line: the median forecast; "
        f"shade: quantiles {bands}."
    )
    return join(
        tag("h4", example["title"]),
        tag("div", *figures, class_="charts"),
        tag("p", note, class_="note"),
    )


def _table_example(example: Mapping[str, Any], looks: Looks) -> Markup:
    columns = [column(values) for values in zip(*example["rows"], strict=True)]
    kinds = [None if numbers else "words" for _, numbers in columns] or ["words"]
    head = [
        tag("th", name, scope="col", class_=kind)
        for name, kind in zip_longest(example["columns"], kinds, fillvalue="words")
    ]

    def cell(words: str, kind: str | None) -> Markup:
        return tag("td", looks.chip(words) if words in looks.order else None, words, class_=kind)

    rows = zip(*(words for words, _ in columns), strict=True)
    body = [tag("tr", *map(cell, row, kinds)) for row in rows]
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body))
    return join(tag("h4", example["title"]), tag("div", table, class_="wide"))


EXAMPLES = {
    "text": _text_example,
    "forecast": _forecast_example,
    "table": _table_example,
    "confusion": classes.confusion,
    "calibration": classes.calibration,
    "lines": lines.example,
}


# Small print -----------------------------------------------------------------------------------


def _data(section: Section) -> list[Child]:
    data = section["data"]
    found = data.get("findings") or ()
    facts = tag("ul", *(tag("li", line) for line in data["lines"]), class_="facts")
    findings = tag("ul", *(tag("li", line) for line in found), class_="facts findings")
    noticed = [tag("h4", "Noticed in the data"), findings] if found else []
    return [tag("div", tag("h3", "Data"), facts, *noticed)]


def _definitions(section: Section) -> list[Child]:
    entries: list[Child] = []
    for metric in section["metrics"]:
        unit = f"{metric['unit']}, " if metric.get("unit") else ""
        entries.append(tag("dt", metric["name"], _aside(f"{unit}{metric['better']} is better")))
        entries.append(tag("dd", metric["definition"]))
    return [tag("div", tag("h3", "Metrics"), tag("dl", *entries))]


def _settings(section: Section, looks: Looks) -> list[Child]:
    blocks = []
    for one in section["candidates"]:
        seconds = [x for x in one.get("seconds") or () if x]
        read = [x for x in one.get("tokens") or () if x]
        facts = [f"{clock(sum(seconds) / len(seconds))} a seed"] if seconds else []
        facts += [f"{count(sum(read) / len(read))} {noun(section)} read"] if read else []
        summary = tag("summary", looks.chip(one["name"]), one["name"], _aside(", ".join(facts)))
        if one.get("config") is not None:
            config = tag("pre", json.dumps(one["config"], indent=2, ensure_ascii=False))
            blocks.append(tag("details", summary, config))
    seeds = ", ".join(str(x) for x in section["budget"]["seeds"])
    line = tag("p", _sentence(f"{opening(section)} ({seeds})").capitalize())
    return [tag("h3", "Settings"), line, *blocks]


def _colophon(results: Mapping[str, Any]) -> list[Child]:
    def facts(title: str, table: Mapping[str, Any]) -> Markup:
        entries = [join(tag("dt", key), tag("dd", value)) for key, value in table.items()]
        return tag("div", tag("h3", title), tag("dl", *entries, class_="table"))

    return [
        tag("h2", "Made by"),
        tag("p", "To do it again:"),
        tag("pre", results["command"], class_="command"),
        tag(
            "div",
            facts("Machine", results.get("machine") or {}),
            facts("Versions", results.get("versions") or {}),
            class_="pair",
        ),
    ]
