import copy
import math
import os
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from made_up_results import results

from stepscan.analyze.intervals import Interval
from stepscan.apps import report
from stepscan.apps.report.charts import focus
from stepscan.apps.report.drawing import HEIGHT, LINE, WIDTH, end_labels
from stepscan.apps.report.figures import column, count, decimals, score, short, size
from stepscan.apps.report.page import page
from stepscan.apps.report.scales import Scale, logarithmic, tick_texts
from stepscan.apps.report.standings import best, standings

VOID = {"meta"}


class Reader(HTMLParser):
    """Reads a page as a browser would: elements, attributes, and the words outside of <style>."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(source)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def shape(self):
        """Every element with the names of its attributes: what no text may change."""
        return [(tag, sorted(attributes)) for tag, attributes in self.elements]

    def texts(self):
        return " ".join(self.words)


@pytest.fixture
def read():
    return lambda changed: Reader(page(changed))


# The page --------------------------------------------------------------------------------------


def test_a_report_is_one_closed_file(tmp_path):
    path = report.write(results(), tmp_path / "report.html")
    source = path.read_text()
    names = {tag for tag, _attributes in Reader(source).elements}
    assert not names & {"script", "link", "iframe", "object", "embed", "img", "base", "form"}
    assert not re.search(r"https?:|url\(|@import|\bsrc=", source)
    assert os.listdir(tmp_path) == ["report.html"]  # noqa: PTH208  (hidden files count)


def test_everything_of_the_results_is_there(read):
    seen = read(results()).texts()
    for section in results()["sections"]:
        wanted = [section["verdict"], *section["data"]["lines"], *section["data"]["findings"]]
        wanted += [metric["definition"] for metric in section["metrics"]]
        wanted += [one["name"] for one in section["candidates"]]
        assert [words for words in wanted if words not in seen] == []
    facts = results()
    wanted = [facts["title"], facts["command"], *facts["machine"].values()]
    assert [words for words in wanted if words not in seen] == []


def test_a_confusion_matrix_says_every_count(read):
    page = read(results())
    said = " ".join(page.words)
    for words in ("40 of 42 of class UA called UA", "3 of 35 of class DL called UA"):
        assert words in said
    assert "0 of 0 of class B6 called B6" in said
    cells = [a for tag, a in page.elements if tag == "rect" and "cell" in a.get("class", "")]
    assert len(cells) == 2 * 9
    strong = [float(a["fill-opacity"]) for a in cells if "hit" in a["class"]]
    faint = [float(a["fill-opacity"]) for a in cells if "miss" in a["class"]]
    assert min(strong) > 0.8
    assert max(faint) < 0.2
    assert "57 sequences: given 90%, right 95%" in said


HOSTILE = [
    "<script>alert(1)</script>",
    "</title></style></svg></pre><script>alert(1)</script>",
    "\" onload='alert(1)' x=\"",
    "' onmouseover=alert(1) '",
    "<!-- ]]> &lt;b&gt; &#60;img src=x onerror=alert(1)>",
    "\x00\x1b[31m\u202e\ud800",
]
ENUMS = {"better", "type", "kind"}


def poisoned(value, poison, key=None):
    """Every string of the results, and every name that is a key, with the poison at its end."""
    if isinstance(value, str):
        return value if key in ENUMS else value + poison
    if isinstance(value, list):
        return [poisoned(x, poison, key) for x in value]
    if isinstance(value, dict):
        named = key in {"scores", "machine", "versions", "config"}
        return {(k + poison if named else k): poisoned(v, poison, k) for k, v in value.items()}
    return value


@pytest.mark.parametrize("poison", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_changes_the_elements_of_the_page(poison, read):
    def without_times(value):  # times that cannot be read are replaced by step numbers
        for section in value["sections"]:
            for example in section["examples"]:
                example.pop("times", None)
        return value

    clean, changed = without_times(results()), without_times(results())
    assert read(poisoned(changed, poison)).shape == read(clean).shape


@pytest.mark.parametrize("poison", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_reaches_the_file_only_as_text(poison, tmp_path):
    path = report.write(poisoned(results(), poison), tmp_path / "report.html")
    source = path.read_text(encoding="utf-8")
    allowed = set(map(str, Reader(page(results())).shape))
    assert set(map(str, Reader(source).shape)) <= allowed
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", source)


def test_what_failed_is_said_and_never_best(read):
    changed = results()
    text = changed["sections"][0]
    for one in text["candidates"]:
        if one["name"] == "mlstm":
            one["scores"]["bits/byte"] = [1.0, None, 1.0]  # a flattering mean of the survivors
    ranked = standings(text)
    assert best(ranked, baseline=False).name == "gated_delta_net"
    assert [one.name for one in ranked][-2:] == ["mlstm", "5-gram, back-off"]
    seen = read(changed).texts()
    assert "1 of 3 failed" in seen
    assert "(1 failed)" in seen
    assert any(line.startswith("lstm") and "failed" in line for line in leaderboard_of(changed, 2))


def test_the_best_is_bold_even_if_it_is_a_baseline(read):
    changed = results()
    changed["sections"] = changed["sections"][:1]
    (ngram,) = (c for c in changed["sections"][0]["candidates"] if c["baseline"])
    ngram["scores"] = {"bits/byte": [1.1], "accuracy": [0.9]}
    source = page(changed)
    assert re.findall(r'<td class="best">([^<]*)</td>', source) == ["1.100", "0.9000"]
    row = re.search(r'<div class="row[^"]*best">.*?title="([^"]*)"', source)
    assert row.group(1) == "5-gram, back-off"


def test_a_candidate_wears_one_colour_in_all_sections(read):
    source = page(results())
    for name in ("gated_delta_net", "mamba2", "attention", "lstm"):
        chips = re.findall(rf'<svg class="chip (\w+)"[^>]*>(?:(?!</svg>).)*</svg>{name}<', source)
        assert len(chips) > 3
        assert len(set(chips)) == 1


def leave_nothing(section):
    for one in section["candidates"]:
        one["curve"] = []
        one["decode_per_second"] = one["state_bytes"] = one["tokens_per_second"] = None
    section["examples"] = []
    section["data"]["findings"] = []


def fail_all(section):
    for one in section["candidates"]:
        one["scores"] = {k: [None] * len(v) for k, v in one["scores"].items()}
        one["curve"] = [{**run, "score": [None] * len(run["score"])} for run in one["curve"]]


def one_seed(section):
    section["budget"]["seeds"] = [0]
    for one in section["candidates"]:
        one["scores"] = {k: v[:1] for k, v in one["scores"].items()}
        one["curve"] = one["curve"][:1]


def equal_scores(section):
    for one in section["candidates"]:
        one["scores"] = {k: [0.0] * len(v) for k, v in one["scores"].items()}
        one["curve"] = [{**run, "score": [0.0] * len(run["score"])} for run in one["curve"]]


def only_baselines(section):
    section["candidates"] = [c for c in section["candidates"] if c["baseline"]]


def only_one(section):
    section["candidates"] = section["candidates"][:1]


def many(section):
    first = section["candidates"][0]
    section["candidates"] = [{**first, "name": f"candidate number {k}"} for k in range(40)]


def not_numbers(section):
    for value, one in zip((math.nan, math.inf, -math.inf), section["candidates"], strict=False):
        one["scores"] = {k: [value, *v[1:]] for k, v in one["scores"].items()}
        for run in one["curve"]:
            run["score"][3] = value


def wide_range(section):
    for k, one in enumerate(section["candidates"]):
        one["scores"] = {name: [10.0**k * x for x in v if x] for name, v in one["scores"].items()}


def odd_examples(section):
    for example in section["examples"]:
        if example["type"] == "forecast":
            example["history"][3:9] = [None] * 6
            example["actual"][2] = math.nan
            example["times"] = example["times"][::-1]
        if example["type"] == "table":
            example["rows"].append([None, True, 12, -1.5e-7])


CHANGES = [
    *(leave_nothing, fail_all, one_seed, equal_scores, only_baselines, only_one, many),
    *(not_numbers, wide_range, odd_examples),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_unusual_results_make_a_sound_page(change, read):
    changed = results()
    for section in changed["sections"]:
        change(section)
        assert len(report.leaderboard(section)) == 1 + len(section["candidates"])
    page = read(changed)
    drawn = ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "d", "points")
    for name, attributes in page.elements:
        places = " ".join(str(attributes.get(key) or "") for key in drawn)
        assert not re.search("nan|inf|None", places), (name, attributes)
    inside_of_pictures(page)


def test_every_mark_and_word_lies_inside_its_picture(read):
    inside_of_pictures(read(results()))


def inside_of_pictures(page):
    for name, attributes in page.elements:
        x, y = attributes.get("x", "0"), attributes.get("y", "0")
        if name == "text" and not x.endswith("%"):
            assert 0 <= float(x) <= WIDTH
            assert 0 <= float(y) <= HEIGHT


def test_the_old_report_survives_a_failing_write(tmp_path, monkeypatch):
    path = report.write(results(), tmp_path / "report.html")
    before = path.read_bytes()

    def full(_file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        report.write({**results(), "title": "another"}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_results_of_another_version_are_refused(tmp_path):
    with pytest.raises(ValueError, match="want results of version 1, got 2"):
        report.write({**results(), "version": 2}, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


# The table for a terminal ----------------------------------------------------------------------


def leaderboard_of(changed, k):
    return report.leaderboard(changed["sections"][k])


def test_the_leaderboard_in_a_terminal():
    section = copy.deepcopy(results()["sections"][0])
    for one in section["candidates"]:
        one["tokens_per_second"] = one["tokens_per_second"] and [31_400.0] * 3
    assert report.opening(section) == (
        "equal time on this machine: 4:00 each, interleaved, 3 seeds"
    )
    assert report.leaderboard(section) == [
        "                   bits/byte                       tokens/s   "
        "decode tokens/s at 64k   state after 64k",
        "gated_delta_net    1.942 ± 0.021                   31,400     "
        "806                      96 KB",
        "rwkv7              1.952 ± 0.023                   31,400     "
        "731                      104 KB",
        "mamba2             1.974 ± 0.016                   31,400     "
        "948                      96 KB",
        "attention          2.013 ± 0.024                   31,400     "
        "84                       128 MB (grows)",
        "lstm               2.083 ± 0.029                   31,400     "
        "1,430                    4 KB",
        "mlstm              1.990 ± 0.032 (1 of 3 failed)   31,400     "
        "700                      264 KB",
        "5-gram, back-off   2.228                           -          -                        -",
    ]


def test_where_more_is_better_the_largest_leads():
    section = results()["sections"][2]
    assert [one.name for one in standings(section)] == [
        *("attention", "gated_delta_net", "mamba2", "lstm"),
        *("Markov chain, order 1", "most frequent"),
    ]


# Numbers and axes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "cells", "numbers"),
    [
        ([0.9677, 1.0, None], ["0.968", "1.000", "-"], True),
        ([238664, 7], ["238,664", "7"], True),
        ([1234.5678, 0.5], ["1,235", "0"], True),
        ([5.34, "failed"], ["5.340", "failed"], False),
        ([True, None], ["True", "-"], False),
        ([], [], True),
    ],
)
def test_a_column_has_decimals_alike(values, cells, numbers):
    assert column(values) == (cells, numbers)


@pytest.mark.parametrize(
    ("write", "number", "expected"),
    [
        (size, 512, "512 B"),
        (size, 98_304, "96 KB"),
        (size, 1_572_864, "1.5 MB"),
        (size, 134_217_728, "128 MB"),
        (size, None, "-"),
        (count, 31_449.0, "31,400"),
        (count, 84.04, "84"),
        (count, 9_996.0, "10,000"),
        (count, None, "-"),
        (short, 950, "950"),
        (short, 12_345, "12.3k"),
        (short, 999_900, "1M"),
        (short, 2e9, "2G"),
    ],
)
def test_numbers_as_people_read_them(write, number, expected):
    assert write(number) == expected


@pytest.mark.parametrize(
    ("mean", "half", "expected"),
    [
        (1.94167, 0.0214, "1.942 ± 0.021"),
        (176.28, 6.11, "176.3 ± 6.1"),
        (0.2480, 0.00657, "0.2480 ± 0.0066"),
        (2.5, None, "2.500"),
        (12_345.6, 800.0, "12,346 ± 800"),
        (0.0, 0.0, "0.0 ± 0.0"),
        (1.5, 1e-9, "1.5000 ± 0.0000"),
    ],
)
def test_a_score_has_the_digits_its_interval_deserves(mean, half, expected):
    interval = Interval(mean, half, 3)
    assert score(interval, decimals([interval])) == expected


@pytest.mark.parametrize("low", [-3.7, 0.0, 1.912, 4_321.0])
@pytest.mark.parametrize("span", [1e-4, 0.13, 7.0, 5e6])
def test_ticks_are_round_few_and_on_the_axis(low, span):
    scale = Scale(low, low + span, 0, 100)
    ticks = scale.ticks(6)
    assert 2 <= len(ticks) <= 7
    assert all(-1e-6 <= scale(x) <= 100 + 1e-6 for x in ticks)
    step = ticks[1] - ticks[0]
    lead = step / 10.0 ** math.floor(math.log10(step) + 1e-6)
    assert min(abs(lead - m) for m in (1, 2, 5)) < 1e-3
    assert len(set(tick_texts(ticks))) == len(ticks) or max(map(abs, ticks)) >= 10_000


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("high", [1_100.0, 9e4, 1e9])
def test_log_ticks_are_few_and_on_the_axis(high, binary):
    scale = logarithmic([1_000.0, high], 0, 100)
    ticks = scale.ticks(5, binary=binary)
    assert 1 <= len(ticks) <= 5
    assert all(-1e-6 <= scale(x) <= 100 + 1e-6 for x in ticks)


def test_one_that_learnt_nothing_does_not_flatten_the_rest():
    assert focus([1.0, 1.1, 1.2, 90.0, 1.05], lower=True) == (1.0, pytest.approx(1.4))
    assert focus([0.5, 0.4, 0.45, 0.001, 0.48], lower=False) == (pytest.approx(0.3), 0.5)


def test_labels_at_the_ends_of_lines_keep_apart():
    wanted = [(f"n{k}", "c0", 300.0, 200.0 + k) for k in range(12)]
    source = "".join(end_labels(wanted, 310.0))
    places = [float(y) for y in re.findall(r'<text[^>]* y="([\d.]+)"', source)]
    gaps = [b - a for a, b in pairwise(places)]
    assert len(places) == 12
    assert min(gaps) >= LINE - 0.1
    assert max(places) <= HEIGHT
