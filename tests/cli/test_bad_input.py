"""Bad input is one line that says what was wanted, what came and what to do; nothing is left."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_data import TINY, events_frame, interactions_frame, prose, series_frame
from made_up_sequences import sensors_frame
from made_up_students import students

import stepscan as ss
from stepscan.apps.fit import fit
from stepscan.cli import main
from stepscan.data.base import DataOptions

QUICK = ["--steps", "2", "--width", "16", "--rows", "2", "--length", "16"]


def csv(frame, **more):
    return frame.to_csv(index=False, **more)


def with_cell(frame, row, column, value):
    frame = frame.astype({column: object})
    frame.loc[row, column] = value
    return frame


HOURS = series_frame(("a",), 200)
FILES = {
    "empty.csv": "",
    "header.csv": "ds,y\n",
    "one column.csv": "a~b\n1~2\n3~4\n",
    "words.csv": "name,colour\nann,red\nbob,blue\n",
    "times.csv": csv(with_cell(HOURS, 17, "ds", "yesterday")),
    "short.csv": csv(HOURS[:9]),
    "inf.csv": csv(with_cell(HOURS, 6, "y", "inf")),
    "not a number.csv": csv(with_cell(HOURS, 1203 % 200, "y", "n/a")),
    "twice.csv": csv(pd.concat([HOURS, HOURS[5:6]])),
    "far.csv": csv(with_cell(HOURS, 17, "ds", "9999-12-31")),
    "endless.csv": csv(with_cell(HOURS, 17, "ds", "inf")),
    "thousands.csv": csv(HOURS.assign(y=[f"{x:,}" for x in (37 * np.arange(200) ** 2) % 99_991])),
    "one thousand.csv": csv(with_cell(HOURS, 17, "y", "1,234")),
    "zones.csv": csv(HOURS.assign(ds=HOURS["ds"].astype(str) + ["+00:00", "+01:00"] * 100)),
    "column twice.csv": csv(HOURS).replace("ds", "y", 1),
    "few cases.csv": csv(events_frame(4)),
    "archive.zip": "PK",
    "binary.csv": "a,b\n1,\0\n",
    "broken.jsonl": '{"text": "a"}\n{"text": \n',
    "short.txt": "hello",
    "deep.jsonl": "[" * 200_000,
    "bought.csv": csv(interactions_frame()),
    "epochs.csv": csv(with_cell(interactions_frame(), 7, "timestamp", "soon")),
    "no channel.csv": csv(sensors_frame(20).assign(noise="")),
    "events.csv": csv(events_frame()),
    "series.csv": csv(series_frame()),
}
CASES = {
    "missing file": ("fit nothing.csv", "nothing.csv: no such file or folder"),
    "missing name": ("fit shakespear", "Did you mean 'shakespeare'"),
    "empty file": ("fit empty.csv", "the file is empty"),
    "only a header": ("fit header.csv", "no rows below its header"),
    "wrong delimiter": ("fit 'one column.csv'", "one column.*want a table separated by comma"),
    "no usable column": ("fit words.csv", "no usable column.*Name them, as in --target"),
    "unparsable time": ("fit times.csv", 'row 18, column "ds": "yesterday" is not a time'),
    "series too short": ("fit short.csv", "the longest series has 9 .* needs at least"),
    "infinite": ("fit inf.csv", 'row 7, column "y": the value is infinite'),
    "not a number": ("fit 'not a number.csv'", '"n/a" is not a number.*--missing n/a'),
    "a time twice": ("fit twice.csv", "was there before"),
    "a time twice, of two zones": ("fit zones.csv", "was there before.*2 offsets from UTC"),
    "a date too far": ("fit far.csv", 'row 18, column "ds": "9999-12-31" is no date from 1678 to'),
    "a time that is a number": ("fit endless.csv", 'row 18, column "ds": "inf" is not a time'),
    "commas that part thousands": ("fit thousands.csv", 'the comma in "1,.*seems to part thousan'),
    "one of them": ("fit 'one thousand.csv'", '"1,234" is not a number. Write numbers without sep'),
    "a column twice": ("fit 'column twice.csv'", 'column "y" is there twice; rename one of them'),
    "too few cases": ("fit 'few cases.csv'", "at least 10 cases to hold some out, got 4"),
    "archive": ("fit archive.zip", r"\.zip is not read; unpack it"),
    "binary": ("fit binary.csv", "got a binary file"),
    "broken jsonl": ("fit broken.jsonl", "row 2 is not JSON"),
    "nested jsonl": ("fit deep.jsonl", "row 1 is not JSON"),
    "a word among epochs": ("fit epochs.csv", 'row 8, column "timestamp": "soon" is not a time'),
    "no table of items": ("fit bought.csv --items nothing.csv", "nothing.csv: no such file"),
    "short text": ("fit short.txt", "at least a few hundred bytes of text, got 5"),
    "wrong column": ("fit series.csv --target kWh", 'no column "kWh" for the target. Columns:'),
    "wrong kind": ("fit series.csv --kind serious", "Did you mean 'series'"),
    "mixer mistyped": (
        "fit events.csv --layers gated_deltanet",
        "unknown mixer 'gated_deltanet'. Did you mean 'gated_delta_net'",
    ),
    "mixer mistyped by its other flag": (
        "fit events.csv --mixer gated_deltanet",
        "unknown mixer 'gated_deltanet'. Did you mean 'gated_delta_net'",
    ),
    "mixer mistyped in compare": (
        "compare events.csv --mixers min_gru,lstn",
        "unknown mixer 'lstn'. Did you mean 'lstm'",
    ),
    "no mixer": ("compare events.csv --mixers ,", "0 candidates"),
    "no seeds": ("compare events.csv --seeds 0", "0 seeds"),
    "compare budget of zero": ("compare events.csv --minutes 0", "minutes above zero, got 0"),
    "compare rows of zero": ("compare events.csv --rows 0", "want rows >= 1, got 0"),
    "compare one bad file of two": ("compare events.csv empty.csv", "the file is empty"),
    "option of a mixer": ("fit events.csv --layers gla[headz=2]", "Did you mean 'heads'"),
    "no layers": ("fit events.csv --layers ''", "at least one mixer"),
    "width and heads": (
        "fit events.csv --layers attention --width 30",
        "heads=4 must divide width=30",
    ),
    "width of zero": ("fit events.csv --width 0", "want width from 1 .*got 0"),
    "budget of zero": ("fit events.csv --steps 0", "want steps above zero, got 0"),
    "negative budget": ("fit events.csv --minutes -3", "want minutes above zero, got -3"),
    "endless budget": ("fit events.csv --minutes inf", "want minutes above zero, got inf"),
    "two budgets": ("fit events.csv --steps 3 --minutes 1", "exactly one of steps, tokens and"),
    "rows of zero": ("fit events.csv --rows 0", "want rows >= 1, got 0"),
    "learning rate": ("fit events.csv --learning-rate 0", "want learning_rate above zero"),
    "dropout": ("fit events.csv --dropout 1", "want 0 <= dropout < 1"),
    "unknown flag": ("fit events.csv --stepz 3", "unknown option --stepz. Did you mean '--steps'"),
    "not a whole number": ("fit events.csv --steps x", "--steps: want a whole number, got 'x'"),
    "not a seed": ("fit events.csv --seed x", "--seed: want a whole number, got 'x'"),
    "not a number of minutes": ("compare events.csv --minutes x", "--minutes: want a number, got"),
    "no value": ("fit events.csv --steps", "--steps.*Expected"),
    "unknown command": ("fitt events.csv", "unknown command 'fitt'. Did you mean 'fit'"),
    "nothing to resume": ("fit --resume runs/none", "is runs/none a run folder"),
    "resume with settings": ("fit --resume runs/none --steps 3", "leave the others out"),
    "a file in the way": ("fit events.csv --out events.csv", "is not empty; choose another --out"),
    "no model": ("generate nowhere", "nowhere: want a model folder with config.json"),
    "forecast without a model": ("forecast", "fit|MODEL|required"),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words_of(line):
    return [word.strip("'") for word in re.findall(r"'[^']*'|\S+", line)]


def refused(line, capsys, *, code=2):
    """Run a command that must fail, and return its one line."""
    assert main(words_of(line)) == code
    out, err = capsys.readouterr()
    assert err.startswith("stepscan: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert len(err) < 600
    assert not out
    return err


@pytest.mark.parametrize(("line", "wanted"), CASES.values(), ids=CASES)
def test_bad_input_is_one_line_and_leaves_nothing(line, wanted, here, capsys):
    before = sorted(here.rglob("*"))
    assert re.search(wanted, refused(line, capsys))
    assert sorted(here.rglob("*")) == before


# Models ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each kind; tests copy what they damage."""
    folder = tmp_path_factory.mktemp("cli")
    makers = {
        "text": ("prose.txt", prose(), None),
        "events": ("events.csv", csv(events_frame()), None),
        "series": ("series.csv", csv(series_frame()), DataOptions(horizon=6, test=24, valid=24)),
        "interactions": ("interactions.csv", csv(interactions_frame()), None),
    }
    for kind, (name, content, options) in makers.items():
        (folder / name).write_text(content)
        fit(folder / name, options=options, out=folder / kind, layers="min_gru", **TINY)
    fit("digits", out=folder / "labelled", layers="min_gru", **TINY)
    frame = series_frame()
    (folder / "few.csv").write_text(csv(frame[:9]))
    (folder / "one.csv").write_text(csv(frame[:1]))
    answers = students(users=12, skills=2, each=3, answers=8)[0]
    (folder / "answers.csv").write_text(csv(answers))
    (folder / "new answers.csv").write_text(csv(with_cell(answers, 3, "question", "new")))
    fit(folder / "answers.csv", out=folder / "responses", layers="min_gru", **TINY)
    (folder / "other.csv").write_text(csv(interactions_frame().assign(item="q")))
    (folder / "new item.csv").write_text(csv(with_cell(interactions_frame(), 3, "item", "new")))
    log = events_frame()
    (folder / "no.csv").write_text(csv(log.assign(activity="")))
    (folder / "none.csv").write_text(csv(log[:0]))
    (folder / "empty.csv").write_text("")
    (folder / "tilde.csv").write_text(csv(log, sep="~"))
    (folder / "far.csv").write_text(csv(with_cell(frame, 3, "ds", "1970-01-01")))
    return folder


@pytest.fixture
def run(runs, monkeypatch, tmp_path):
    """A copy of the run of events, in a fresh working directory."""
    shutil.copytree(runs / "events", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


QUESTIONS = {
    "an event never seen": (
        "predict {0}/events JFK>LAXX",
        "activity 'JFK>LAXX' was never seen in training .6 were.. Did you mean 'JFK>LAX'",
    ),
    "an item never seen": ("predict {0}/interactions xyz", "item 'xyz' was never seen"),
    "no history": ("predict {0}/events", "want a history, or a table with --file"),
    "both": ("predict {0}/events JFK>LAX --file x.csv", "one of the two"),
    "a table without a column": (
        "predict {0}/events --file {0}/series.csv",
        'no column "case" for the case. Columns: unique_id, ds, y',
    ),
    "a table that is not there": ("predict {0}/events --file x.csv", "x.csv: no such file"),
    "top": ("predict {0}/events JFK>LAX --top 0", "want top >= 1, got 0"),
    "words for pixels": ("predict {0}/labelled black white", "want 1 channels of numbers"),
    "predict of text": ("predict {0}/text the", "of text; ask it with generate"),
    "a table of series": ("predict {0}/series --file {0}/series.csv", "ask it with forecast"),
    "generate from events": (
        "generate {0}/events",
        "generate: wants a model of text, this one is of events; ask it with predict",
    ),
    "length": ("generate {0}/text --length 0", "want length >= 1, got 0"),
    "temperature": ("generate {0}/text --temperature -1", "want temperature from 0.0"),
    "forecast of events": ("forecast {0}/events", "wants a model of series"),
    "forecast without a column": (
        "forecast {0}/series {0}/events.csv",
        'no column "ds" for the time. Columns: case, activity, timestamp',
    ),
    "forecast of another data set": ("forecast {0}/series elecdemand", "read in another way"),
    "a date that makes a long grid": (
        "forecast {0}/series {0}/far.csv",
        "520 rows from 1970.*too few for 47.,... steps of hours: is one of these times wrong",
    ),
    "too few steps to judge": (
        "anomalies {0}/series {0}/few.csv",
        "want series of more than 24 steps, by which the next are judged; the longest here has 9",
    ),
    "update with no regular steps": (
        "update {0}/series {0}/one.csv",
        "has no regular steps, the model learned steps of hours",
    ),
    "a table of unknown items": (
        "predict {0}/interactions --file {0}/other.csv",
        "none of the items in column .item. was seen in training .* is it the right column",
    ),
    "rows without activities": (
        "predict {0}/events --file {0}/no.csv --what time",
        'no.csv: no row with a "case" and a "activity"',
    ),
    "a header alone, to be answered in a file": (
        "predict {0}/events --file {0}/none.csv --out a.csv",
        "the file has no rows below its header",
    ),
    "an empty file, to be answered in a file": (
        "predict {0}/events --file {0}/empty.csv --out a.csv",
        "empty.csv: the file is empty",
    ),
    "another delimiter, to be answered in a file": (
        "predict {0}/events --file {0}/tilde.csv --out a.csv",
        'no column "case" for the columns of training. Columns: case~activity~timestamp',
    ),
    "an answer in no folder": (
        "forecast {0}/series {0}/series.csv --out no/where.csv",
        "no: no such folder",
    ),
    "an answer in a folder": ("impute {0}/series {0}/series.csv --out .", "is a folder; want the"),
    "forecast of nothing": ("forecast {0}/series nothing.csv", "nothing.csv: no such file"),
}


@pytest.mark.parametrize(("line", "wanted"), QUESTIONS.values(), ids=QUESTIONS)
def test_questions_that_a_model_cannot_answer(line, wanted, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert re.search(wanted, refused(line.format(runs), capsys))
    assert not list(tmp_path.iterdir())


def edit(change):
    def apply(model):
        data = json.loads((model / "config.json").read_text())
        change(data)
        (model / "config.json").write_text(json.dumps(data))

    return apply


def flip(model):
    content = bytearray((model / "weights.safetensors").read_bytes())
    content[-5] ^= 1
    (model / "weights.safetensors").write_bytes(content)


DAMAGE = {
    "nested without end": (lambda m: (m / "config.json").write_text("[" * 200_000), "not JSON"),
    "truncated weights": (lambda m: os.truncate(m / "weights.safetensors", 99), "truncated"),
    "truncated config": (lambda m: os.truncate(m / "config.json", 99), "was it cut off"),
    "flipped bit": (flip, "sha256 differs"),
    "another version": (edit(lambda d: d.update(version=9)), "version 9; this stepscan reads"),
    "unknown key": (edit(lambda d: d["model"].update(widht=3)), "Did you mean 'width'"),
    "unknown mixer": (edit(lambda d: d["model"]["layers"][0].update(name="lstn")), "'lstm'"),
    "unknown key of the schema": (edit(lambda d: d["extra"]["schema"].update(x=1)), "unknown keys"),
    "gone": (lambda m: (m / "weights.safetensors").unlink(), "found none"),
}


@pytest.mark.parametrize(("damage", "wanted"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_model_is_refused(damage, wanted, run, capsys):
    damage(run / "model")
    assert re.search(wanted, refused("predict run JFK>LAX", capsys))


def test_two_runs_in_one_folder(run, runs, capsys):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    said = refused(f"fit {runs}/events.csv --out run {' '.join(QUICK)}", capsys)
    assert "run: is not empty; choose another --out, or --resume run" in said
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_run_of_other_data_is_not_resumed(run, capsys):
    plan = json.loads((run / "run.json").read_text())
    other = run.parent / "other.csv"
    other.write_text(csv(events_frame(30)))
    (run / "run.json").write_text(json.dumps(plan | {"source": str(other)}))
    assert main(["fit", "--resume", "run"]) == 2
    assert "other" in capsys.readouterr().err.splitlines()[-1]
    (run / "run.json").write_text(json.dumps({"source": "digits"}))
    assert "run.json: not of this version" in refused("fit --resume run", capsys)


FULL = """
import resource, sys
import stepscan as ss
model = ss.load("run")
model.about["new"] = "x"
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    model.save("run/model")
except OSError as error:
    sys.exit(f"refused: {error}")
"""


def test_no_room_for_a_model_leaves_the_old_one(run):
    """The kernel refuses to let files grow, as a full disk does."""
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, check=False)
    assert "refused: " in done.stderr, done.stderr
    assert "new" not in ss.load("run").about
    assert not [p for p in run.iterdir() if p.name.startswith(".stage")]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096


def test_no_room_for_a_checkpoint_is_one_line(here, capsys, monkeypatch):
    usage = shutil.disk_usage(here)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
    assert main(["fit", "events.csv", "--out", "run", "--layers", "min_gru", *QUICK]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"stepscan: .*a checkpoint needs [\d,]+ bytes, 0 are free\n", err)
    monkeypatch.undo()
    os.chdir(here)
    assert main(["fit", "--resume", "run", "--quiet"]) == 0


# What commands print -----------------------------------------------------------------------------


def test_quiet_is_quiet_and_json_is_only_json(here, capfd):
    fit_ = ["fit", "events.csv", "--layers", "min_gru", *QUICK]
    assert main([*fit_, "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")
    assert main([*fit_, "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["test"]["accuracy"] >= 0
    assert not err
    assert sorted(p.name for p in (here / "runs").iterdir()) == ["events-1", "events-2"]
    compare = ["compare", "events.csv", "--mixers", "min_gru", "--seeds", "1", "--minutes", "0.003"]
    assert main([*compare, *QUICK[2:], "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")
    assert main([*compare, *QUICK[2:], "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["sections"][0]["verdict"]


def test_people_see_what_was_inferred_the_scores_and_what_to_do_next(here, capsys):
    assert main(["fit", "events.csv", "--layers", "min_gru", *QUICK]) == 0
    out, err = capsys.readouterr()
    for word in ("events.csv   events", "model  ", "done  ", "beside  ", "Markov chain", "saved  "):
        assert word in out
    assert "next        stepscan predict runs/events-1" in out
    assert len(out.splitlines()) < 12
    assert not err


def test_a_header_that_looks_like_values_is_noted(here, capsys):
    content = csv(HOURS).split("\n", 1)[1]
    (here / "bare.csv").write_text(content)
    assert main(["fit", "bare.csv", "--layers", "min_gru", "--horizon", "6", *QUICK]) == 0
    assert 'looks like values ("2024-01-01 00:00:00")' in capsys.readouterr().out


@pytest.mark.filterwarnings("default")
def test_what_training_never_showed_is_said(runs, capsys):
    """Also of a table to predict for; the answers are given."""
    for kind, file in (("responses", "new answers.csv"), ("interactions", "new item.csv")):
        assert main(["predict", str(runs / kind), "--file", str(runs / file), "--json"]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)
        assert "that training never showed" in err
        assert " 1 of " in err


@pytest.mark.filterwarnings("default")
def test_a_column_without_values_is_said(here, capsys):
    words = ["fit", "no channel.csv", "--layers", "min_gru", "--out", "run", *QUICK]
    assert main(words) == 0
    assert 'column "noise" holds no values: left out' in capsys.readouterr().out
    sensors_frame(20).assign(x="").to_csv("new.csv", index=False)
    assert main(["predict", "run", "--file", "new.csv"]) == 0
    assert 'column "x" holds no values; it is read as missing' in capsys.readouterr().err


ANSWERS = {
    "events": ["JFK>LAX", "LAX>JFK"],
    "interactions": ["film 1", "film 2"],
    "labelled": [str(x) for x in np.arange(64) % 17],
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_predict_answers_people_and_programs(kind, runs, capsys):
    words = ["predict", str(runs / kind), *ANSWERS[kind], "--top", "2"]
    assert main(words) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["place"] for row in rows] == [1, 2]
    assert 1 >= rows[0]["probability"] >= rows[1]["probability"] > 0


def test_predict_answers_for_a_whole_table(runs, capsys):
    assert (
        main(["predict", str(runs / "events"), "--file", str(runs / "events.csv"), "--json"]) == 0
    )
    rows = json.loads(capsys.readouterr().out)
    assert len({row["of"] for row in rows}) == 40
    history = list(ANSWERS["interactions"])
    words = ["predict", str(runs / "interactions"), *history, "--top", "99", "--exclude-seen"]
    assert main([*words, "--json"]) == 0
    assert not {row["what"] for row in json.loads(capsys.readouterr().out)} & set(history)


def test_forecast_and_generate(runs, capsys, tmp_path):
    assert main(["forecast", str(runs / "series"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [len(rows), rows[0]["0.05"] <= rows[0]["0.95"]] == [12, True]
    out = tmp_path / "ahead.csv"
    words = ["forecast", str(runs / "series"), str(runs / "series.csv"), "--out", str(out)]
    assert main(words) == 0
    assert "12 rows" in capsys.readouterr().out
    assert len(pd.read_csv(out)) == 12
    assert main(["generate", str(runs / "text"), "--prompt", "the", "--length", "9"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("the")
    words = ["generate", str(runs / "text"), "--prompt", "the", "--length", "9", "--json"]
    assert main(words) == 0
    assert "the" + json.loads(capsys.readouterr().out)["text"] == first.rstrip("\n")


def renamed(frame, **more):
    names = {"ds": "Measured At", "y": "kWh", "unique_id": "Site Name", "item": "product"}
    names |= {"case": "ORDER ID", "activity": "STEP"}
    return csv(frame.rename(columns=names), **more)


ORDERS = events_frame().rename(columns={"timestamp": "WHEN"})
BOUGHT = interactions_frame()
BOUGHT["when"] = pd.to_datetime(BOUGHT.pop("timestamp"), unit="s")
OTHER_NAMES = {
    "series": (
        renamed(series_frame()),
        ["--horizon", "6"],
        ['time "Measured At"', 'series "Site Name"', 'target "kWh"'],
    ),
    "events": (
        renamed(ORDERS, sep=";"),
        ["--activity", "STEP"],
        ['case "ORDER ID"', 'activity "STEP"', 'time "WHEN"'],
    ),
    "interactions": (renamed(BOUGHT), [], ['user "user"', 'item "product"', 'time "when"']),
}


@pytest.mark.parametrize(("content", "told", "wanted"), OTHER_NAMES.values(), ids=OTHER_NAMES)
def test_columns_of_any_name_are_found_and_said(content, told, wanted, here, capsys):
    Path("data.csv").write_text(content)
    code = main(["fit", "data.csv", "--layers", "min_gru", *told, *QUICK])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert all(words in out for words in wanted)


@pytest.mark.parametrize(
    "words", [["--help"], [], ["--version"], ["fitt"]], ids=lambda words: " ".join(words) or "none"
)
def test_the_front_door_does_not_wait_for_torch(words):
    code = (
        "import sys, stepscan, stepscan.cli; "
        f"stepscan.cli.main({words!r}); "
        "slow = {'torch', 'numpy', 'pandas', 'tyro'} & set(sys.modules); "
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
