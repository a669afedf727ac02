"""Learning from new values as they come: what is learned from, and that it helps after a change."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from stepscan.apps.fit import fit
from stepscan.apps.series import learning
from stepscan.data.base import DataError, DataOptions

STEPS, CHANGE = 600, 400


def wave(seed=0):
    """A daily wave that turns upside down and doubles after the change."""
    rng = np.random.default_rng(seed)
    t = np.arange(STEPS)
    y = np.where(t < CHANGE, 1.0, -2.0) * np.sin(t * 2 * np.pi / 24) + 0.1 * rng.normal(size=STEPS)
    return pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=STEPS, freq="h"), "y": y})


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learning")
    wave()[:CHANGE].to_csv(folder / "wave.csv", index=False)
    options = DataOptions(horizon=6, test=48, valid=48, season=0)
    made = {"layers": "min_gru", "width": 16, "rows": 4, "length": 48, "quiet": True}
    return fit(folder / "wave.csv", options=options, out=folder / "run", steps=60, **made)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.network.parameters()])


def wrong(model, frame, cuts):
    """Mean absolute error of the medians at these cuts."""
    found = []
    for cut in cuts:
        said = model.forecast(frame[:cut])["0.5"].to_numpy()
        found.append(np.abs(said - frame["y"].to_numpy()[cut : cut + 6]).mean())
    return float(np.mean(found))


@pytest.mark.parametrize("method", ["uoro", "dni"])
def test_learning_on_helps_after_a_change(fitted, method):
    frame, late = wave(), range(540, 594, 6)
    model = copy.deepcopy(fitted)
    learned = model.learn(
        frame[:540], since=frame["ds"][CHANGE - 1], method=method, learning_rate=3e-3
    )
    assert learned.steps == 540 - CHANGE  # of each, the last foretold value is new
    assert wrong(model, frame, late) < 0.7 * wrong(fitted, frame, late)


def test_only_new_values_are_learned_from(fitted):
    """Without new values nothing happens; with six, one step has all its values."""
    frame = wave()
    model = copy.deepcopy(fitted)
    before = weights(model)
    with pytest.raises(DataError, match="want rows with 6 values after one that is new"):
        model.learn(frame[:CHANGE], since=frame["ds"][CHANGE - 1])
    assert torch.equal(weights(model), before)
    assert model.learn(frame[: CHANGE + 1], since=frame["ds"][CHANGE - 1]).steps == 1
    assert not torch.equal(weights(model), before)


def test_an_unknown_method_is_named(fitted):
    with pytest.raises(ValueError, match="unknown online method 'bptt'"):
        copy.deepcopy(fitted).learn(wave(), method="bptt")


def test_several_series_go_forward_together(fitted):
    """What one series brings moves what is said of the other from then on, and not before."""
    cut, moved = 420, 450
    one = wave().assign(unique_id="a")
    schema = replace(fitted.schema, id="unique_id", names=("a", "b"))
    for field in ("center", "scale", "spread", "naive"):
        schema = replace(schema, **{field: getattr(fitted.schema, field) * 2})

    def said(first):
        other = wave(1).assign(unique_id="b")
        other["y"] = other["y"].where(other.index < first, 0.0)
        packed = schema.encode(fitted.table(pd.concat([one, other])))
        since = torch.full((2,), int(packed.panel.stamps[CHANGE - 1]))
        told = {"method": "dni", "learning_rate": 3e-3, "origins": [cut, moved]}
        return learning.learn(copy.deepcopy(fitted.network), packed, since, **told).said

    plain = said(STEPS)
    assert torch.equal(plain, said(moved + 1)), "nothing had come yet"
    early = said(cut + 1)
    assert torch.equal(plain[0], early[0])
    assert not torch.equal(plain[1], early[1])


def test_matrices_of_many_series_are_refused(fitted, monkeypatch):
    packed = fitted.schema.encode(fitted.table(wave()))
    weights = sum(p.numel() for p in fitted.network.parameters())
    monkeypatch.setattr(learning, "MOST", 3 * 2 * 16 * weights)  # two layers of 16 numbers
    learning._check_room(fitted.network, packed, "rtrl", 3)
    with pytest.raises(ValueError, match="rtrl keeps a matrix for each of 4 series"):
        learning._check_room(fitted.network, packed, "rtrl", 4)
