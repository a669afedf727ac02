"""The front door: a file, a folder or a name becomes a `Dataset`."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stepscan.data.base import DataError, DataOptions, Dataset, Schema
from stepscan.data.events import EventSchema, event_dataset
from stepscan.data.images import ImageSchema
from stepscan.data.infer import event_roles, interaction_roles, kind_of, series_columns
from stepscan.data.interactions import InteractionSchema, interaction_dataset
from stepscan.data.named import NAMED
from stepscan.data.series import SeriesSchema, series_dataset
from stepscan.data.tables import read_table
from stepscan.data.text import TextSchema, read_documents, text_dataset
from stepscan.data.tokens import TokenSchema
from stepscan.names import lookup

CLOSED = (".gz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".xlsx", ".xls", ".pdf", ".docx")
TABLES = (".csv", ".tsv", ".parquet", ".pq")
KINDS: MappingProxyType[str, type[Schema]] = MappingProxyType(
    {
        schema.kind: schema
        for schema in (TextSchema, SeriesSchema, EventSchema, InteractionSchema, ImageSchema)
    }
)


def open_dataset(source: str | Path, options: DataOptions | None = None) -> Dataset:
    """Read, infer, split and pack a path, or a name of NAMED; a path that exists wins."""
    options = options or DataOptions()
    path = Path(source)
    if not path.exists():
        if isinstance(source, str) and _is_name(source):
            return lookup(NAMED, source, kind="data set (and no such file)")(options)
        raise DataError(f"{path}: no such file or folder")
    if options.kind is not None:
        lookup(KINDS, options.kind, kind="kind of data")
    if path.is_file() and not path.stat().st_size:
        raise DataError(f"{path}: the file is empty")
    if path.is_file() and path.suffix.lower() in CLOSED:
        raise DataError(f"{path}: {path.suffix} is not read; unpack it, or save it as csv or text")
    try:
        if path.is_file() and _is_table(path, options):
            return _open_table(path, options)
        documents, names, unit = read_documents(path, options)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if options.kind not in (None, "text"):
        raise DataError(f"{path}: kind {options.kind!r} needs a table: {' '.join(TABLES)}")
    return text_dataset(documents, options, name=path.name, names=names, unit=unit)


def read_schema(saved: Mapping[str, Any]) -> Schema:
    """The schema that `Schema.to_dict` wrote."""
    kind = saved.get("kind")
    if not isinstance(kind, str):
        raise DataError(f"schema: want a kind, got {kind!r}")
    known = {**KINDS, TokenSchema.kind: TokenSchema}  # imported with a model, never inferred
    return lookup(known, kind, kind="kind of data").from_dict(saved)


def _open_table(path: Path, options: DataOptions) -> Dataset:
    table = read_table(path, options.missing)
    kind = kind_of(table, options)
    if kind == "events":
        return event_dataset(table, options, event_roles(table, options), name=path.name)
    if kind == "interactions":
        return interaction_dataset(
            table, options, interaction_roles(table, options), name=path.name
        )
    columns, findings = series_columns(table, options)
    return series_dataset(table, options, columns, name=path.name, findings=findings)


def _is_table(path: Path, options: DataOptions) -> bool:
    if options.kind is not None:
        return options.kind != "text"
    return path.suffix.lower() in TABLES


def _is_name(source: str) -> bool:
    """A bare word: something with a dot or a slash was meant as a path."""
    return not any(mark in source for mark in "./\\")
