"""`stepscan speed`: a table for people, everything for programs and files, nonsense refused."""

import json
from xml.etree import ElementTree

import pytest

from stepscan.analyze.speed import limits, mixers
from stepscan.apps.report.speed import picture
from stepscan.cli import main, speed

QUICK = ["--lengths", "8,20", "--rounds", "1", "--seconds", "0", "--patience", "60"]


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch):
    monkeypatch.setattr(limits, "IN_MEMORY", 1 << 14)
    monkeypatch.setattr(limits, "PRODUCTS", ((8, 8, 8),))


def test_people_programs_and_files_get_the_same_rows(tmp_path, capsys):
    files = ["--out", str(tmp_path / "a" / "speed.json"), "--plot", str(tmp_path / "speed.svg")]
    assert main(["speed", *QUICK, "--ops", "linear_scan", *files]) == 0
    people = capsys.readouterr().out
    found = json.loads((tmp_path / "a" / "speed.json").read_text())
    assert {row["T"] for row in found["rows"]} == {8, 20}
    assert all(row["form"] in people for row in found["rows"])
    assert all(name in people for name in (*speed.SHOWN, *found["limits"]))
    assert found["command"].startswith("stepscan speed --lengths 8,20")
    drawn = ElementTree.fromstring((tmp_path / "speed.svg").read_text())
    assert drawn.tag.endswith("svg")
    assert not list(tmp_path.rglob("*.part"))
    assert main(["speed", *QUICK, "--ops", "linear_scan", "--json", "--no-peers"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again.keys() == found.keys()
    assert not any("mambapy" in row["form"] for row in again["rows"])


def test_backward_adds_a_pass(capsys):
    line = ["speed", *QUICK, "--ops", "short_conv", "--backward", "--json", "--no-peers"]
    assert main(line) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["pass"] for row in rows} == {"forward", "forward+backward"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lengths", "5,x"], "whole numbers"),
        (["--lengths", "0"], "lengths >= 1"),
        (["--batch", "0"], "batch >= 1"),
        (["--ops", "nothing"], "no op is called 'nothing'; known: linear_scan"),
    ],
)
def test_nonsense_is_refused_in_one_line(options, said, capsys):
    assert main(["speed", *options]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_picture_of_nothing_says_so():
    with pytest.raises(ValueError, match="nothing to draw"):
        picture([{"us/token": None}])


def test_mixers_are_timed_beside_attention(capsys, monkeypatch):
    monkeypatch.setattr(mixers, "WIDTH", 16)
    line = ["speed", "--mixers", "--ops", "gla,titans", "--lengths", "16", "--rounds", "1"]
    assert main([*line, "--patience", "60", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["form"] for row in rows} == {"attention", "gla", "titans"}
    assert all(row["us/token"] > 0 for row in rows)
    assert main([*line, "--patience", "1e-9"]) == 0
    people = capsys.readouterr().out
    assert people.count("left out: about") == 3
    assert main(["speed", "--mixers", "--ops", "glaa"]) == 2
    assert "Did you mean 'gla'" in capsys.readouterr().err
