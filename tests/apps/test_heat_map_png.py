"""The PNG of a heat map: the pixels say what the numbers say."""

import shutil
from pathlib import Path

import pytest

from stepscan.apps.report import heat_map_png
from stepscan.cli import main

imread = pytest.importorskip("matplotlib.image", reason="pip install 'stepscan[plot]'").imread
RECORDED = Path(__file__).parents[2] / "benchmarks" / "results" / "bench_quick.json"
ROWS, COLUMNS = ["gla", "gru"], [("recall", "needle"), ("state tracking", "parity")]


def pixels(path):
    return imread(path)[..., :3]


def test_high_scores_are_dark_and_missing_ones_white(tmp_path):
    scores = {("gla", "needle"): 1.0, ("gla", "parity"): 0.0, ("gru", "needle"): 0.5}
    path = heat_map_png.write(tmp_path / "matrix.png", ROWS, COLUMNS, scores, title="a bench")
    assert [file.name for file in tmp_path.iterdir()] == ["matrix.png"]
    image = pixels(path)
    full = abs(image - heat_map_png.HUE).max(-1) < 0.02
    assert full.sum() > 1000
    rows, columns = full.nonzero()
    height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
    middle = (rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2
    beside = image[middle[0] - height // 4, middle[1] + round(width / 0.96)]
    assert beside.min() > 0.94  # guessing: hardly a tint
    below = image[middle[0] + round(height / 0.92), middle[1] - width // 3]
    assert 0.3 < below[0] < 0.7  # half
    corner = image[middle[0] + round(height / 0.92), middle[1] + round(width / 0.96)]
    assert corner.min() == 1  # nothing was run


def test_the_same_map_is_the_same_file(tmp_path):
    files = [
        heat_map_png.write(tmp_path / name, ROWS, COLUMNS, {("gla", "needle"): 0.3}).read_bytes()
        for name in ("a.png", "b.png")
    ]
    assert files[0] == files[1]
    assert files[0].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "message"), [("matrix.svg", r"ends in \.png"), ("nowhere/a.png", "folder that exists")]
)
def test_errors_come_before_anything_is_drawn(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        heat_map_png.check(Path(tmp_path) / name)


def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch):
    def missing(name, package=None):
        raise ImportError(name)

    monkeypatch.setattr(heat_map_png, "import_module", missing)
    with pytest.raises(ImportError, match=r"pip install 'stepscan\[plot\]'"):
        heat_map_png.check(tmp_path / "a.png")


def test_a_recorded_bench_is_drawn_by_the_command(tmp_path, capsys):
    shutil.copy(RECORDED, tmp_path / "results.json")
    picture = tmp_path / "matrix.png"
    assert main(["bench", "--redraw", str(tmp_path), "--png", str(picture)]) == 0
    assert abs(pixels(picture) - heat_map_png.HUE).max(-1).min() < 0.02
    picture.unlink()
    assert main(["bench", "--redraw", str(tmp_path), "--png", str(tmp_path / "m.jpg")]) == 2
    assert "ends in .png" in capsys.readouterr().err
    assert not list(tmp_path.glob("m.jpg"))
