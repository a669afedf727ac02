"""Frames become tables: what people hold in memory is read as a parquet file would be.

A frame of pandas is taken as it is; one of polars, pyarrow or another library through its
`to_pandas`. An index that carries names or times becomes columns, so that
`frame.set_index("when")` and `frame` mean the same.
"""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepscan.data.base import DataError
from stepscan.data.tables import Table, load_pandas

if TYPE_CHECKING:
    import pandas as pd

PLAIN = ("string", "empty", "boolean")  # what an object column may hold as it is
KEPT = "data.parquet"
"""How the name of a frame ends that a run was started with, in its folder."""


def is_frame(data: Any) -> bool:
    """Whether this is a table in memory, of whatever library."""
    return not isinstance(data, str | os.PathLike) and (
        hasattr(data, "to_pandas") or (hasattr(data, "columns") and hasattr(data, "iloc"))
    )


def frame_table(data: Any, name: str = "frame", missing: tuple[str, ...] = ()) -> Table:
    """A frame as a table that comes back from parquet as it was: plain names, plain cells.

    Raises:
        DataError: it has no rows, no columns, or two columns of one name.
    """
    load_pandas()
    frame: pd.DataFrame = data.to_pandas() if hasattr(data, "to_pandas") else data
    if frame.columns.nlevels > 1:
        raise DataError(
            f"{name}: want one name a column, got {frame.columns.nlevels} levels of names; "
            "join them: frame.columns = frame.columns.map('_'.join)"
        )
    frame = _index_as_columns(frame)
    frame.columns = [str(column).strip() for column in frame.columns]
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise DataError(f'{name}: column "{twice[0]}" is there twice; rename one of them')
    if not len(frame) or not len(frame.columns):
        raise DataError(f"{name}: want rows and columns, got {len(frame)} x {len(frame.columns)}")
    for column in frame.columns:
        frame[column] = _plain(frame[column])
    return Table(frame, name, missing)


def keep_frame(table: Table, path: Path) -> Path:
    """Write the table as parquet, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        table.frame.to_parquet(part, index=False)
        part.replace(path)
    except ImportError:
        raise ImportError("a frame is kept as parquet: pip install 'stepscan[data]'") from None
    finally:
        part.unlink(missing_ok=True)
    return path


def _index_as_columns(frame: "pd.DataFrame") -> "pd.DataFrame":
    """A copy without an index; one with names, or of times, becomes columns."""
    import pandas as pd  # noqa: PLC0415

    index = frame.index
    named = [name for name in index.names if name is not None]
    timed = isinstance(index, pd.DatetimeIndex | pd.PeriodIndex)
    if timed and not named and "time" not in frame.columns:
        frame = frame.rename_axis("time")
        named = ["time"]
    dropped = not named or any(name in frame.columns for name in named)
    return frame.reset_index(drop=dropped).copy()


def _plain(cells: "pd.Series") -> "pd.Series":
    """Categories and mixed objects as text, decimals as numbers, calendar days as times."""
    import pandas as pd  # noqa: PLC0415

    if isinstance(cells.dtype, pd.CategoricalDtype):
        cells = cells.astype(cells.cat.categories.dtype)
    if pd.api.types.is_datetime64_any_dtype(cells.dtype) and cells.dt.unit == "s":
        return cells.dt.as_unit("ms")  # parquet has no seconds
    if cells.dtype != object:
        return cells
    found = pd.api.types.infer_dtype(cells, skipna=True)
    if found in ("decimal", "integer", "floating", "mixed-integer-float"):
        return cells.astype(float)
    if found in ("date", "datetime", "datetime64"):
        with contextlib.suppress(ValueError):  # several time zones stay text: read later, and said
            return _plain(pd.to_datetime(cells))
    return cells if found in PLAIN else cells.map(str).mask(cells.isna(), None)
