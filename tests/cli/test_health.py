"""`stepscan health` on a run of text: for people, for programs, and what it refuses."""

import json

import pytest
from made_up_data import TINY, events_frame, prose

from stepscan.apps.fit import fit
from stepscan.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("health")
    (folder / "prose.txt").write_text(prose())
    (folder / "events.csv").write_text(events_frame().to_csv(index=False))
    for name in ("prose.txt", "events.csv"):
        fit(folder / name, out=folder / name.split(".")[0], layers="gla attention", **TINY)
    return folder


def words(folder, *more):
    return ["health", str(folder / "prose"), str(folder / "prose.txt"), "--times", "4", *more]


def test_it_answers_people_and_programs(folder, capsys):
    assert main(words(folder)) == 0
    said = capsys.readouterr().out
    assert main(words(folder, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert said.startswith(found["words"])
    assert found["verdict"] in found["words"].lower()
    assert [row["state"] for row in found["states"]] == ["[0].memory"]
    spans = [(row["from token"], row["to"]) for row in found["losses"]]
    trained = spans[0][1]
    assert spans == [(trained // 2 + 1, trained)] + [
        (trained * n + 1, trained * 2 * n) for n in (1, 2)
    ]


@pytest.mark.parametrize(
    ("model", "more", "wanted"),
    [
        ("events", (), "health: wants a model of text, this one is of events"),
        ("prose", ("--trained", "100000"), "want at least 400,000 tokens, 4 windows of 100,000"),
        ("prose", ("--trained", "1"), "trained >= 2"),
        ("nowhere", (), "want a model folder"),
    ],
)
def test_what_it_cannot_judge_is_one_line(model, more, wanted, folder, capsys):
    line = words(folder, *more)
    line[1] = str(folder / model)
    assert main(line) == 2
    said = capsys.readouterr().err
    assert wanted in said
    assert said.count("\n") == 1
