"""New rows of series after old ones: what a model that is updated as data streams in keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Int

from stepscan.data.base import DataError
from stepscan.data.grid import Rows
from stepscan.data.panel import Panel
from stepscan.data.series import SeriesSchema
from stepscan.data.tables import MILLIONTHS, Table, labels, numbers, times

if TYPE_CHECKING:
    import pandas as pd


def rows_of(panel: Panel, names: Sequence[str], schema: SeriesSchema) -> Rows:
    """The rows that a panel was made of; a missing covariate becomes its median, as when read."""
    count = len(schema.covariates)
    center, scale = np.array(schema.covariate_center), np.array(schema.covariate_scale)
    covariates = panel.channels[:, :count].double().numpy() * scale + center
    return Rows(
        series=panel.series.numpy(),
        names=list(names),
        stamps=panel.stamps.numpy(),
        y=panel.y.numpy(),
        covariates=covariates,
        calendar=schema.calendar,
        findings=(),
        static=_static_words(panel, schema),
    )


def joined(
    old: Rows, new: Rows, until: Mapping[str, int], schema: SeriesSchema, source: str
) -> Rows:
    """Old rows and new ones, sorted; new rows replace those that still wait for a value.

    Args:
        old: Rows that are kept.
        new: Rows that came.
        until: The time of the last step read, by series.
        schema: For the name of the time column; without one, new rows come after the old.
        source: Of the new rows, for errors.

    Raises:
        DataError: a row of a time that was read.
    """
    if schema.time is None:
        new = replace(new, stamps=new.stamps + max(until.values(), default=-1) + 1)
    names = list(dict.fromkeys([*old.names, *new.names]))
    place = {name: i for i, name in enumerate(names)}
    series = np.array([place[name] for name in new.names], np.int64)[new.series]
    limit = np.array([until.get(name, np.iinfo(np.int64).min) for name in names])
    late = new.stamps <= limit[series]
    if late.any():
        row = int(late.argmax())
        name = names[series[row]]
        when = _moment(int(new.stamps[row]), schema)
        raise DataError(
            f'{source}: {int(late.sum()):,} rows were read before, such as that of "{when}"'
            + (f' of series "{name}"' if name and len(names) > 1 else "")
            + "; want the rows that come after"
        )
    waits = ~_among(old, new.stamps, series)
    order_series = np.concatenate([old.series[waits], series])
    stamps = np.concatenate([old.stamps[waits], new.stamps])
    order = np.lexsort((stamps, order_series))
    static = {
        column: [
            told if told else dict(zip(new.names, new.static[column], strict=True)).get(name, "")
            for name, told in zip(
                names, [*old.static[column], *[""] * (len(names) - len(old.names))], strict=True
            )
        ]
        for column in schema.static
    }
    return Rows(
        series=order_series[order],
        names=names,
        stamps=stamps[order],
        y=np.concatenate([old.y[waits], new.y])[order],
        covariates=np.concatenate([old.covariates[waits], new.covariates])[order],
        calendar=schema.calendar,
        findings=new.findings,
        static=static,
    )


def plain_frame(table: Table, schema: SeriesSchema) -> "pd.DataFrame":
    """The columns that a model learned from, however they are written: times, numbers, text.

    Raises:
        DataError: one is missing or cannot be read; times that are no times of the model's clock.
    """
    import pandas as pd  # noqa: PLC0415

    columns, found = schema.columns, {}
    if columns.id is not None:
        found[columns.id] = labels(table, columns.id, "series")
    if columns.time is not None:
        clock = times(table, columns.time)
        if clock.calendar != schema.calendar:
            kinds = ("plain numbers", "dates")
            raise DataError(
                f'{table.name}: column "{columns.time}" holds {kinds[clock.calendar]}, the model '
                f"learned times that are {kinds[schema.calendar]}"
            )
        found[columns.time] = _moments(clock.values, schema)
    for column in columns.target:
        found[column] = numbers(table, column, "target")
    for column in columns.covariates:
        found[column] = numbers(table, column, "covariate")
    for column in columns.static:
        found[column] = labels(table, column, "static")
    return pd.DataFrame({name: pd.Series(values).array for name, values in found.items()})


def frame_of(panel: Panel, names: Sequence[str], schema: SeriesSchema) -> "pd.DataFrame":
    """The frame that a panel of one target was made of; see `rows_of` for what differs."""
    import pandas as pd  # noqa: PLC0415

    if len(schema.target) > 1:
        raise DataError("want the rows of several targets from a file")
    rows = rows_of(panel, names, schema)
    found: dict[str, Any] = {schema.target[0]: rows.y}
    if schema.id is not None:
        found[schema.id] = np.array(rows.names, dtype=object)[rows.series]
    if schema.time is not None:
        found[schema.time] = _moments(rows.stamps, schema)
    found |= {c: rows.covariates[:, i] for i, c in enumerate(schema.covariates)}
    found |= {c: np.array(rows.static[c], dtype=object)[rows.series] for c in schema.static}
    return pd.DataFrame(found)


def together(old: "pd.DataFrame", new: "pd.DataFrame", schema: SeriesSchema) -> "pd.DataFrame":
    """All rows of two such frames; of a series and time in both, the new values count.

    Without a time column the new rows come after the old ones.
    """
    import pandas as pd  # noqa: PLC0415

    if schema.time is None:
        return pd.concat([old, new], ignore_index=True)
    both = pd.concat([new, old], ignore_index=True)
    for column in schema.static:  # the newest word on what does not change
        told = both[column].dropna()
        if schema.id is None:
            both[column] = told.iloc[0] if len(told) else None
        else:
            both[column] = both[schema.id].map(told.groupby(both[schema.id]).first())
    keys = [name for name in (schema.id, schema.time) if name is not None]
    return both.groupby(keys, as_index=False, dropna=False).first()


def kept(rows: Rows, which: Bool[np.ndarray, " N"]) -> Rows:
    """Some of the rows."""
    return replace(
        rows,
        series=rows.series[which],
        stamps=rows.stamps[which],
        y=rows.y[which],
        covariates=rows.covariates[which],
    )


def _among(
    old: Rows, stamps: Int[np.ndarray, " N"], series: Int[np.ndarray, " N"]
) -> Bool[np.ndarray, " M"]:
    """Which old rows have a new one of the same series and time."""
    times, code = np.unique(np.concatenate([old.stamps, stamps]), return_inverse=True)
    key = np.concatenate([old.series, series]) * len(times) + code
    return np.isin(key[: len(old.stamps)], key[len(old.stamps) :])


def stamp_of(when: object, schema: SeriesSchema) -> int:
    """A time as the schema's column has it; without a time column, a row, counted from 0."""
    import pandas as pd  # noqa: PLC0415

    if schema.time is None:
        try:
            return int(when)  # type: ignore[call-overload]
        except (TypeError, ValueError):
            raise DataError(
                f'since: the model learned rows in order, so want the number of a row, got "{when}"'
            ) from None
    return int(times(Table(pd.DataFrame({schema.time: [when]}), "since"), schema.time).values[0])


def _moments(stamps: Int[np.ndarray, " N"], schema: SeriesSchema) -> np.ndarray:
    """Times as `tables.times` reads them back."""
    return stamps.astype("datetime64[ns]") if schema.calendar else stamps / MILLIONTHS


def _moment(stamp: int, schema: SeriesSchema) -> str:
    if schema.calendar:
        return str(np.datetime64(stamp, "ns").astype("datetime64[s]")).replace("T", " ")
    return f"{stamp / 1e6:g}"


def _static_words(panel: Panel, schema: SeriesSchema) -> dict[str, list[str]]:
    """What `encode_static` read, back as text."""
    if panel.static is None:
        return {}
    found: dict[str, list[str]] = {}
    sizes = [max(1, len(levels)) for levels in schema.static_levels]
    parts = panel.static.double().split(sizes, 1)
    facts = zip(
        schema.static,
        schema.static_levels,
        schema.static_center,
        schema.static_scale,
        strict=True,
    )
    for part, (column, levels, center, scale) in zip(parts, facts, strict=True):
        if not levels:
            found[column] = [repr(float(x) * scale + center) for x in part[:, 0]]
            continue
        known = torch.where(part.any(1), part.argmax(1), -1).tolist()
        found[column] = [levels[i] if i >= 0 else "" for i in known]
    return found
