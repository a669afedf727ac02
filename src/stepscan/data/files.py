"""Files become tables: csv in any usual dialect, parquet; what is wrong is told with its place."""

import csv
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stepscan.data.base import DataError
from stepscan.data.tables import Table, load_pandas
from stepscan.data.xes import is_xes, read_xes

if TYPE_CHECKING:
    import pandas as pd

DELIMITERS = ",;\t|"
ATOMIC = (".inter", ".item", ".user")
"""Files as RecBole has them: separated by tabs, columns called `name:type`."""
VALUE = re.compile(r"[-+]?\d+\.\d{3,}|\d{4}-\d\d-\d\d[T ]\d\d:\d\d.*")
"""A name of a column that is none: a number with decimals, a date with a time of day."""
TYPED = re.compile(r":(token|float)(_seq)?$")


def read_table(path: Path, missing: tuple[str, ...] = ()) -> Table:
    """Every cell of a csv file as text; a parquet file or an XES log as it is."""
    load_pandas()
    before = stamp_of(path)
    if is_xes(path):
        frame, found = read_xes(path)
        table = _checked(frame, path, missing, found)
    else:
        table = _read_parquet(path, missing) if is_parquet(path) else _read_csv(path, missing)
    check_unchanged(path, before)
    return table


def is_parquet(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() in (".parquet", ".pq")


def stamp_of(path: Path) -> tuple[int, int]:
    """What changes when a file is written to: its size and the time of the last change."""
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def check_unchanged(path: Path, before: tuple[int, int]) -> None:
    """Raise `DataError` if the file was written to since `before` = `stamp_of(path)`."""
    if stamp_of(path) != before:
        raise DataError(
            f"{path}: the file changed while it was read; wait until it is whole, or copy it, "
            "and try again"
        )


def _read_parquet(path: Path, missing: tuple[str, ...]) -> Table:
    import pandas as pd  # noqa: PLC0415

    try:
        frame = pd.read_parquet(path)
    except ImportError:
        raise ImportError("parquet needs pyarrow: pip install 'stepscan[data]'") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable parquet file ({line_of(error)})") from None
    return _checked(frame.reset_index(drop=frame.index.name is None), path, missing)


class Dialect(NamedTuple):
    """How a csv file is written."""

    encoding: str
    delimiter: str
    findings: tuple[str, ...]


def dialect(path: Path) -> Dialect:
    """Encoding and delimiter, from the bytes; what is not UTF-8 is read as Latin-1, and said."""
    with path.open("rb") as file:
        head = file.read(65_536)
    wide = head[:2] in (b"\xff\xfe", b"\xfe\xff")
    if b"\0" in head and not wide:
        raise DataError(f"{path}: want a csv table, got a binary file")
    encoding = "utf-16" if wide else "utf-8-sig" if _is_utf8(path) else "latin-1"
    said = ("the file is not UTF-8: read as Latin-1",) if encoding == "latin-1" else ()
    return Dialect(encoding, sniff_delimiter(head.decode(encoding, errors="ignore")), said)


def _read_csv(path: Path, missing: tuple[str, ...]) -> Table:
    import pandas as pd  # noqa: PLC0415

    way = dialect(path)
    check_rows(path, way)
    try:
        frame = pd.read_csv(
            path, sep=way.delimiter, dtype=str, keep_default_na=False, encoding=way.encoding
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        raise DataError(
            f"{path}: not a table separated by {way.delimiter!r} ({line_of(error)}); "
            f"want a header, then the same number of cells in every row"
        ) from None
    return _checked(frame, path, missing, (*way.findings, *_unnamed(frame)))


def check_rows(path: Path, way: Dialect) -> None:
    """Raise `DataError` at the first row that has not as many cells as the header.

    pandas fills short rows with nothing, and takes the first column for names of rows where all
    are longer than the header.
    """
    wanted, row = 0, 0
    try:
        with path.open(encoding=way.encoding, errors="replace", newline="") as file:
            for cells in csv.reader(file, delimiter=way.delimiter):
                if not cells:
                    continue
                if not wanted:
                    _check_names(path, cells)
                wanted = wanted or len(cells)
                if len(cells) != wanted:
                    raise DataError(
                        f"{path}: row {row:,} has {len(cells)} cells, the header has {wanted}. Is "
                        "the file cut off, or a cell with the delimiter in it not quoted?"
                    )
                row += 1
    except csv.Error:  # a cell longer than this reader takes: pandas has its own word on it
        return


def _check_names(path: Path, cells: list[str]) -> None:
    """Raise `DataError` at a name that the header has twice: pandas would make up another one."""
    seen: set[str] = set()
    for name in (cell.strip() for cell in cells):
        if name and name in seen:
            raise DataError(f'{path}: column "{name}" is there twice; rename one of them')
        seen.add(name)


def _unnamed(frame: "pd.DataFrame") -> tuple[str, ...]:
    """What is said of a header that reads like a row of values."""
    values = [c for c in frame.columns if VALUE.fullmatch(str(c).strip())]
    if not values:
        return ()
    return (
        f'the first row gives the columns their names, and looks like values ("{values[0]}"): is '
        "the header missing?",
    )


def sniff_delimiter(head: str) -> str:
    """The delimiter that cuts the first rows into the same number of cells, the more the better."""
    lines = head.splitlines()
    rows = "\n".join(lines[:-1][:50] or lines)
    best = (0, 0, ",")
    for delimiter in DELIMITERS:
        cells = [len(r) for r in csv.reader(io.StringIO(rows), delimiter=delimiter) if r]
        same = sum(n == cells[0] for n in cells) if cells else 0
        if cells and cells[0] > 1 and (same, cells[0]) > best[:2]:
            best = (same, cells[0], delimiter)
    return best[2]


def _checked(
    frame: "pd.DataFrame", path: Path, missing: tuple[str, ...], findings: tuple[str, ...] = ()
) -> Table:
    frame.columns = [str(c).strip() for c in frame.columns]
    if path.suffix.lower() in ATOMIC:
        frame.columns = [TYPED.sub("", c) for c in frame.columns]
    if not len(frame):
        raise DataError(f"{path}: the file has no rows below its header")
    if len(frame.columns) < 2 and not is_parquet(path):  # a csv that was cut in the wrong places
        raise DataError(
            f'{path}: found one column, "{frame.columns[0]}"; want a table separated by '
            "comma, semicolon, tab or |, or a text file ending in .txt"
        )
    return Table(frame, path.name, missing, findings)


def _is_utf8(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            while file.read(1 << 20):
                pass
    except UnicodeDecodeError:
        return False
    return True


def line_of(error: Exception) -> str:
    """An error of a library in one line."""
    return " ".join(str(error).split())
