"""Series made like those of a file."""

import pytest
import torch
from made_up_data import events_frame, series_frame

from stepscan.apps.series.synthesis import synthesize, windows
from stepscan.cli import main
from stepscan.data.base import DataError, DataOptions
from stepscan.data.open import open_dataset

OPTIONS = DataOptions(horizon=6, test=70, valid=48)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthesis") / "series.csv"
    series_frame().to_csv(path, index=False)
    return path


def test_windows_stay_within_their_series(file):
    train = open_dataset(file, OPTIONS).parts["train"]
    x, series = windows(train, 12, torch.Generator().manual_seed(0))
    assert x.shape == (2 * (int(train.lengths[0]) - 11), 12, 1)
    assert series.bincount().tolist() == [len(x) // 2] * 2
    # Scaled by its own series: both have their values around zero.
    assert all(abs(float(x[series == s].nanmean())) < 0.5 for s in (0, 1))


def test_what_is_made_has_the_size_of_what_is_real(file):
    made = synthesize(file, 30, length=12, steps=60, options=OPTIONS)
    again = synthesize(file, 30, length=12, steps=60, options=OPTIONS)
    assert made.frame.equals(again.frame)
    assert list(made.frame.columns) == ["series", "step", "value"]
    assert len(made.frame) == 30 * 12
    means = made.frame.groupby("series")["value"].mean()
    assert means.between(0, 35).all()  # the real ones lie around 10 and 20
    assert means.max() - means.min() > 5
    assert 0 <= made.discriminative <= 0.5


def test_from_the_command_line(file, tmp_path, capsys):
    out = tmp_path / "made.csv"
    line = f"synthesize {file} --out {out} --count 5 --length 12 --steps 5 --horizon 6"
    assert main([*line.split(), "--test", "70", "--valid", "48"]) == 0
    assert "told apart from real ones" in capsys.readouterr().out
    assert len(out.read_text().splitlines()) == 5 * 12 + 1


def test_what_cannot_be_learned_from_is_said(file, tmp_path):
    events = tmp_path / "events.csv"
    events_frame().to_csv(events, index=False)
    with pytest.raises(DataError, match=r"want series, events\.csv holds events"):
        synthesize(events)
    with pytest.raises(DataError, match="want 40 windows of 200 steps"):
        synthesize(file, length=200, options=OPTIONS)
    with pytest.raises(ValueError, match="want count >= 1"):
        synthesize(file, 0)
