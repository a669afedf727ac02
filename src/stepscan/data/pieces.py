"""Tables larger than memory, in pieces of whole sequences: an external sort by bucket files.

    first reading     names of sequences are sampled, and it is found out how times are written
    second reading    every row goes to the bucket of its sequence: ranges of names, from the sample
    then              bucket by bucket, each a `Table` that fits in memory

Rows may come in any order. Buckets are in order of names and keep the order of the file within, so
that reading them one after another is reading the table sorted. What has to fit in memory is one
batch of rows, and one bucket: about `rows` rows, or the longest sequence if that is longer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from stepscan.data.base import DataError
from stepscan.data.files import check_rows, check_unchanged, dialect, is_parquet, line_of, stamp_of
from stepscan.data.tables import (
    OFFSET,
    WAYS,
    Table,
    Times,
    Unit,
    date_notes,
    labels,
    load_pandas,
    parse_dates,
    times,
    unit_of,
)

if TYPE_CHECKING:
    import pandas as pd

ROWS = 250_000
SAMPLE = 400  # names a batch
STAMP = "\0stamp"  # no column of a file is called this


@dataclass
class Pieces:
    """A file of rows, to be read in pieces.

    Args:
        path: A csv or a parquet file.
        by: The column that tells sequences apart.
        time: The column with the time, or None.
        columns: All columns that are wanted.
        room: A folder for the buckets; about as large as the wanted columns.
        missing: Further strings that mean missing.
        rows: Of a batch, and about of a bucket.
    """

    path: Path
    by: str
    time: str | None
    columns: Sequence[str]
    room: Path
    missing: tuple[str, ...] = ()
    rows: int = ROWS
    total: int = field(init=False, default=0)
    """Rows of the file, once the pieces are made."""
    findings: tuple[str, ...] = field(init=False, default=())

    def __iter__(self) -> Iterator[Table]:
        """Every bucket as a table, in order of names; as often as wanted."""
        for bucket in self._buckets:
            yield self._table(bucket)

    @cached_property
    def _buckets(self) -> list[Path]:
        """Both readings."""
        before = stamp_of(self.path)
        self._check_head()
        if not is_parquet(self.path):
            check_rows(self.path, dialect(self.path))
        clock, names = _Clock(self), []
        for first, frame in self._batches():
            clock.look(frame, first)
            cells = labels(Table(frame, self.path.name, self.missing), self.by, "sequence")
            known = cells.dropna()
            places = np.linspace(0, len(known) - 1, min(SAMPLE, len(known))).astype(int)
            names.append(known.iloc[places].to_numpy(object))
            self.total += len(frame)
        if not self.total:
            raise DataError(f"{self.path}: the file has no rows below its header")
        self._clock, self.findings = clock, clock.findings
        sample = np.sort(np.concatenate(names))
        count = -(-self.total // self.rows)
        at = np.arange(1, count) * len(sample) // count
        buckets = self._split(np.unique(sample[at]) if len(sample) else sample)
        check_unchanged(self.path, before)
        return buckets

    def _check_head(self) -> None:
        """Raise `DataError` where the first rows tell that this cannot be read."""
        if not self.path.stat().st_size:
            raise DataError(f"{self.path}: the file is empty")
        head = read_head(self.path, self.missing)
        for name in self.columns:
            head.column(name, "time" if name == self.time else "columns of training")
        if not len(head):
            raise DataError(f"{self.path}: the file has no rows below its header")

    def _split(self, borders: np.ndarray) -> list[Path]:
        """Every row into its bucket; bucket b holds the names from border b - 1 up to border b."""
        import pyarrow as pa  # noqa: PLC0415

        paths = [self.room / f"{b:05}.arrow" for b in range(len(borders) + 1)]
        writers: dict[int, pa.RecordBatchFileWriter] = {}
        schema: pa.Schema | None = None
        try:
            for first, frame in self._batches():
                table = Table(frame, self.path.name, self.missing)
                codes, names = labels(table, self.by, "sequence").factorize()
                homes = np.searchsorted(borders, np.asarray(names, object), side="right")
                home = np.where(codes < 0, 0, np.append(homes, 0)[codes])
                timed = {} if self.time is None else {STAMP: self._clock.read(frame, first)}
                order = np.argsort(home, kind="stable")
                sorted_ = frame.assign(**timed).iloc[order]
                rows = pa.Table.from_pandas(sorted_, preserve_index=False)
                schema = schema or _without_nulls(rows.schema)
                rows = rows.cast(schema)
                edges = np.searchsorted(home[order], np.arange(len(paths) + 1))
                for b in np.unique(home).tolist():
                    if b not in writers:
                        writers[b] = pa.ipc.new_file(str(paths[b]), schema)
                    writers[b].write_table(rows.slice(edges[b], edges[b + 1] - edges[b]))
        finally:
            for writer in writers.values():
                writer.close()
        return [path for b, path in enumerate(paths) if b in writers]

    def _table(self, bucket: Path) -> Table:
        import pyarrow as pa  # noqa: PLC0415

        with pa.memory_map(str(bucket)) as file:
            frame = pa.ipc.open_file(file).read_all().to_pandas()
        clocks = {}
        if self.time is not None:
            stamps = frame.pop(STAMP).to_numpy(np.int64)
            clocks[self.time] = Times(stamps, calendar=self._clock.calendar)
        return Table(frame, self.path.name, self.missing, clocks=clocks)

    def _batches(self) -> "Iterator[tuple[int, pd.DataFrame]]":
        """Batches of rows, and the number of the first row of each."""
        first = 0
        for frame in read_batches(self.path, self.columns, self.rows):
            yield first, frame
            first += len(frame)


def read_batches(path: Path, columns: Sequence[str], rows: int) -> "Iterator[pd.DataFrame]":
    """The wanted columns of a file, batch by batch, cell for cell as `read_table` has them."""
    load_pandas()
    import pandas as pd  # noqa: PLC0415

    if is_parquet(path):
        yield from _parquet_batches(path, columns, rows)
        return
    way = dialect(path)
    try:
        with pd.read_csv(
            path,
            sep=way.delimiter,
            dtype=str,
            keep_default_na=False,
            encoding=way.encoding,
            usecols=lambda name: str(name).strip() in columns,
            chunksize=rows,
        ) as chunks:
            for chunk in chunks:
                chunk.columns = [str(c).strip() for c in chunk.columns]
                yield chunk.reset_index(drop=True)
    except DataError:
        raise
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        raise DataError(
            f"{path}: not a table separated by {way.delimiter!r} ({line_of(error)}); "
            "want a header, then the same number of cells in every row"
        ) from None


def read_head(path: Path, missing: tuple[str, ...] = (), rows: int = 2_000) -> Table:
    """The first rows of a file: enough to tell what its columns are."""
    load_pandas()
    import pandas as pd  # noqa: PLC0415

    if is_parquet(path):
        frame = next(_parquet_batches(path, None, rows), pd.DataFrame())
    else:
        way = dialect(path)
        frame = pd.read_csv(
            path,
            sep=way.delimiter,
            dtype=str,
            keep_default_na=False,
            encoding=way.encoding,
            nrows=rows,
        )
    frame.columns = [str(c).strip() for c in frame.columns]
    return Table(frame, path.name, missing)


def _parquet_batches(
    path: Path, columns: Sequence[str] | None, rows: int
) -> "Iterator[pd.DataFrame]":
    """None is all columns."""
    try:
        import pyarrow as pa  # noqa: PLC0415
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        raise ImportError("parquet needs pyarrow: pip install 'stepscan[data]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            spotted = _whole_numbers_with_gaps(file, columns or ())
            wanted = None if columns is None else list(columns)
            for batch in file.iter_batches(batch_size=rows, columns=wanted):
                frame = batch.to_pandas()
                kinds = frame.dtypes
                plain = [name for name in spotted if isinstance(kinds[name], np.dtype)]
                yield frame.astype(dict.fromkeys(plain, "float64"))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file ({line_of(error)})") from None


def _whole_numbers_with_gaps(file: Any, columns: Sequence[str]) -> list[str]:
    """Columns that pandas reads as 31.0 throughout because one cell of the file is missing."""
    import pyarrow as pa  # noqa: PLC0415

    found = []
    for name in columns:
        field = file.schema_arrow.field(name) if name in file.schema_arrow.names else None
        if field is not None and pa.types.is_integer(field.type):
            pieces = file.iter_batches(columns=[name])
            if any(piece.column(0).null_count for piece in pieces):
                found.append(name)
    return found


def _without_nulls(schema: Any) -> Any:
    """A column that is empty in the first batch is text."""
    import pyarrow as pa  # noqa: PLC0415

    empty = [i for i, kind in enumerate(schema.types) if pa.types.is_null(kind)]
    for i in empty:
        schema = schema.set(i, schema.field(i).with_type(pa.string()))
    return schema


class _Clock:
    """How the times of a file are written: looked for in every batch, then read in one way."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._ways = list(WAYS)
        self._low, self._high, self._whole = np.inf, -np.inf, True
        self._numeric: bool | None = None
        self._telling: list[str] = []
        self.calendar = False

    @property
    def findings(self) -> tuple[str, ...]:
        """What `times` says of the whole column."""
        import pandas as pd  # noqa: PLC0415

        return date_notes(pd.Series(self._telling, dtype="str")) if self._telling else ()

    @property
    def _unit(self) -> Unit:
        return unit_of(float(self._low), float(self._high), whole=self._whole)

    def look(self, frame: "pd.DataFrame", first: int) -> None:
        """Narrow down how times are written by one more batch."""
        if self._pieces.time is None:
            return
        cells = Table(frame, self._pieces.path.name).column(self._pieces.time, "time")
        text = self._as_text(cells)
        if text is None:
            self.calendar = True
            return
        numbers = self._as_numbers(text)
        if self._numeric is None:
            self._numeric = numbers is not None
        if self._numeric:
            values = self._finite(numbers, cells, first)
            self._low, self._high = min(self._low, values.min()), max(self._high, values.max())
            self._whole &= bool((values == values.round()).all())
            self.calendar = self._unit.calendar
            return
        self.calendar = True
        unique = text.drop_duplicates()
        fits = (way for way in self._ways if parse_dates(unique, way).notna().all())
        fit = next(fits, self._ways[0])  # where none fits, `read` tells the row
        self._ways = self._ways[self._ways.index(fit) :]
        self._telling = _telling([*self._telling, *unique])

    def read(self, frame: "pd.DataFrame", first: int) -> Int[np.ndarray, " N"]:
        """The times of a batch, as in `Times`."""
        import pandas as pd  # noqa: PLC0415

        name = str(self._pieces.time)
        cells = frame[name]
        text = self._as_text(cells)
        if text is None:
            return times(Table(frame, self._pieces.path.name), name).values
        if self._numeric:
            return self._unit.times(self._finite(self._as_numbers(text), cells, first)).values
        places, different = pd.factorize(text, use_na_sentinel=False)
        parsed = parse_dates(pd.Series(different), self._ways[0])
        if parsed.isna().any():
            row = int(np.isin(places, np.flatnonzero(parsed.isna())).argmax())
            raise self._error(cells, row, first, "is not a time. Want one format throughout, best "
                              "2024-12-31 23:59:59; drop rows without a time.")  # fmt: skip
        return parsed.dt.as_unit("ns").astype("int64").to_numpy()[places]

    @staticmethod
    def _as_text(cells: "pd.Series") -> "pd.Series | None":
        """None for what is a time already."""
        import pandas as pd  # noqa: PLC0415

        timed = pd.api.types.is_datetime64_any_dtype(cells.dtype)
        if timed or isinstance(cells.dtype, pd.PeriodDtype):
            return None
        return cells.astype("str").str.strip()

    @staticmethod
    def _as_numbers(text: "pd.Series") -> Float[np.ndarray, " N"] | None:
        import pandas as pd  # noqa: PLC0415

        numbers = pd.to_numeric(text, errors="coerce")
        return numbers.to_numpy(np.float64) if numbers.notna().all() else None

    def _finite(
        self, values: Float[np.ndarray, " N"] | None, cells: "pd.Series", first: int
    ) -> Float[np.ndarray, " N"]:
        import pandas as pd  # noqa: PLC0415

        if values is None:
            read = pd.to_numeric(cells.astype("str").str.strip(), errors="coerce")
            row = int(read.isna().to_numpy().argmax())
            raise self._error(cells, row, first, "is not a number, as other times are. Want one "
                              "format throughout.")  # fmt: skip
        if not np.isfinite(values).all():
            row = int((~np.isfinite(values)).argmax())
            raise self._error(cells, row, first, "is not finite. Drop the row.")
        return values

    def _error(self, cells: "pd.Series", row: int, first: int, what: str) -> DataError:
        path, time = self._pieces.path, self._pieces.time
        return DataError(
            f'{path.name}: row {first + row + 1:,}, column "{time}": "{cells.iloc[row]}" {what}'
        )


def _telling(texts: Sequence[str]) -> list[str]:
    """The few texts that decide what is said of all of them: one of every zone and shape."""
    import pandas as pd  # noqa: PLC0415

    series = pd.Series(texts, dtype="str")
    zone = series.str.extract(OFFSET, expand=False).fillna("")
    halves = series.str.extract(r"^(\d{1,2})[/.-](\d{1,2})[/.-]\d{2,4}")
    plain = halves.isna().any(axis=1) | (halves.fillna(99).astype(int) > 12).any(axis=1)
    return series[~pd.DataFrame({"zone": zone, "plain": plain}).duplicated()].tolist()
