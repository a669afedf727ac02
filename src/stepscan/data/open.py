"""The front door: a file, a folder or a name becomes a `Dataset`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from stepscan.data.base import DataError, DataOptions, Dataset, Schema
from stepscan.data.events import EventSchema, event_dataset
from stepscan.data.files import check_unchanged, read_table, stamp_of
from stepscan.data.findings import problems
from stepscan.data.frames import frame_table, is_frame
from stepscan.data.infer import (
    event_roles,
    interaction_roles,
    kind_of,
    labelled_columns,
    response_roles,
    series_columns,
)
from stepscan.data.interactions import InteractionSchema, interaction_dataset
from stepscan.data.item_texts import ItemTextSchema, item_text_dataset
from stepscan.data.labelled import LabelledSchema
from stepscan.data.labelled_dataset import labelled_dataset
from stepscan.data.large_events import large_event_dataset
from stepscan.data.named import NAMED
from stepscan.data.pieces import read_head
from stepscan.data.responses import ResponseSchema, response_dataset
from stepscan.data.sequences import from_table, from_ts
from stepscan.data.series import SeriesSchema, series_dataset
from stepscan.data.tables import Table
from stepscan.data.text import TextSchema, read_documents, text_dataset
from stepscan.data.tokens import TokenSchema
from stepscan.data.xes import is_xes
from stepscan.names import lookup

if TYPE_CHECKING:
    import pandas as pd

CLOSED = (".gz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".xlsx", ".xls", ".pdf", ".docx")
TABLES = (".csv", ".tsv", ".parquet", ".pq", ".xes", ".inter")
KINDS: MappingProxyType[str, type[Schema]] = MappingProxyType(
    {
        schema.kind: schema
        for schema in (
            TextSchema,
            SeriesSchema,
            EventSchema,
            InteractionSchema,
            ItemTextSchema,
            ResponseSchema,
            LabelledSchema,
        )
    }
)


def open_dataset(
    source: "str | Path | pd.DataFrame",
    options: DataOptions | None = None,
    like: Schema | None = None,
) -> Dataset:
    """Read, infer, split and pack a path, a frame, or a name of NAMED; a path that exists wins.

    `like` is the schema of a model that learns on, see `series_dataset`.
    """
    options = options or DataOptions()
    if is_frame(source):
        return open_table(frame_table(source, missing=options.missing), options, like)
    path = Path(source)  # type: ignore[arg-type]  # not a frame
    if not path.exists():
        if isinstance(source, str) and _is_name(source):
            return _noticed(_open_named(source, options, like))
        raise DataError(f"{path}: no such file or folder")
    if options.kind is not None:
        lookup(KINDS, options.kind, kind="kind of data")
    if path.is_file() and not path.stat().st_size:
        raise DataError(f"{path}: the file is empty")
    if path.is_file() and path.suffix.lower() in CLOSED and not is_xes(path):
        raise DataError(f"{path}: {path.suffix} is not read; unpack it, or save it as csv or text")
    try:
        if path.is_file() and _is_table(path, options):
            roles = _large_log(path, options)
            if roles is not None:
                return _noticed(large_event_dataset(path, options, roles))
            return open_table(read_table(path, options.missing), options, like)
        if path.suffix.lower() == ".ts":
            return _noticed(labelled_dataset(from_ts(path), options, name=path.name))
        before = stamp_of(path)
        documents, names, unit = read_documents(path, options)
        if path.is_file():
            check_unchanged(path, before)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if options.kind not in (None, "text"):
        raise DataError(f"{path}: kind {options.kind!r} needs a table: {' '.join(TABLES)}")
    return _noticed(text_dataset(documents, options, name=path.name, names=names, unit=unit))


def read_schema(saved: Mapping[str, Any]) -> Schema:
    """The schema that `Schema.to_dict` wrote."""
    kind = saved.get("kind")
    if not isinstance(kind, str):
        raise DataError(f"schema: want a kind, got {kind!r}")
    known = {**KINDS, TokenSchema.kind: TokenSchema}  # imported with a model, never inferred
    return lookup(known, kind, kind="kind of data").from_dict(saved)


def open_table(table: Table, options: DataOptions, like: Schema | None = None) -> Dataset:
    """Infer, split and pack a table, and look for trouble in it."""
    if isinstance(like, SeriesSchema):
        dataset = series_dataset(table, options, like.columns, name=table.name, like=like)
    else:
        dataset = _packed(table, options)
    return _noticed(dataset, table)


def _noticed(dataset: Dataset, table: Table | None = None) -> Dataset:
    """With what is wrong in the data, as far as it is seen."""
    read = () if table is None else table.findings
    found = dict.fromkeys((*read, *dataset.findings, *problems(dataset, table)))
    return replace(dataset, findings=tuple(found))


def _packed(table: Table, options: DataOptions) -> Dataset:
    kind = kind_of(table, options)
    if kind == "events":
        return event_dataset(table, options, event_roles(table, options), name=table.name)
    if kind == "responses":
        return response_dataset(table, options, response_roles(table, options), name=table.name)
    if kind == "interactions":
        roles = interaction_roles(table, options)
        if options.items is not None:
            described = Path(options.items)
            if not described.is_file():
                raise DataError(f"{described}: no such file")
            catalogue = read_table(described, options.missing)
            return item_text_dataset(table, catalogue, options, roles, name=table.name)
        return interaction_dataset(table, options, roles, name=table.name)
    if kind == "labelled":
        labelled, findings = labelled_columns(table, options)
        found = from_table(table, labelled)
        found = replace(found, findings=(*found.findings, *findings))
        return labelled_dataset(found, options, name=table.name, columns=labelled)
    columns, findings = series_columns(table, options)
    return series_dataset(table, options, columns, name=table.name, findings=findings)


def _large_log(path: Path, options: DataOptions) -> dict[str, str] | None:
    """The roles of columns, if this is a log of events that is better read in pieces."""
    if path.stat().st_size <= options.large * 1e6 or is_xes(path):
        return None
    head = read_head(path, options.missing)
    return event_roles(head, options) if kind_of(head, options) == "events" else None


def _open_named(name: str, options: DataOptions, like: Schema | None) -> Dataset:
    if like is not None:
        raise DataError(f"{name}: no such file; new data comes in a file or a frame")
    return lookup(NAMED, name, kind="data set (and no such file)")(options)


def _is_table(path: Path, options: DataOptions) -> bool:
    if options.kind is not None:
        return options.kind != "text"
    return path.suffix.lower() in TABLES or is_xes(path)


def _is_name(source: str) -> bool:
    """A bare word: something with a dot or a slash was meant as a path."""
    return not any(mark in source for mark in "./\\")
