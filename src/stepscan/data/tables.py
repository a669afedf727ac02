"""Tables from files: csv in any usual dialect, parquet; errors name the place of what is wrong."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from stepscan.data.base import DataError

if TYPE_CHECKING:
    import pandas as pd

MISSING = ("", "NA", "NaN", "nan", "NULL", "null", "None", "<NA>", "NaT")
DELIMITERS = ",;\t|"
NANOSECONDS = 1_000_000_000  # in a second
MILLIONTHS = 1_000_000  # in a unit of plain numbers: six decimals are kept


@dataclass(frozen=True)
class Table:
    """A data frame, where it came from, and what else means missing in it."""

    frame: "pd.DataFrame"
    name: str
    missing: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """Column names."""
        return list(self.frame.columns)

    def __len__(self) -> int:
        return len(self.frame)

    def column(self, name: str, role: str) -> "pd.Series":
        """One column, with an error that lists the others."""
        if name not in self.frame.columns:
            raise DataError(
                f'{self.name}: no column "{name}" for the {role}. '
                f"Columns: {', '.join(map(str, self.columns))}"
            )
        return self.frame[name]

    def cell(self, row: int, column: str) -> str:
        """How errors name a place: rows count from 1, below the header."""
        return f'{self.name}: row {row + 1:,}, column "{column}"'


@dataclass(frozen=True)
class Times:
    """Times as int64: nanoseconds since 1970 (UTC) on a calendar, millionths of plain numbers
    otherwise."""

    values: Int[np.ndarray, " N"]
    calendar: bool
    findings: tuple[str, ...] = ()


def ticks(calendar: bool) -> int:
    """What `Times` counts, in a second or in a unit of plain numbers."""
    return NANOSECONDS if calendar else MILLIONTHS


def load_pandas() -> None:
    """Fail early and helpfully: pandas is not needed for text."""
    try:
        import pandas as pd  # noqa: F401, PLC0415
    except ImportError:
        raise ImportError("tables need pandas: pip install 'stepscan[data]'") from None


def read_table(path: Path, missing: tuple[str, ...] = ()) -> Table:
    """Every cell of a csv file as text, or a parquet file as it is."""
    load_pandas()
    import pandas as pd  # noqa: PLC0415

    if path.suffix.lower() in (".parquet", ".pq"):
        try:
            frame = pd.read_parquet(path)
        except ImportError:
            raise ImportError("parquet needs pyarrow: pip install 'stepscan[data]'") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not a readable parquet file ({_line(error)})") from None
        return _checked(frame.reset_index(drop=frame.index.name is None), path, missing)
    with path.open("rb") as file:
        head = file.read(65_536)
    wide = head[:2] in (b"\xff\xfe", b"\xfe\xff")
    if b"\0" in head and not wide:
        raise DataError(f"{path}: want a csv table, got a binary file")
    encoding = "utf-16" if wide else "utf-8-sig" if _is_utf8(path) else "latin-1"
    delimiter = sniff_delimiter(head.decode(encoding, errors="ignore"))
    try:
        frame = pd.read_csv(
            path, sep=delimiter, dtype=str, keep_default_na=False, encoding=encoding
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        raise DataError(
            f"{path}: not a table separated by {delimiter!r} ({_line(error)}); "
            f"want a header, then the same number of cells in every row"
        ) from None
    return _checked(frame, path, missing)


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


def numbers(table: Table, column: str, role: str = "number") -> Float[np.ndarray, " N"]:
    """The column as float64, NaN where missing; anything else is an error with its place."""
    import pandas as pd  # noqa: PLC0415

    cells = table.column(column, role)
    if pd.api.types.is_numeric_dtype(cells.dtype):
        values = cells.to_numpy(np.float64, na_value=np.nan)
    else:
        text = cells.astype("str").str.strip()
        absent = text.isin([*MISSING, *table.missing]).to_numpy() | cells.isna().to_numpy()
        text = text.mask(absent, "nan")
        if not absent.all() and text[~absent].str.fullmatch(r"[-+]?\d*,\d+|[-+]?\d+").all():
            text = text.str.replace(",", ".", regex=False)  # a decimal comma, never thousands: 1,5
        parsed = pd.to_numeric(text, errors="coerce")
        bad = parsed.isna().to_numpy() & ~absent
        if bad.any():
            row = int(bad.argmax())
            raise DataError(
                f'{table.cell(row, column)}: "{cells.iloc[row]}" is not a number. '
                f"Drop or fill it, or pass --missing {cells.iloc[row]}."
            )
        values = parsed.to_numpy(np.float64)
    if np.isinf(values).any():
        row = int(np.isinf(values).argmax())
        raise DataError(
            f"{table.cell(row, column)}: the value is infinite. Drop or fill it; "
            "leave a cell empty where the value is missing."
        )
    return values


def labels(table: Table, column: str, role: str) -> "pd.Series":
    """The column as text, with NA where missing."""
    cells = table.column(column, role)
    text = cells.astype("str").str.strip()
    return text.mask(cells.isna() | text.isin([*MISSING, *table.missing]))


def times(table: Table, column: str) -> Times:
    """Dates in any one format, seconds (or ms, us, ns) since 1970, years, or plain numbers."""
    import pandas as pd  # noqa: PLC0415

    cells = table.column(column, "time")
    if isinstance(cells.dtype, pd.PeriodDtype):
        cells = cells.dt.to_timestamp()
    if pd.api.types.is_datetime64_any_dtype(cells.dtype):
        parsed, found = pd.to_datetime(cells, utc=True), ()
    else:
        text = cells.astype("str").str.strip()
        number = pd.to_numeric(text, errors="coerce")
        if number.notna().all() and len(number):
            return _numeric_times(number.to_numpy(np.float64), table, column)
        parsed, found = _dates(text)
    bad = parsed.isna().to_numpy()
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f'{table.cell(row, column)}: "{cells.iloc[row]}" is not a time. Want one format '
            "throughout, best 2024-12-31 23:59:59; drop rows without a time."
        )
    stamps = parsed.dt.as_unit("ns").astype("int64").to_numpy()
    return Times(stamps, calendar=True, findings=found)


def is_time(table: Table, column: str) -> bool:
    """Whether a sample of the column reads as dates (numbers do not count)."""
    import pandas as pd  # noqa: PLC0415

    cells = table.frame[column]
    if pd.api.types.is_datetime64_any_dtype(cells.dtype) or isinstance(cells.dtype, pd.PeriodDtype):
        return True
    sample = cells.dropna().astype("str").str.strip()[:200]
    if not len(sample) or pd.to_numeric(sample, errors="coerce").notna().any():
        return False
    return bool(_dates(sample)[0].notna().mean() > 0.9)


def is_number(table: Table, column: str) -> bool:
    """Whether nearly all of a sample of the column reads as numbers."""
    import pandas as pd  # noqa: PLC0415

    cells = table.frame[column]
    if pd.api.types.is_bool_dtype(cells.dtype) or pd.api.types.is_numeric_dtype(cells.dtype):
        return True
    text = cells.astype("str").str.strip()
    text = text[~(cells.isna() | text.isin([*MISSING, *table.missing]))]
    if not len(text):
        return False
    sample = text.iloc[:: max(1, len(text) // 1000)].str.replace(",", ".", regex=False)
    return bool(pd.to_numeric(sample, errors="coerce").notna().mean() > 0.9)


def codes(values: "pd.Series", vocabulary: Sequence[str]) -> Int[np.ndarray, " N"]:
    """Place of each value in the vocabulary, from 1; 0 where it is not in it."""
    import pandas as pd  # noqa: PLC0415

    return pd.Index(vocabulary).get_indexer(pd.Index(values)) + 1


def _dates(text: "pd.Series") -> tuple["pd.Series", tuple[str, ...]]:
    """One format for all cells, the one that reads the most of the different ones."""
    import warnings  # noqa: PLC0415

    import pandas as pd  # noqa: PLC0415

    places, different = pd.factorize(text, use_na_sentinel=False)
    unique = pd.Series(different)
    best: pd.Series | None = None
    ways: tuple[dict[str, Any], ...] = (
        {},
        {"format": "ISO8601"},
        {"dayfirst": True},
        {"format": "%Y %b"},
    )
    for how in ways:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # formats are compared here, not guessed
            parsed = pd.to_datetime(unique, errors="coerce", utc=True, **how)
        if best is None or parsed.notna().sum() > best.notna().sum():
            best = parsed
        if best.notna().all():
            break
    assert best is not None
    found = best.iloc[places].reset_index(drop=True)
    halves = unique.str.extract(r"^(\d{1,2})[/.-](\d{1,2})[/.-]\d{2,4}")
    if halves.notna().all(axis=None) and (halves.astype(int) <= 12).all(axis=None):
        return found, (f'dates such as "{text.iloc[0]}" are read as month, day, year',)
    return found, ()


def _numeric_times(values: Float[np.ndarray, " N"], table: Table, column: str) -> Times:
    if not np.isfinite(values).all():
        row = int((~np.isfinite(values)).argmax())
        raise DataError(f"{table.cell(row, column)}: the time is not finite. Drop the row.")
    for low, high, unit in (
        (1e8, 1e11, NANOSECONDS),
        (1e11, 1e14, 1_000_000),
        (1e14, 1e17, 1_000),
        (1e17, 9.2e18, 1),
    ):
        if low <= values.min() and values.max() < high:
            return Times((values * unit).round().astype(np.int64), calendar=True)
    whole = values == values.round()
    if whole.all() and values.min() >= 1500 and values.max() < 2200:
        years = (values.astype(np.int64) - 1970).astype("datetime64[Y]")
        return Times(years.astype("datetime64[ns]").astype(np.int64), calendar=True)
    return Times((values * MILLIONTHS).round().astype(np.int64), calendar=False)


def _checked(frame: "pd.DataFrame", path: Path, missing: tuple[str, ...]) -> Table:
    frame.columns = [str(c).strip() for c in frame.columns]
    if not len(frame):
        raise DataError(f"{path}: the file has no rows below its header")
    if len(frame.columns) < 2:
        raise DataError(
            f'{path}: found one column, "{frame.columns[0]}"; want a table separated by '
            "comma, semicolon, tab or |, or a text file ending in .txt"
        )
    return Table(frame, path.name, missing)


def _is_utf8(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            while file.read(1 << 20):
                pass
    except UnicodeDecodeError:
        return False
    return True


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
