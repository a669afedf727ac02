"""Tables: columns as numbers, labels and times; errors name the place of what is wrong."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from stepscan.data.base import DataError

if TYPE_CHECKING:
    import pandas as pd

MISSING = ("", "NA", "NaN", "nan", "NULL", "null", "None", "<NA>", "NaT")
NANOSECONDS = 1_000_000_000  # in a second
YEARS = (1678, 2261)
"""The first and the last that nanoseconds in 64 bits reach from end to end."""
MILLIONTHS = 1_000_000  # in a unit of plain numbers: six decimals are kept


FEW_NUMBERS = 0.05  # of a column of dates may be numbers: errors, to be told with their place
THOUSANDS = r"[-+]?\d{1,3}(?:[ ,.'\u2019\u00a0\u202f]\d{3})+(?:[.,]\d+)?"
OFFSET = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?\s*(Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)$"


@dataclass(frozen=True)
class Table:
    """A data frame, where it came from, and what else means missing in it."""

    frame: "pd.DataFrame"
    name: str
    missing: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    """What was noticed while reading it."""
    clocks: "Mapping[str, Times]" = field(default_factory=dict)
    """Columns of time that are read already: of a piece of a table, which alone could be read in
    another way than the whole."""

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
            _check_decimals(table, column, text[~absent])
            text = text.str.replace(",", ".", regex=False)  # a decimal comma, never thousands: 1,5
        parsed = pd.to_numeric(text, errors="coerce")
        bad = parsed.isna().to_numpy() & ~absent
        if bad.any():
            row = int(bad.argmax())
            word = cells.iloc[row]
            remedy = f"Drop or fill it, or pass --missing {word}."
            if re.fullmatch(THOUSANDS, str(word).strip()):
                remedy = "Write numbers without separators of thousands."
            raise DataError(f'{table.cell(row, column)}: "{word}" is not a number. {remedy}')
        values = parsed.to_numpy(np.float64)
    if np.isinf(values).any():
        row = int(np.isinf(values).argmax())
        raise DataError(
            f"{table.cell(row, column)}: the value is infinite. Drop or fill it; "
            "leave a cell empty where the value is missing."
        )
    return values


def _check_decimals(table: Table, column: str, text: "pd.Series") -> None:
    """Raise `DataError` where commas part thousands: numbers below 1,000 have none, and every other
    has three digits after it. Read as decimals they would be a thousand times too small.
    """
    parted = text.str.contains(",")
    thousands = text[parted].str.fullmatch(r"[-+]?[1-9]\d{0,2},\d{3}")
    if not parted.any() or parted.all() or not thousands.all():
        return
    row = int(text.index[parted][0])
    raise DataError(
        f'{table.cell(row, column)}: the comma in "{text[row]}" seems to part thousands. Write '
        "numbers without separators of thousands, or all of them with as many decimals."
    )


def labels(table: Table, column: str, role: str) -> "pd.Series":
    """The column as text, with NA where missing."""
    cells = table.column(column, role)
    text = cells.astype("str").str.strip()
    return text.mask(cells.isna() | text.isin([*MISSING, *table.missing]))


def times(table: Table, column: str) -> Times:
    """Dates in any one format, seconds (or ms, us, ns) since 1970, years, or plain numbers."""
    import pandas as pd  # noqa: PLC0415

    if column in table.clocks:
        return table.clocks[column]
    cells = table.column(column, "time")
    if isinstance(cells.dtype, pd.PeriodDtype):
        cells = cells.dt.to_timestamp()
    found: tuple[str, ...] = ()
    days = _own_days(cells)
    if days is not None:
        parsed, found = days, ("times are midnight in a zone of their own: read as dates",)
    elif pd.api.types.is_datetime64_any_dtype(cells.dtype):
        parsed = pd.to_datetime(cells, utc=True)
    else:
        text = cells.astype("str").str.strip()
        number = pd.to_numeric(text, errors="coerce")
        if number.notna().all() and len(number):
            return _numeric_times(number.to_numpy(np.float64), table, column)
        parsed, found = _dates(text)
        if number.notna().sum() > parsed.notna().sum():  # numbers, but for some that are none
            parsed = pd.Series(pd.NaT, index=number.index).where(number.isna(), pd.Timestamp(0))
    bad = parsed.isna().to_numpy()
    if bad.any():
        row = int(bad.argmax())
        raise DataError(
            f'{table.cell(row, column)}: "{cells.iloc[row]}" is not a time. Want one format '
            "throughout, best 2024-12-31 23:59:59; drop rows without a time."
        )
    far = ((parsed.dt.year < YEARS[0]) | (parsed.dt.year > YEARS[1])).to_numpy()
    if far.any():
        row = int(far.argmax())
        raise DataError(
            f'{table.cell(row, column)}: "{cells.iloc[row]}" is no date from {YEARS[0]} to '
            f"{YEARS[1]}. Drop such rows, or leave the column out."
        )
    stamps = parsed.dt.as_unit("ns").astype("int64").to_numpy()
    return Times(stamps, calendar=True, findings=found)


def _own_days(cells: "pd.Series") -> "pd.Series | None":
    """The dates of times that are all midnight in their own zone, but not in UTC.

    Days of a zone with summer time are 23 to 25 hours long: as moments of UTC they lie on no grid.
    One or two rows tell nothing of the others, which may lie between midnights.
    """
    import pandas as pd  # noqa: PLC0415

    if len(cells) < 3:
        return None
    if isinstance(cells.dtype, pd.DatetimeTZDtype):
        local, moments = cells.dt.tz_localize(None), cells.dt.tz_convert("UTC")
    else:
        offset = r"(?:[+-]\d\d:?\d\d)$"
        text = cells.astype("str").str.strip()
        if not text.head(20).str.contains(rf"[T ]00:00\S*{offset}").all():
            return None
        local = pd.to_datetime(
            text.str.replace(offset, "", regex=True), format="ISO8601", errors="coerce"
        )
        moments = pd.to_datetime(text, utc=True, format="ISO8601", errors="coerce")
    if local.isna().any() or (local != local.dt.normalize()).any():
        return None
    return None if (moments.dt.hour == 0).all() else local


def is_time(table: Table, column: str) -> bool:
    """Whether a sample of the column reads as dates (numbers do not count)."""
    import pandas as pd  # noqa: PLC0415

    cells = table.frame[column]
    if pd.api.types.is_datetime64_any_dtype(cells.dtype) or isinstance(cells.dtype, pd.PeriodDtype):
        return True
    sample = cells.dropna().astype("str").str.strip()[:200]
    if not len(sample) or pd.to_numeric(sample, errors="coerce").notna().mean() > FEW_NUMBERS:
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


WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"format": "ISO8601"},
    {"dayfirst": True},
    {"format": "%Y %b"},
)
"""How dates are written, the usual first."""


def parse_dates(text: "pd.Series", how: Mapping[str, Any]) -> "pd.Series":
    """Text as times in UTC, NaT where it is not written in this one of WAYS."""
    import warnings  # noqa: PLC0415

    import pandas as pd  # noqa: PLC0415

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # formats are compared here, not guessed
        return pd.to_datetime(text, errors="coerce", utc=True, **how)


def date_notes(unique: "pd.Series") -> tuple[str, ...]:
    """What is said of these different texts, read as dates: which half is the month, the zones."""
    halves = unique.str.extract(r"^(\d{1,2})[/.-](\d{1,2})[/.-]\d{2,4}")
    zones = _zones(unique)
    if halves.notna().all(axis=None) and (halves.astype(int) <= 12).all(axis=None):
        return (f'dates such as "{unique.iloc[0]}" are read as month, day, year', *zones)
    return zones


def _dates(text: "pd.Series") -> tuple["pd.Series", tuple[str, ...]]:
    """One format for all cells, the one that reads the most of the different ones."""
    import pandas as pd  # noqa: PLC0415

    places, different = pd.factorize(text, use_na_sentinel=False)
    unique = pd.Series(different)
    best: pd.Series | None = None
    for how in WAYS:
        parsed = parse_dates(unique, how)
        if best is None or parsed.notna().sum() > best.notna().sum():
            best = parsed
        if best.notna().all():
            break
    assert best is not None
    return best.iloc[places].reset_index(drop=True), date_notes(unique)


def _zones(text: "pd.Series") -> tuple[str, ...]:
    """What is said where times come from several time zones, or only some of them tell theirs."""
    zone = text.str.extract(OFFSET, expand=False)
    told = zone.dropna().replace({"UTC": "Z", "GMT": "Z"}).unique()
    if not len(told):
        return ()
    bare = text[zone.isna()]
    if len(bare):
        return (
            f'times without a zone, such as "{bare.iloc[0]}", stand beside times with one '
            f'("{told[0]}"): they are read as UTC',
        )
    if len(told) > 1:
        several = ", ".join(sorted(told)[:4])
        return (f"times come with {len(told)} offsets from UTC ({several}): all are read as UTC",)
    return ()


class Unit(NamedTuple):
    """What a column of numbers counts, if it is a time."""

    scale: int
    """`Times` in one of it; 0 for years."""
    calendar: bool

    def times(self, values: Float[np.ndarray, " N"]) -> Times:
        """The numbers as times."""
        if self.scale:
            return Times((values * self.scale).round().astype(np.int64), calendar=self.calendar)
        years = (values.astype(np.int64) - 1970).astype("datetime64[Y]")
        return Times(years.astype("datetime64[ns]").astype(np.int64), calendar=True)


def unit_of(low: float, high: float, *, whole: bool) -> Unit:
    """Told by the range of the numbers, and whether all of them are whole."""
    for least, most, scale in (
        (1e8, 1e11, NANOSECONDS),
        (1e11, 1e14, 1_000_000),
        (1e14, 1e17, 1_000),
        (1e17, 9.2e18, 1),
    ):
        if least <= low and high < most:
            return Unit(scale, calendar=True)
    if whole and low >= 1500 and high < 2200:
        return Unit(0, calendar=True)
    return Unit(MILLIONTHS, calendar=False)


def _numeric_times(values: Float[np.ndarray, " N"], table: Table, column: str) -> Times:
    if not np.isfinite(values).all():
        row = int((~np.isfinite(values)).argmax())
        raise DataError(f"{table.cell(row, column)}: the time is not finite. Drop the row.")
    whole = bool((values == values.round()).all())
    return unit_of(float(values.min()), float(values.max()), whole=whole).times(values)
