"""The doctor sees what is broken, and says so by its exit code."""

import json
from pathlib import Path

import pytest
import torch

from stepscan import ops
from stepscan.analyze.speed.cases import Case, cases
from stepscan.cli import doctor, main
from stepscan.cli.table import show


def double(x, *, form):
    """An op of two forms, one of them wrong as its name says."""
    broken = {
        "value": 2.001 * x,
        "gradient": 2 * x.detach() + 0 * x,
        "nan": x * torch.nan,
        "right": x + x,
        "recurrent": 2 * x,
    }
    return broken[form], x


@pytest.mark.parametrize(
    ("form", "well"),
    [("right", "fine"), ("value", "FAILED"), ("gradient", "FAILED"), ("nan", "FAILED")],
)
def test_a_wrong_form_is_seen(form, well):
    case = Case("double", double, ((torch.randn(5),), {}), ("recurrent", form))
    assert doctor.check(case)["well"] == well


def test_a_form_that_raises_is_seen():
    case = Case("double", double, ((torch.randn(5),), {}), ("recurrent", "missing"))
    assert "KeyError" in doctor.check(case)["here"]


def test_every_op_is_fine_here(capsys):
    assert main(["doctor", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["well"] for row in rows if row["what"].startswith("op ")} == {"fine"}


def test_exit_code_says_that_something_failed(capsys, monkeypatch):
    wrong = Case("double", double, ((torch.randn(5),), {}), ("recurrent", "value"))
    monkeypatch.setattr(doctor, "_small_cases", lambda: [wrong])
    assert main(["doctor"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_a_missing_extra_says_what_to_type(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_small_cases", list)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert main(["doctor"]) == 0
    assert "pip install 'stepscan[data]'" in capsys.readouterr().out


def test_every_form_of_every_op_has_a_case():

    files = Path(ops.__path__[0]).glob("*.py")
    known = {f.stem.replace("cells", "cell_scan") for f in files if "\nFORMS" in f.read_text()}
    found = {case.op.split()[0] for case in cases(3, heads=1, size=2)}
    assert found == known


def test_columns_keep_four_digits(capsys):
    show([{"p": 0.9312, "what": "a"}, {"p": 0.00124, "what": "bc"}], as_json=False)
    assert capsys.readouterr().out == "     p  what\n0.9312  a\n0.0012  bc\n"
    show([{"rate": 51234.5}, {"rate": float("nan")}], as_json=False)
    assert capsys.readouterr().out == "  rate\n51,234\n   nan\n"


def test_speed_and_mixers_reject_nonsense(capsys):
    for line in (
        ["speed", "--rounds", "0"],
        ["speed", "--ops", "nothing"],
        ["mixers", "--width", "0"],
    ):
        assert main(line) == 2
        assert capsys.readouterr().err.count("\n") == 1
