"""Metrics: one JSON object a line, appended; a picture of them in TensorBoard if wanted.

Every record has `event`, `step`, `tokens`, `seconds` (of training) and `progress`. A run that was
killed goes on from its last checkpoint, so the file may tell some steps twice: `read` knows.
"""

import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"

Record = Mapping[str, Any]


class Metrics:
    """Append records to a file, one write a line. Metrics are not worth a run: a write that fails
    is a warning.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._file).st_size
        self._torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"

    def __call__(self, record: Record) -> None:
        """Write one record; what was torn before it stays alone on its line."""
        line = b"\n" * self._torn + json.dumps(_finite(record), allow_nan=False).encode() + b"\n"
        try:
            self._torn = os.write(self._file, line) < len(line)
        except OSError as error:
            warnings.warn(f"{self.path}: not written: {error}", RuntimeWarning, stacklevel=2)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a run, each step once: where it was resumed, the lost steps are left out.

    A torn line, which a crash or a full disk leaves, is skipped with a warning.
    """
    records: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            record = json.loads(line)
            event, step = record["event"], record["step"]
        except (ValueError, TypeError, KeyError):
            warnings.warn(f"{path}: line {number} is torn, skipped", RuntimeWarning, stacklevel=2)
            continue
        if event == "resumed":
            records = [earlier for earlier in records if earlier["step"] <= step]
        records.append(record)
    return records


class TensorBoard:
    """The numbers of the records, for `tensorboard --logdir`."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
        except ImportError as error:
            raise ImportError("TensorBoard wants: pip install 'stepscan[track]'") from error
        self._writer = SummaryWriter(str(folder))

    def __call__(self, record: Record) -> None:
        """Write the numbers of one record."""
        for name, value in _numbers(record, str(record["event"])):
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Write what is left, and close."""
        self._writer.close()


def _finite(value: Any) -> Any:
    """JSON has no word for NaN and infinity: null."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(record: Record, prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}/{key}")
        elif isinstance(value, int | float) and key != "step":
            yield f"{prefix}/{key}", float(value)
