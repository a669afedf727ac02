"""Where models err and what they heed: the numbers in the report, computed another way."""

import numpy as np
import pytest
import torch

from stepscan.apps.reach import looks_back
from stepscan.apps.report.drawing import Looks
from stepscan.apps.report.lines import example
from stepscan.apps.series.breakdown import breakdown
from stepscan.models import Inputs


@pytest.fixture
def named():
    return Looks([{"candidates": [{"name": "min_gru", "baseline": False}]}])


def test_errors_by_steps_ahead_and_by_series_are_those_of_a_plain_loop(small):
    domain, model = small("series")
    pictures = breakdown(domain, {"min_gru": model})
    (ahead, table) = pictures
    packed = domain.packed("test")
    at = packed.origins()
    said = domain.forecast(model, packed, at)[..., domain.head.quantiles.index(0.5)]
    actual = packed.actual_at(at)
    by_step, by_series = {}, {}
    for i, origin in enumerate(at.tolist()):
        series = int(packed.series_at(torch.tensor(origin)))
        for h in range(actual.shape[1]):
            if not actual[i, h].isnan():
                error = abs(float(said[i, h] - actual[i, h])) / domain.schema.naive[series]
                by_step.setdefault(h, []).append(error)
                by_series.setdefault(packed.names[series], []).append(error)
    assert ahead["places"] == [str(h + 1) for h in range(6)]
    assert [one["from"] for one in ahead["lines"]] == ["min_gru", "seasonal naive"]
    wanted = [np.mean(by_step[h]) for h in range(6)]
    assert ahead["lines"][0]["values"] == pytest.approx(wanted)
    assert {row[0]: row[1] for row in table["rows"]} == pytest.approx(
        {name: np.mean(errors) for name, errors in by_series.items()}
    )
    assert np.mean(list({k: np.mean(v) for k, v in by_series.items()}.values())) == pytest.approx(
        domain.score(model)["MASE"]
    )


@pytest.mark.parametrize("kind", ["text", "events", "series", "interactions"])
def test_every_kind_has_a_picture_of_what_is_heeded(kind, small):
    domain, model = small(kind)
    (one,) = looks_back(domain, {"min_gru": model})
    values = one["lines"][0]["values"]
    assert len(values) == len(one["places"])
    assert values[0] > 0.01, "the last step is heeded"
    assert all(0 <= value < 3 for value in values)
    assert "min_gru" in one["note"]


def test_a_model_that_forgets_everything_is_seen(small):
    """Resets at every step: only the last one counts."""
    domain, model = small("series")

    class Forgetful(torch.nn.Module):
        causal = True

        def forward(self, inputs):
            resets = torch.ones(inputs.reals.shape[:2], dtype=torch.bool)
            return model(Inputs(None, inputs.reals), None, resets)

    (one,) = looks_back(domain, {"min_gru": Forgetful()})
    assert one["lines"][0]["values"][0] == pytest.approx(1.0)
    assert one["lines"][0]["values"][1:] == pytest.approx([0.0] * (len(one["places"]) - 1))
    assert "hardly heeds what lies 1 steps back or more" in one["note"]


def test_the_picture_shows_every_line_and_escapes_names(named):
    one = {
        "type": "lines",
        "title": "By <b>",
        "x": "ahead",
        "y": "error",
        "places": ["1", "2"],
        "lines": [
            {"from": "min_gru", "values": [1.0, None]},
            {"from": "<i>naive", "values": [0.5, 2.0]},
        ],
        "note": "n",
    }
    html = str(example(one, named))
    assert html.count('class="line') == 2
    assert "<b>" not in html
    assert "<i>" not in html
    assert "nan" not in html.lower()


def test_nothing_finite_draws_nothing(named):
    one = {"title": "t", "x": "x", "y": "y", "places": ["1"], "lines": [
        {"from": "min_gru", "values": [None]}]}  # fmt: skip
    assert "<svg" not in str(example(one, named))
