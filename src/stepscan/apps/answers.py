"""Answers for whole tables: as a frame, or for a file of any size, written piece by piece."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepscan.data.base import DataError
from stepscan.data.events import EventSchema
from stepscan.data.pieces import ROWS, Pieces
from stepscan.data.stored import Workshop

if TYPE_CHECKING:
    import pandas as pd

FORMATS = (".csv", ".parquet")


def answer_frame(schema: Any, answers: Mapping[str, Any]) -> "pd.DataFrame":
    """What `predict_table` says of each case or user: one row for each place of a list of
    predictions, else one row; columns are called as in the training data.
    """
    import pandas as pd  # noqa: PLC0415

    events = isinstance(schema, EventSchema)
    who, what = (schema.case, schema.activity) if events else (schema.user, schema.item)
    rows = [{who: name} | row for name, one in answers.items() for row in _rows(one, what)]
    return pd.DataFrame(rows)


def _rows(answer: Any, what: str) -> Iterator[dict[str, Any]]:
    if isinstance(answer, float):  # a time
        yield {"seconds": answer}
    elif isinstance(answer, list):
        for place, one in enumerate(answer, 1):
            yield {"place": place, what: one.what, "probability": one.probability}
    else:  # one named answer, such as a suffix
        yield {what if name == "what" else name: value for name, value in answer._asdict().items()}


def predict_file(
    model: Any,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rows: int = ROWS,
    scratch: str | None = None,
    **asked: Any,
) -> int:
    """`predict_frame` of a file that need not fit in memory, written to another as it goes.

    Args:
        model: Of events or of interactions.
        data: A csv or a parquet file, rows in any order.
        out: A csv or a parquet file; it is there when it is whole, and not before.
        rows: Of a piece: what is in memory at once.
        scratch: A folder for the pieces; None is that for temporary files.
        asked: As in `predict_table`.

    Returns:
        The number of rows written.
    """
    source, path = Path(data), Path(out)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: want a file to write that ends in {' or '.join(FORMATS)}")
    if not source.is_file():
        raise DataError(f"{source}: no such file")
    schema = model.schema
    events = isinstance(schema, EventSchema)
    columns = (
        [schema.case, schema.activity, schema.time, *schema.attributes]
        if events
        else [schema.user, schema.item, schema.time]
    )
    part = path.with_name(f".{path.name}.part")
    try:
        with Workshop(scratch) as shop, _Writer(part, path.suffix.lower()) as writer:
            pieces = Pieces(
                source,
                by=columns[0],
                time=schema.time,
                columns=columns,
                room=shop.path,
                missing=model.missing,
                rows=rows,
            )
            for table in pieces:
                writer.write(answer_frame(schema, model.predict_table(table, **asked)))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return writer.rows


class _Writer:
    """Frames one after another into one file."""

    def __init__(self, path: Path, suffix: str) -> None:
        self._path, self._suffix = path, suffix
        self._parquet: Any = None
        self.rows = 0

    def write(self, frame: "pd.DataFrame") -> None:
        if self._suffix == ".csv":
            first = not self._path.exists()
            frame.to_csv(self._path, mode="a", header=first, index=False)
        elif len(frame):
            import pyarrow as pa  # noqa: PLC0415
            from pyarrow import parquet  # noqa: PLC0415

            table = pa.Table.from_pandas(frame, preserve_index=False)
            self._parquet = self._parquet or parquet.ParquetWriter(self._path, table.schema)
            self._parquet.write_table(table.cast(self._parquet.schema))
        self.rows += len(frame)

    def __enter__(self) -> "_Writer":
        self._path.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._parquet is not None:
            self._parquet.close()
