"""What a model of events answers: times, suffixes, tables; and how far suffixes are off."""

import itertools
import json
import math
import re
import warnings
from collections import deque

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_data import LEGS, events_frame

import stepscan as ss
from stepscan.apps.events.metrics import Tally, by_likeness, damerau_levenshtein, similarity
from stepscan.apps.events.mixture import median
from stepscan.apps.events.model import NewInTableWarning
from stepscan.apps.events.questions import cut, suffix_questions
from stepscan.apps.events.suffix import (
    Rows,
    continue_cases,
    draw_cases,
    last_step,
    read_histories,
    suffixes,
)
from stepscan.apps.kinds import domain_of
from stepscan.cli import main
from stepscan.data import DataError, DataOptions, open_dataset
from stepscan.models import Inputs, SequenceModel

HISTORY = ["JFK>LAX", "LAX>JFK", "JFK>BOS"]
TIMES = ["2024-01-02 10:00", "2024-01-02 12:00", "2024-01-02 17:30"]


# The distance ------------------------------------------------------------------------------------


def by_search(start, longest, letters):
    """Distances from a word by breadth-first search through single edits: an independent oracle."""
    found, queue = {start: 0}, deque([start])
    while queue:
        word = queue.popleft()
        near = {word[:i] + word[i + 1 :] for i in range(len(word))}
        near |= {word[:i] + x + word[i + 1 :] for i in range(len(word)) for x in letters}
        near |= {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)}
        if len(word) < longest:
            near |= {word[:i] + x + word[i:] for i in range(len(word) + 1) for x in letters}
        for other in near - found.keys():
            found[other] = found[word] + 1
            queue.append(other)
    return found


@pytest.mark.parametrize("start", ["", "a", "ab", "ca", "abc", "aabb", "abca", "bcaa"])
def test_the_distance_is_the_fewest_edits(start):
    for word, distance in by_search(start, 5, "abc").items():
        if len(word) <= 4:
            assert damerau_levenshtein(start, word) == distance, word


def test_the_distance_by_hand():
    assert damerau_levenshtein("ca", "abc") == 2, "3 where a swap may not be edited again"
    assert damerau_levenshtein([1, 2, 3, 4], [1, 3, 2, 4]) == 1
    assert damerau_levenshtein("", "abc") == 3
    assert similarity("abcd", "acbd") == 0.75
    assert similarity("", "") == 1.0
    assert similarity("", "a") == 0.0


def test_a_tally_in_pieces_is_the_tally():
    torch.manual_seed(0)
    logp, wanted = torch.randn(40, 6).log_softmax(-1), torch.randint(1, 6, (40,))
    whole, pieces = Tally(6), Tally(6)
    whole.next(logp, wanted)
    for piece in (slice(0, 7), slice(7, 7), slice(7, 40)):
        pieces.next(logp[piece], wanted[piece])
    assert pieces.scores() == pytest.approx(whole.scores())
    worse = Tally(6)  # the tally has to notice a model that is sure of the wrong thing
    worse.next(torch.full((40, 6), -20.0).scatter(1, (wanted % 5 + 1)[:, None], 0.0), wanted)
    assert worse.scores()["accuracy"] == 0
    assert worse.scores()["Brier"] == pytest.approx(2, abs=1e-3)


# Suffixes ----------------------------------------------------------------------------------------


@torch.no_grad()
def by_reading_again(model, schema, tokens, reals, chosen):
    """log P of a way to go on, and when it comes, by reading the whole sequence for each step."""
    total, clock, times = 0.0, 0.0, []
    for symbol in chosen:
        said, _ = model(Inputs(tokens[None], reals[None]))
        logits = said.logits[0, -1].double()
        logits[0] = -math.inf
        total += float(logits.log_softmax(-1)[symbol])
        if symbol == schema.end:
            break
        gap = median(said.gap[0, -1:])
        clock += float(gap)
        times.append(clock)
        reals = torch.cat([reals, schema.after(reals[-1:], gap)])
        tokens = torch.cat([tokens, tokens[-1:].clone()])
        tokens[-1, 0] = symbol
    return total, times


@pytest.mark.parametrize(("layers", "most"), [("min_gru", 2), ("attention", 2)])
def test_beams_find_the_likeliest_ways(layers, most, small):
    domain, model = small("events", layers)
    schema, packed = domain.schema, domain.dataset.parts["test"]
    begin, end = packed.begins[2:3], packed.begins[2:3] + 2
    tokens, reals = packed.inputs_at(torch.arange(int(begin), int(end) + 1))
    symbols = range(1, schema.tokens[0])
    ways = [
        way
        for length in range(1, most + 1)
        for way in itertools.product(symbols, repeat=length)
        if schema.end not in way[:-1] and (length == most or way[-1] == schema.end)
    ]
    every = {way: by_reading_again(model, schema, tokens, reals, way) for way in ways}
    assert sum(math.exp(p) for p, _ in every.values()) == pytest.approx(1)
    best = sorted(every, key=lambda way: -every[way][0])
    rows = read_histories(model, packed, begin, end)
    (found,) = continue_cases(model, schema, rows, most=most, beams=400)
    assert len(found) == len(ways)
    for one, way in zip(found[:40], best, strict=False):
        assert one.log_chance == pytest.approx(every[way][0], abs=1e-4)
        mine = tuple(one.symbols) + ((schema.end,) if one.ended else ())
        assert every[mine][0] == pytest.approx(one.log_chance, abs=1e-4)
        assert one.times == pytest.approx(every[mine][1], rel=1e-3)
        assert one.ended is (mine[-1] == schema.end)
    (narrow,) = continue_cases(model, schema, rows, most=most, beams=3)
    assert [f.log_chance for f in narrow] == sorted((f.log_chance for f in narrow), reverse=True)
    assert narrow[0].log_chance <= found[0].log_chance + 1e-6
    (greedy,) = continue_cases(model, schema, rows, most=most)
    way: list[int] = []
    while len(way) < most and schema.end not in way:  # one step at a time, by the likeliest
        way.append(
            max(symbols, key=lambda s: by_reading_again(model, schema, tokens, reals, [*way, s])[0])
        )
    assert greedy[0].symbols == [s for s in way if s != schema.end]


@pytest.mark.parametrize("layers", ["min_gru", "attention", "lstm"])
def test_histories_side_by_side_are_each_alone(layers, small):
    domain, model = small("events", layers)
    schema, packed = domain.schema, domain.dataset.parts["test"]
    ends = packed.begins + (packed.lengths - 1) // 2
    together = suffixes(model, schema, packed, packed.begins, ends, beams=2, most=4)
    for i in range(0, len(ends), 3):
        one = slice(i, i + 1)
        at = torch.arange(int(packed.begins[i]), int(ends[i]) + 1)
        tokens, reals = packed.inputs_at(at)
        with torch.no_grad():
            said, state = model(Inputs(tokens[None], reals[None]))
        rows = Rows(state, last_step(said), Inputs(tokens[None, -1:], reals[None, -1:]))
        alone = continue_cases(model, schema, rows, most=4, beams=2)[0]
        read = read_histories(model, packed, packed.begins[one], ends[one], reach=None)
        torch.testing.assert_close(read.said.logits, said.logits[:, -1:], atol=1e-5, rtol=0)
        for a, b in zip(together[i], alone, strict=True):
            assert a.symbols == b.symbols
            assert a.log_chance == pytest.approx(b.log_chance, abs=1e-4)


def test_what_is_drawn_comes_as_often_as_the_model_expects(small):
    domain, model = small("events")
    schema, packed = domain.schema, domain.dataset.parts["test"]
    begin, end = packed.begins[2:3], packed.begins[2:3] + 2
    tokens, reals = packed.inputs_at(torch.arange(int(begin), int(end) + 1))
    rows = read_histories(model, packed, begin, end)
    rng, count = torch.Generator().manual_seed(0), 1500
    (found,) = draw_cases(model, schema, rows, most=2, samples=count, rng=rng)
    total = 0.0
    for one in found:  # each different way, once
        way = [*one.symbols, *([schema.end] if one.ended else [])]
        log_chance, times = by_reading_again(model, schema, tokens, reals, way)
        assert one.log_chance == pytest.approx(log_chance, abs=1e-4)
        assert one.times == pytest.approx(times, rel=1e-3)
        total += math.exp(log_chance)
    assert len({tuple(f.symbols) for f in found}) == len(found) > 30
    assert 0.95 < total <= 1 + 1e-6, "what is likely was drawn"
    many = read_histories(model, packed, begin.repeat(500), end.repeat(500))
    drawn = draw_cases(model, schema, many, most=1, samples=1, rng=rng)
    firsts = [one[0].symbols[0] if one[0].symbols else schema.end for one in drawn]
    chance = rows.said.logits[0, 0].clone()
    chance[0] = -math.inf
    for symbol, p in enumerate(chance.softmax(-1).tolist()):
        assert abs(firsts.count(symbol) / 500 - p) < 4 * math.sqrt(p * (1 - p) / 500) + 1e-9


def test_the_guess_is_the_one_most_like_the_others():
    ways = [(1, 2, 3), (1, 2, 3, 4), (1, 2, 4), (5,), (1, 2, 3, 4)]
    found = by_likeness(ways)
    mean = {w: np.mean([similarity(w, x) for x in ways]) for w in ways}
    assert found == sorted(set(ways), key=lambda w: -mean[w])
    assert found[0] == (1, 2, 3, 4)
    assert found[-1] == (5,)


def test_questions_are_whole_and_honest(small):
    domain, _ = small("events")
    schema, packed = domain.schema, domain.dataset.parts["test"]
    asked = suffix_questions(packed, schema)
    unknown = packed.targets_at(packed.begins + packed.lengths - 1)["token"] != schema.end
    assert len(asked.real) == int((~unknown).sum())
    for begin, end, history, real in zip(*asked, strict=True):
        case = packed.tokens[int(begin) :][: len(history) + len(real), 0].tolist()
        assert history.tolist() + real == case
        assert int(end) == int(begin) + len(history) - 1
        assert real
    assert asked.similarity([list(r) for r in asked.real]) == 1.0
    assert asked.similarity([[] for _ in asked.real]) == 0.0
    few = suffix_questions(packed, schema, most=3)
    assert len(few.real) == 3


def test_where_cases_do_not_end_the_next_ten_are_asked(files):
    domain = domain_of(open_dataset(files["events"], DataOptions(ends="no")))
    schema, packed = domain.schema, domain.dataset.parts["test"]
    asked = suffix_questions(packed, schema)
    assert max(map(len, asked.real)) <= schema.suffix == 10
    assert cut([[1] * 10 for _ in asked.real], asked, schema) == [[1] * len(r) for r in asked.real]
    assert "remaining error" not in [m.name for m in domain.metrics]
    model = SequenceModel(domain.config("min_gru", 16)).eval()
    assert list(domain.score(model)) == [m.name for m in domain.metrics]
    answers = ss.Model(model, schema)
    assert len(answers.suffix(HISTORY)[0].what) == 10
    with pytest.raises(
        ValueError, match=r"remaining_time: this model.*cases do not end.*--ends yes"
    ):
        answers.remaining_time(HISTORY)
    with pytest.raises(ValueError, match=r"predict_table: this model.*cases do not end"):
        answers.predict_table(events_frame(), what="remaining")


# The verbs ---------------------------------------------------------------------------------------


def test_every_question_alone_and_by_table(models):
    model, frame = models("events"), events_frame(12)
    new = frame["case"] == "N004"
    one = frame[new]
    history, times = one["activity"].tolist(), one["timestamp"].astype(str).tolist()
    by_table = {w: model.predict_table(frame, what=w) for w in ("time", "remaining", "suffix")}
    assert all(list(found) == sorted(frame["case"].unique()) for found in by_table.values())
    near = {"rel": 1e-4}
    assert by_table["time"]["N004"] == pytest.approx(model.next_time(history, times), **near)
    assert by_table["time"]["N004"] == pytest.approx(model.next_time(one), **near)
    left = model.remaining_time(history, times)
    assert by_table["remaining"]["N004"] == pytest.approx(left, **near)
    assert left > 0
    greedy = model.predict_table(frame, what="suffix", beams=1)
    (said,) = model.suffix(history, times, beams=1)
    assert greedy["N004"].what == said.what
    assert by_table["suffix"].keys() == greedy.keys()
    by_table["suffix"] = greedy
    assert by_table["suffix"]["N004"].probability == pytest.approx(said.probability, rel=1e-3)
    assert set(said.what) <= set(LEGS)
    assert len(said.times) == len(said.what)
    assert list(said.times) == sorted(said.times)
    wide = model.suffix(history, times, beams=4)
    assert [s.probability for s in wide] == sorted((s.probability for s in wide), reverse=True)
    assert len({s.what for s in wide}) == len(wide) == 4
    assert len(model.suffix(history, most=2)[0].what) <= 2
    assert any(p.what == "(end of case)" for p in model.predict(history, top=99))


def test_the_first_event_of_a_suffix_is_the_prediction(models):
    model = models("events")
    first = model.suffix(HISTORY, TIMES, most=1, beams=1)[0]
    likeliest = model.predict(HISTORY, times=TIMES, top=1)[0]
    assert first.what[:1] == (() if first.ended else (likeliest.what,))
    assert first.probability == pytest.approx(likeliest.probability, rel=1e-5)
    if first.times:
        assert first.times[0] == pytest.approx(model.next_time(HISTORY, TIMES), rel=1e-5)


def test_what_is_new_in_a_table_is_read_as_new_and_told(models):
    model, frame = models("events"), events_frame(6)
    frame.loc[[1, 2], "activity"] = ["SFO>JFK", "MARS>JFK"]
    with pytest.warns(NewInTableWarning, match=r"2 rows hold what.*'MARS>JFK', 'SFO>JFK'\); they"):
        found = model.predict_table(frame)
    assert len(found) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict_table(events_frame(6))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: m.suffix([]), "suffix: want at least one event of history"),
        (lambda m: m.remaining_time([]), "remaining_time: want at least one event"),
        (lambda m: m.suffix(HISTORY, beams=0), "want beams >= 1, got 0"),
        (lambda m: m.suffix(HISTORY, samples=0), "want samples >= 1, got 0"),
        (lambda m: m.suffix(HISTORY, most=0), "want most >= 1, got 0"),
        (lambda m: m.suffix(["MARS>JFK"]), "'MARS>JFK' was never seen in training"),
        (lambda m: m.suffix(HISTORY, TIMES[::-1]), "event 2 is before the one before it"),
        (lambda m: m.suffix(HISTORY, TIMES[:1]), "want one for each of 3 events, got 1"),
        (lambda m: m.predict_table(events_frame(), what="rest"), "unknown question .*'rest'"),
        (lambda m: m.predict_table(events_frame(), top=0), "want top >= 1"),
        (
            lambda m: m.predict_table(events_frame().rename(columns={"activity": "leg"})),
            'no column "activity" for the activity. Columns: case, leg, timestamp',
        ),
        (
            lambda m: m.predict_table(events_frame().assign(timestamp="soon")),
            'row 1, column "timestamp": "soon" is not a time',
        ),
    ],
)
def test_what_cannot_be_answered_is_said(ask, message, models):
    with pytest.raises(ValueError, match=message) as caught:
        ask(models("events"))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, DataError | ValueError)


@pytest.mark.parametrize("layers", ["min_gru", "attention"])
def test_an_old_answer_stays_when_saved(layers, small, tmp_path):
    domain, network = small("events", layers)
    model = ss.Model(network, domain.schema)
    again = ss.load(model.save(tmp_path / layers))
    assert again.suffix(HISTORY, TIMES, beams=2) == model.suffix(HISTORY, TIMES, beams=2)
    assert again.remaining_time(HISTORY, TIMES) == model.remaining_time(HISTORY, TIMES)


# The command -------------------------------------------------------------------------------------


@pytest.fixture
def run(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    events_frame(5).to_csv("log.csv", index=False)
    return str(models("events").about["folder"])


@pytest.mark.parametrize("what", ["next", "time", "remaining", "suffix"])
def test_the_command_answers_as_the_model(what, run, models, capsys):
    model = models("events")
    assert main(["predict", run, "--file", "log.csv", "--what", what, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    found = model.predict_table(events_frame(5), what=what)
    assert list(dict.fromkeys(row["of"] for row in rows)) == list(found)
    if what in ("time", "remaining"):
        (column,) = set(rows[0]) - {"of"}
        assert column.startswith("seconds to the")
        said = {row["of"]: row[column] for row in rows}
        assert said == {name: pytest.approx(value, rel=1e-4) for name, value in found.items()}
    if what == "suffix":
        assert [row["events"] for row in rows] == [len(s.what) for s in found.values()]
    command = ["predict", run, *HISTORY, "--what", what, "--times", *TIMES]
    assert main(command) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 2


@pytest.mark.filterwarnings("default")
def test_the_command_tells_what_is_new(run, capsys):
    frame = events_frame(5)
    frame.loc[0, "activity"] = "MARS>JFK"
    frame.to_csv("new.csv", index=False)
    assert main(["predict", run, "--file", "new.csv", "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 15
    assert re.search(r"note.*new.csv.*1 rows hold what training never showed \('MARS>JFK'\)", err)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--what", "rest", "JFK>LAX"], "unknown question to a model of events 'rest'"),
        (["--file", "log.csv", "--times", "2024-01-01"], "--times are of a history"),
        (["--what", "suffix", "--beams", "0", "JFK>LAX"], "want beams >= 1, got 0"),
        (["--what", "time", "MARS>JFK"], "was never seen in training"),
    ],
)
def test_a_bad_question_is_one_line(words, message, run, capsys):
    assert main(["predict", run, *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_the_report_shows_cases_and_methods(small):
    domain, model = small("events")
    names = [name for name, _ in domain.baselines()]
    tables = domain.examples({"a model": model})
    assert [t["type"] for t in tables] == ["table"] * 3
    for table in tables:
        assert table["rows"]
        assert all(len(row) == len(table["columns"]) for row in table["rows"])
    assert [row[0] for row in tables[2]["rows"]] == names
    assert "hours" in tables[0]["rows"][0][2]
    frame = pd.DataFrame(tables[1]["rows"], columns=tables[1]["columns"])
    assert frame["a model"].str.fullmatch(r".* \((0|1)\.\d\d\)").all()
    assert np.isfinite(frame["events read"]).all()
