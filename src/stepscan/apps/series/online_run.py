"""A run that learns on from new rows while it reads them, and leaves a new run: `update --learn`.

The file holds what came since, and may hold older rows too. What the run was trained on is read
first, without learning; then every new row is forecast, and learned from when its time has come.
The forecasts are made a horizon apart with the weights of their moment, beside those that the
model as it was makes from the same steps (prequential, Dawid 1984, doi:10.2307/2981683): the two
errors are of the same rows, and no forecast knows a value that came after it was made.

The new run keeps all the rows, so that it forecasts from the end of them, and can learn on again.
"""

import copy
import dataclasses
import math
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stepscan.apps import runs, warm
from stepscan.apps.domain import Scores
from stepscan.apps.model import Model
from stepscan.apps.progress import Voice, clock
from stepscan.apps.series.domain import Series, forecast
from stepscan.apps.series.learning import learn
from stepscan.data.base import DataError, DataOptions
from stepscan.data.frames import KEPT, frame_table, keep_frame
from stepscan.data.grid import Grid, measure, read_rows
from stepscan.data.joining import frame_of, plain_frame, stamp_of, together
from stepscan.data.open import open_table
from stepscan.data.panel import SeriesPacked
from stepscan.data.series import SeriesSchema
from stepscan.data.tables import Table
from stepscan.names import lookup
from stepscan.train.loop import DivergedError
from stepscan.train.online import METHODS

if TYPE_CHECKING:
    import pandas as pd

NEVER = -(1 << 62)
"""Before any time."""


def learn_on(
    run: str | os.PathLike[str],
    data: "str | os.PathLike[str] | pd.DataFrame",
    *,
    method: str = "uoro",
    learning_rate: float = 1e-4,
    since: "str | pd.Timestamp | float | None" = None,
    out: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    voice: Voice | None = None,
    seed: int = 0,
) -> Model:
    """Learn from new rows of series while reading them, and leave a new run.

    Args:
        run: A run or a model folder of series; it stays as it is.
        data: A file or a frame with the columns that the model learned from: the rows that came
            since. Older rows may be among them, and then take the place of those of the run.
        method: One of `train.online.METHODS`.
        learning_rate: Of every step of learning.
        since: The time of the last row that was learned from. None is the end of the data of the
            run; or the time up to which its weights were chosen, where `data` is that very file,
            grown. Where it is told, the data of the run are not asked for.
        out: The new run folder; None makes one under runs/. It is there whole or not at all.
        quiet: Say nothing.
        voice: Where to say it.
        seed: Of the random signs of uoro.

    Returns:
        The model that has learned; `about["learned"]` tells from how many steps, and the errors of
        the forecasts made on the way beside those of the model as it was.

    Raises:
        ValueError: the data cannot be read or the run cannot learn from them; nothing is written.
        DivergedError: the weights are no longer finite; nothing is written.
    """
    voice = voice or Voice(quiet=quiet)
    if not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise ValueError(f"update: want learning_rate above zero, got {learning_rate}")
    lookup(METHODS, method, kind="online method")
    old = warm.begin(run)
    schema: SeriesSchema = old.schema
    if out is not None and Path(out).exists():
        runs.new_folder("", out)  # only refuses: what is there and empty stays as it is
    table = old.table(data)
    read_rows(table, schema.columns)  # times that are there twice are told with their row
    frame, ends = _joined(old, data, table, since)
    named = str(getattr(data, "attrs", {}).get("name", "frame"))
    name = Path(data).stem if isinstance(data, str | os.PathLike) else named
    joined = frame_table(frame, name)
    told = _options(old)
    like = _with_new_series(schema, joined)
    dataset = open_table(joined, told, like)
    test = dataset.parts["test"]
    assert isinstance(test, SeriesPacked)
    panel, names = test.panel, test.names
    begin, end = panel.begin.numpy(), panel.end.numpy()
    whole = SeriesPacked(panel, names, first=begin, last=end, low=begin + 1, high=end)
    after = torch.tensor([ends.get(n, NEVER) for n in names])
    origins = _origins(whole, after, set(schema.names))
    voice.say(f"reads       {table.name}   {_facts(whole, after, schema)}")
    network, begun = copy.deepcopy(old.network), time.monotonic()

    def show(part: float, steps: int) -> None:
        voice.show(part, f"{clock(time.monotonic() - begun)}  {steps:,} steps learned from")

    with voice.moving():
        learned = learn(
            network,
            whole,
            after,
            method=method,
            learning_rate=learning_rate,
            seed=seed,
            origins=origins.tolist(),
            show=show,
        )
    if not all(p.isfinite().all() for p in network.parameters()):
        raise DivergedError(
            f"update: learning diverged at a learning rate of {learning_rate:g}; take a smaller "
            "--learning-rate"
        )
    network.eval()
    domain = Series(dataset)
    about: dict[str, Any] = {
        "method": method,
        "learning_rate": learning_rate,
        "steps": learned.steps,
        "seconds": time.monotonic() - begun,
        "forecasts": len(origins),
    }
    if learned.said is not None:
        measured = getattr(network.config.head, "measured", "base")
        said = domain.schema.decode(learned.said.double(), *whole.origin_at(origins, measured))
        frozen = forecast(old.network, domain.schema, whole, origins, reach=old.reach)
        about["error"] = domain.judge(whole, origins, said)
        about["error_as_it_was"] = domain.judge(whole, origins, frozen)
    folder = _save(network, old, domain.schema, joined, told, about, panel, name, out, run)
    voice.say(
        f"learned     {learned.steps:,} steps by {method}   {clock(about['seconds'])}",
        *_errors(about),
        f"saved       {folder}   (model, and the rows up to now)",
        f"next        stepscan forecast {folder}",
    )
    return Model.load(folder)


def _options(old: Model) -> DataOptions:
    """How the new run reads its rows: held out as in the old one."""
    told = runs.tuples(old.about.get("options") or {})
    held = {key: told[key] for key in ("valid", "test") if told.get(key) is not None}
    return dataclasses.replace(warm.reading(old, DataOptions(**held)), missing=())


def _joined(
    old: Model, data: Any, table: Table, since: Any
) -> tuple["pd.DataFrame", dict[str, int]]:
    """The rows of the run and the new ones, and the time each series was learned up to."""
    schema: SeriesSchema = old.schema
    new = plain_frame(table, schema)
    source = old.about.get("source")
    if since is None and _same_file(source, data):
        if "seen_until" not in old.about:
            raise DataError(
                f"update: {table.name} is the file that the run was trained on; say with --since "
                "up to which time it was learned from"
            )
        limit = int(old.about["seen_until"])
        return new, dict.fromkeys(schema.names, limit)
    if since is not None:
        limit = stamp_of(since, schema)
        return new, dict.fromkeys([*schema.names, *Grid(*_grid(new, schema)).names], limit)
    try:
        if isinstance(source, str) and Path(source).is_file():
            before = plain_frame(old.table(source), schema)
        else:
            own = old.own_data().parts["test"]
            assert isinstance(own, SeriesPacked)
            before = frame_of(own.panel, own.names, schema)
    except (DataError, OSError) as error:
        raise DataError(
            f"update: the data of the run cannot be read ({error}); give all rows in one file, and "
            "with --since the time of the last one that was learned from"
        ) from None
    grid = Grid(*_grid(before, schema))
    ends = dict(zip(grid.names, grid.stamps[grid.last_value].tolist(), strict=True))
    if schema.time is None:  # rows are counted over the whole table
        ends = dict.fromkeys(ends, len(before) - 1)
    return together(before, new, schema), ends


def _grid(frame: "pd.DataFrame", schema: SeriesSchema) -> tuple[Any, Any]:
    return read_rows(Table(frame, "update"), schema.columns), schema.frequency


def _same_file(source: object, data: Any) -> bool:
    if not isinstance(source, str) or not isinstance(data, str | os.PathLike):
        return False
    return Path(source).exists() and Path(data).exists() and Path(source).samefile(data)


def _with_new_series(schema: SeriesSchema, table: Table) -> SeriesSchema:
    """Series that come for the first time are measured by all that they bring."""
    grid = Grid(read_rows(table, schema.columns), schema.frequency)
    if set(grid.names) <= set(schema.names):
        return schema
    return schema.known(grid, measure(grid, grid.end, schema.season, schema.horizon))


def _origins(packed: SeriesPacked, after: torch.Tensor, known: set[str]) -> torch.Tensor:
    """From where new rows are forecast: the last old step, and every horizon from there.

    Series that come for the first time were measured by these rows, and are not judged.
    """
    panel, found = packed.panel, []
    for s, (first, last) in enumerate(zip(panel.begin.tolist(), panel.end.tolist(), strict=True)):
        old = int((panel.stamps[first:last] <= after[s]).sum())
        if old and packed.names[s] in known:
            found += range(first + old - 1, last - 1, panel.horizon)
    found = [at for at in found if not packed.actual_at(torch.tensor([at])).isnan().all()]
    return torch.tensor(found, dtype=torch.int64)


def _facts(packed: SeriesPacked, after: torch.Tensor, schema: SeriesSchema) -> str:
    panel = packed.panel
    new = (panel.stamps > after[panel.series]) & ~panel.y.isnan()
    added = len(set(packed.names) - set(schema.names))
    said = f"{int(new.sum()):,} new values of {len(panel.series[new].unique()):,} series"
    return said + (f", {added:,} of them for the first time" if added else "")


def _errors(about: dict[str, Any]) -> tuple[str, ...]:
    """Both errors in one line, and whether learning helped in another."""
    if "error" not in about:
        return ("error       of no forecast: no series that the model knew has new rows",)
    now: Scores = about["error"]
    then: Scores = about["error_as_it_was"]
    pairs = "   ".join(f"{name} {now[name]:.3f} ({then[name]:.3f})" for name in ("MASE", "CRPS"))
    line = (
        f"error       {pairs}   of {about['forecasts']:,} forecasts made before their rows were "
        "learned from (of the model as it was)"
    )
    if now["MASE"] < then["MASE"]:
        return (line,)
    return (line, "            learning did not help on these rows: the old run stays the better")


def _save(
    network: Any,
    old: Model,
    schema: SeriesSchema,
    table: Table,
    options: DataOptions,
    learned: dict[str, Any],
    panel: Any,
    name: str,
    out: str | os.PathLike[str] | None,
    run: str | os.PathLike[str],
) -> Path:
    """The new run, made beside its place and renamed."""
    folder = runs.new_folder(name, out)
    stage = folder.with_name(f".stage-{folder.name}-{uuid.uuid4().hex[:8]}")
    try:
        stage.mkdir()
        kept = f"{runs.word(name)}-{KEPT}"
        keep_frame(table, stage / kept)
        about = {
            "data": name,
            "metric": old.about.get("metric", "MASE"),
            "folder": str(folder),
            "reach": old.reach,
            "source": str((folder / kept).absolute()),
            "options": dataclasses.asdict(options),
            "warm_start": runs.source(run),
            "learned": learned,
        }
        if schema.calendar and (schema.step or schema.months):
            about["seen_until"] = int(panel.stamps[np.flatnonzero(~panel.y.isnan().numpy())].max())
        Model(network, schema, about).save(stage / "model")
        stage.rename(folder)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise
    return folder
