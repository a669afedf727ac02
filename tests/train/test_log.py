import json
import math

import pytest

from stepscan.train.log import Metrics, TensorBoard, read


def record(step, event="step", **facts):
    return {"event": event, "step": step, **facts}


def test_records_come_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    metrics(record(1, loss={"token": 0.5, "gap": math.nan}, words="ü"))
    metrics.close()
    metrics = Metrics(path)
    metrics(record(2))
    metrics.close()
    assert read(path) == [record(1, loss={"token": 0.5, "gap": None}, words="ü"), record(2)]


@pytest.mark.parametrize("kept", [1, 10, 24])
def test_a_torn_line_is_skipped_and_the_next_one_is_not_lost(tmp_path, kept):
    path = tmp_path / "metrics.jsonl"
    line = json.dumps(record(2)).encode()
    assert len(line) > kept
    path.write_bytes(json.dumps(record(1)).encode() + b"\n" + line[:kept])
    metrics = Metrics(path)
    metrics(record(3))
    metrics.close()
    with pytest.warns(RuntimeWarning, match=r"line 2 is torn, skipped"):
        assert read(path) == [record(1), record(3)]


def test_a_resumed_run_tells_each_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    for step in (1, 2, 3, 4):
        metrics(record(step))
    metrics(record(2, "resumed"))
    metrics(record(3, loss=1.0))
    metrics.close()
    assert read(path) == [record(1), record(2), record(2, "resumed"), record(3, loss=1.0)]


def test_a_full_disk_costs_the_metrics_not_the_run(tmp_path, monkeypatch):
    import os  # noqa: PLC0415

    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, line: real(file, line[:9]))  # room for 9 bytes
    metrics(record(1))

    def full(file, line):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.warns(RuntimeWarning, match=r"metrics.jsonl: not written"):
        metrics(record(2))
    monkeypatch.undo()
    metrics(record(3))
    metrics.close()
    with pytest.warns(RuntimeWarning, match="line 1 is torn"):
        assert read(path) == [record(3)]


def test_tensorboard_shows_the_numbers(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="pip install 'stepscan[track]'")
    seen = []
    board = TensorBoard(tmp_path)
    monkeypatch.setattr(board._writer, "add_scalar", lambda *args: seen.append(args))
    board(record(3, loss={"token": 0.5}, learning_rate=0.1, words="no number"))
    board.close()
    assert seen == [("step/loss/token", 0.5, 3), ("step/learning_rate", 0.1, 3)]
    assert list(tmp_path.glob("events.*"))


def test_without_tensorboard_the_error_names_the_extra(tmp_path, monkeypatch):
    import sys  # noqa: PLC0415

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'stepscan\[track\]'"):
        TensorBoard(tmp_path)
