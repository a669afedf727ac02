"""New rows of series after old ones: what a model that is updated as data streams in keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Int

from stepscan.data.base import DataError
from stepscan.data.grid import Rows
from stepscan.data.panel import Panel
from stepscan.data.series import SeriesSchema


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
