"""Event logs in XES, the exchange format of process mining (IEEE 1849): read through `r4pm`.

Events become rows in the order of the file. An attribute of an event is a column with its own key
(`concept:name`, `time:timestamp`, `org:resource`), one of its trace a column with `case:` before
the key (`case:concept:name`). Times are turned into UTC.
"""

import gzip
import re
from pathlib import Path
from typing import TYPE_CHECKING

from stepscan.data.base import DataError

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".xes", ".xes.gz")
TRACE = re.compile(rb"<trace[\s>/]")
KEYS = ("case:concept:name", "concept:name", "time:timestamp")
BLOCK = 1 << 20  # bytes


def is_xes(path: Path) -> bool:
    """Whether the name of a file says that it is a log in XES, packed by gzip or not."""
    return path.name.lower().endswith(SUFFIXES)


def read_xes(path: Path) -> "tuple[pd.DataFrame, tuple[str, ...]]":
    """The events of a log, one a row, and what was noticed.

    Raises:
        DataError: the file is no XES, or ends before its log does.
        ImportError: the extra `events` is missing.
    """
    try:
        from r4pm.df import import_xes  # noqa: PLC0415
    except ImportError:
        raise ImportError("XES needs r4pm and polars: pip install 'stepscan[events]'") from None
    traces = _count_traces(path)
    try:
        events, _ = import_xes(str(path))
    except Exception as error:  # the parser has no exceptions of its own
        raise DataError(
            f"{path}: not a readable XES log ({' '.join(str(error).split())})"
        ) from None
    if not len(events):
        raise DataError(f"{path}: the log holds no events")
    frame = events.to_pandas()
    first = [key for key in KEYS if key in frame.columns]
    frame = frame[[*first, *sorted(set(frame.columns) - set(first))]]  # else in any order
    if "case:concept:name" not in first:
        raise DataError(f"{path}: no trace has a concept:name, so cases cannot be told apart")
    known = frame["case:concept:name"].dropna()
    found: tuple[str, ...] = ()
    if known.nunique() < traces:
        found = (
            f"{traces - known.nunique():,} of {traces:,} traces hold no events, or share the name "
            "of another (then they are read as one case)",
        )
    return frame, found


def _count_traces(path: Path) -> int:
    """How many traces there are; the parser takes a file that breaks off for a whole one."""
    count, tail = 0, b""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            while block := file.read(BLOCK):
                text = tail + block
                tail = text[-16:]  # a tag may lie across the cut, but is not to count twice
                count += len(TRACE.findall(text)) - len(TRACE.findall(tail))
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: not a whole gzip file ({error})") from None
    count += len(TRACE.findall(tail))
    if not tail.rstrip().endswith(b"</log>"):
        raise DataError(f"{path}: the file breaks off before </log>; want a whole XES log")
    return count
