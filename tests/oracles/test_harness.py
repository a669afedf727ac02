"""The comparison itself, with a reference made up here: it wants no package."""

import published
import pytest
import torch
from published import Case, DifferenceError, difference, draw, reference, run, unnoticed

SOURCE = """
import torch

def decaying_sum(x, g, state):
    x, g = x.float(), g.to(torch.float32)
    ys = []
    for t in range(x.shape[1]):
        state = g[:, t].exp() * state + x[:, t]
        ys.append(state + 0 * state)
    return torch.stack(ys, 1), state
"""


def ours(x, g, state):
    ys = []
    for x_t, g_t in zip(x.unbind(1), g.unbind(1), strict=True):
        state = g_t.exp() * state + x_t
        ys.append(state)
    return torch.stack(ys, 1), state


def late_decay(x, g, state):
    return ours(x, torch.cat([g[:, :1], g[:, :-1]], 1), state)


@pytest.fixture
def case(tmp_path, monkeypatch):
    folder = tmp_path / "made_up_reference"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('a driver is missing')")
    (folder / "naive.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    published.module.cache_clear()
    return Case(
        "decaying sum",
        "made_up_reference.naive:decaying_sum",
        {"x": "BTK", "g": "decay BTK", "state": "BK"},
        lambda f, x, g, state: f(x, g, state),
        ours,
        wrong={"the decay one step late": late_decay},
    )


def compare(case, dtype=torch.float64, T=37):
    inputs = draw(case, T, dtype)
    return difference(run(case.ours, inputs), run(reference(case, dtype), inputs))


def test_a_file_is_read_without_its_package_and_its_casts_are_widened(case):
    assert compare(case) <= 1e-15
    inputs = draw(case, 37, torch.float64)
    as_it_is = published.module("made_up_reference.naive", wide=False).decaying_sum
    with pytest.raises(DifferenceError, match="of the largest number"):
        difference(run(ours, inputs), run(as_it_is, inputs))


def test_every_input_is_compared(case):
    assert unnoticed(case, 37) == []
    blind = case._replace(ours=lambda x, g, state: ours(x, 0 * g, state))
    with pytest.raises(DifferenceError, match="differs by"):
        compare(blind)


def test_an_input_that_neither_side_reads_is_not_found_out(case):
    """So that a passing mutation test says something."""
    deaf = case._replace(inputs=case.inputs | {"other": "BTK"}, wrong={})
    deaf = deaf._replace(
        call=lambda f, other, **inputs: f(**inputs), ours=lambda other, **inputs: ours(**inputs)
    )
    assert unnoticed(deaf, 37) == ["other late"]
    equal = case._replace(wrong={"the same again": ours})
    assert unnoticed(equal, 37) == ["the same again"]


def test_a_line_is_exchanged_or_missed(case):
    other = case._replace(edit=("+ 0 * state", "+ 1e-9 * state"))
    with pytest.raises(DifferenceError):
        compare(other)
    with pytest.raises(AssertionError, match="does not say"):
        compare(case._replace(edit=("no such line", "")))


@pytest.mark.parametrize(
    "change",
    [
        lambda y: [y[0]],
        lambda y: [*y, y[0]],
        lambda y: [y[0].float(), y[1]],
        lambda y: [y[0].mT, y[1]],
        lambda y: [y[0], y[1] + 1e-9],
        lambda y: [y[0], y[1] * torch.nan],
    ],
    ids=["fewer", "more", "narrow", "layout", "a little off", "not a number"],
)
def test_a_difference_of_any_kind_is_one(change):
    y = [torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)]
    difference(y, y)
    with pytest.raises(DifferenceError):
        difference(change(y), y)
