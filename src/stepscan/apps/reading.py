"""What a person hands to a model becomes inputs: a whole history, or the next piece of a stream.

A piece needs more than itself: the time of the event before, a season of values before. That is
kept as `memory` beside the state of the layers, so that no cut is seen in the inputs.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stepscan.data.base import DataError, Schema
from stepscan.data.events import EventSchema, time_channels
from stepscan.data.interactions import InteractionSchema
from stepscan.data.item_texts import ItemTextSchema
from stepscan.data.labelled import LabelledSchema
from stepscan.data.patches import fold
from stepscan.data.series import SeriesSchema
from stepscan.data.tables import Table, labels, numbers, times
from stepscan.data.text import TextSchema
from stepscan.data.tokens import TokenSchema
from stepscan.models import Inputs
from stepscan.names import did_you_mean

if TYPE_CHECKING:
    import pandas as pd

HANDED = "the data given"  # what errors call it


class Piece(NamedTuple):
    """Inputs of one row, what the next piece needs, and outputs as people want them."""

    inputs: Inputs
    memory: Any
    finish: Callable[[Any], Any]


class SeriesMemory(NamedTuple):
    """The rows that the steps to come look back at, and the time of the last step read."""

    rows: "pd.DataFrame"
    name: str
    until: int


def read_piece(  # noqa: PLR0911 (a return for each kind of data)
    schema: Schema,
    data: Any,
    *,
    stamps: Any = None,
    memory: Any = None,
    begun: bool = False,
    measured: str = "base",
) -> Piece:
    """The inputs of the next steps of a sequence.

    Args:
        schema: How data becomes inputs.
        data: See `Model.stream`.
        stamps: Times of events; for all pieces of a sequence or for none.
        memory: Of the piece before.
        begun: Whether there was one.
        measured: Of series: what the answers are measured from, `Forecast.measured`.
    """
    if isinstance(data, Inputs):
        return Piece(data, memory, _as_it_is)
    if isinstance(schema, TextSchema | TokenSchema) and isinstance(data, str | bytes):
        return _text(schema, data, begun=begun)
    if isinstance(schema, EventSchema):
        return _events(schema, data, stamps, memory, begun=begun)
    if isinstance(schema, InteractionSchema):
        return _interactions(schema, data, stamps, memory, begun=begun)
    if isinstance(schema, ItemTextSchema):
        return _item_texts(schema, data, memory or 0)
    if isinstance(schema, LabelledSchema):
        return _labelled(schema, data, memory)
    if isinstance(schema, SeriesSchema) and hasattr(data, "columns"):
        return _series(schema, data, memory, measured)
    wanted = {
        "text": "text or bytes",
        "tokens": "text",
        "series": "a frame of one series, in order of time",
    }
    raise DataError(
        f"a model of {schema.kind} reads {wanted.get(schema.kind, 'Inputs(reals=...)')}, "
        f"got {type(data).__name__}"
    )


def slice_of(count: int, first: int = 0) -> Tensor:
    """Positions from `first` up to `count`."""
    return torch.arange(first, count)


def _one_row(tokens: Tensor | None, reals: Tensor | None) -> Inputs:
    return Inputs(*(None if x is None else x[None] for x in (tokens, reals)))


def _as_it_is(outputs: Any) -> Any:
    return outputs


def _text(schema: TextSchema | TokenSchema, data: str | bytes, *, begun: bool) -> Piece:
    if isinstance(schema, TokenSchema):
        text = data if isinstance(data, str) else data.decode()
        row = torch.tensor(schema.encode(text) if begun else schema.begin(text), dtype=torch.long)
        return Piece(_one_row(row[:, None], None), None, _as_it_is)
    ids = torch.from_numpy(schema.encode(data).astype(np.int64))
    if begun:
        return Piece(_one_row(ids[:, None], None), None, _as_it_is)
    ids = torch.cat([torch.tensor([schema.boundary]), ids])
    # What is said after the boundary comes before any data.
    return Piece(_one_row(ids[:, None], None), None, lambda outputs: outputs[1:])


def _item_texts(schema: ItemTextSchema, data: Any, before: int) -> Piece:
    """`memory` counts the items read; what is said stands at the end of each item."""
    names = item_names(schema, data)
    packed = schema.prompt(names, before)
    tokens, _ = packed.inputs_at(slice_of(len(packed)))
    ends = packed.targets_at(slice_of(len(packed)))["item"] >= 0

    def finish(outputs: Any) -> Any:
        return type(outputs)(*(each[ends] for each in outputs))

    return Piece(_one_row(tokens, None), before + len(names), finish)


def item_names(schema: InteractionSchema | ItemTextSchema, data: Any) -> list[str]:
    """The items of a list or a frame of one user; one that the model does not know is an error."""
    return _names(schema, data)


def _events(schema: EventSchema, data: Any, stamps: Any, memory: Any, *, begun: bool) -> Piece:
    """`memory` is the time of the last event, if times are told."""
    if stamps is None and hasattr(data, "columns") and schema.time in data.columns:
        stamps = data[schema.time]
    names = _names(schema, data)
    if begun and (stamps is not None) != (memory is not None):
        raise DataError("stream: give times with every piece of a case, or with none")
    # A step before the first one, so that a later piece does not look like a beginning.
    lead = 1 if begun and names else 0
    attributes = {
        a: [str(x) for x in (*data[a][:lead], *data[a])]
        for a in schema.attributes
        if hasattr(data, "columns") and a in data.columns
    }
    if not names:
        empty = torch.zeros(0, len(schema.tokens), dtype=torch.long)
        return Piece(_one_row(empty, torch.zeros(0, schema.reals)), memory, _as_it_is)
    packed = schema.prompt([*names[:lead], *names], attributes=attributes)
    tokens, reals = packed.inputs_at(slice_of(len(packed), lead))
    if stamps is None:
        return Piece(_one_row(tokens, reals), None, _as_it_is)
    clock = _clock(schema, stamps, len(names))
    joined = np.concatenate([np.array([memory] * lead, np.int64), clock])
    if (np.diff(joined) < 0).any():
        at = int((np.diff(joined) < 0).argmax()) + 1 - lead
        raise DataError(f"times: event {at + 1} is before the one before it; want them in order")
    starts = np.arange(len(joined)) == 0
    channels = time_channels(joined, starts, schema, timed=True)[lead:]
    return Piece(_one_row(tokens, torch.from_numpy(channels)), int(clock[-1]), _as_it_is)


def _interactions(
    schema: InteractionSchema, data: Any, stamps: Any, memory: Any, *, begun: bool
) -> Piece:
    """`memory` is the time of the last item, if the model reads times and they are told."""
    names = _names(schema, data)
    clock = times_of(schema, data, stamps)
    if begun and schema.unit and (clock is not None) != (memory is not None):
        raise DataError("stream: give times with every piece of a history, or with none")
    if clock is None or not names:
        tokens, reals = schema.prompt(names).inputs_at(slice_of(len(names)))
        return Piece(_one_row(tokens, reals), memory, _as_it_is)
    # A step before the first one, so that a later piece does not look like a beginning.
    lead = 0 if memory is None else 1
    joined = np.concatenate([np.array([memory] * lead, np.int64), clock])
    if (np.diff(joined) < 0).any():
        at = int((np.diff(joined) < 0).argmax()) + 1 - lead
        raise DataError(f"times: item {at + 1} is before the one before it; want them in order")
    packed = schema.prompt([*names[:lead], *names], joined)
    tokens, reals = packed.inputs_at(slice_of(len(packed), lead))
    return Piece(_one_row(tokens, reals), int(joined[-1]), _as_it_is)


def times_of(schema: InteractionSchema, data: Any, stamps: Any = None) -> np.ndarray | None:
    """The times of a history: those told, else the column of a frame; None where there are none,
    or the model does not read them."""
    if stamps is None and hasattr(data, "columns") and schema.time in data.columns:
        stamps = data[schema.time]
    return None if stamps is None or not schema.unit else _clock(schema, stamps, len(data))


def _clock(schema: EventSchema | InteractionSchema, stamps: Any, count: int) -> np.ndarray:
    import pandas as pd  # noqa: PLC0415

    if len(stamps) != count:
        what = "events" if isinstance(schema, EventSchema) else "items"
        raise DataError(f"times: want one for each of {count} {what}, got {len(stamps)}")
    frame = pd.DataFrame({schema.time: list(stamps)})
    read = times(Table(frame, "times"), schema.time)
    if read.calendar != schema.calendar:
        wanted = "dates such as 2024-12-31 23:59:59" if schema.calendar else "plain numbers"
        raise DataError(f"times: want {wanted}, as in training, got {next(iter(stamps))!r}")
    return read.values


def _labelled(schema: LabelledSchema, data: Any, memory: Tensor | None) -> Piece:
    """Steps as they come; what is said becomes probabilities, or numbers in their own unit.

    `memory` holds the samples of a step that is not full; None as data is the end of the sequence.
    """
    tokens, left = None, None
    if schema.patch == 1:
        packed, _ = schema.encode([data])
        tokens, reals = packed.inputs_at(slice_of(len(packed)))
    elif data is None and memory is not None:
        reals = fold(memory, torch.tensor([len(memory)]), schema.patch)
    else:
        samples = schema.samples(data)
        samples = samples if memory is None else torch.cat([memory, samples])
        steps = len(samples) // schema.patch
        reals = samples[: steps * schema.patch].reshape(steps, schema.reals)
        left = samples[steps * schema.patch :]

    def finish(outputs: Tensor) -> Tensor:
        if schema.answer == "number":
            return outputs[:, 0].double() * schema.spread + schema.middle
        if schema.answer == "text":
            return outputs.double().log_softmax(-1)
        return outputs.double().softmax(-1)

    return Piece(_one_row(tokens, reals), left, finish)


def _names(schema: EventSchema | InteractionSchema | ItemTextSchema, data: Any) -> list[str]:
    """Activities or items; what was never seen is an error that names it."""
    events = isinstance(schema, EventSchema)
    what = "activity" if events else "item"
    known = set(schema.activities if events else schema.items)
    if hasattr(data, "columns"):
        data = _column_of_one(schema, data)
    if isinstance(data, str | bytes):
        raise DataError(f"want a list, one {what} a step, got a single string: write [{data!r}]")
    found = [_word(step) for step in data]
    for step in found:
        if step not in known:
            near = did_you_mean(step, known)
            if isinstance(schema, ItemTextSchema):
                near += " Add further ones with --items, or with_items."
                where = "in training nor in the table of items"
            else:
                where = "in training"
            raise DataError(f"{what} {step!r} was never seen {where} ({len(known):,} were).{near}")
    return found


def _word(step: Any) -> str:
    """A number that became 31.0 in a frame is still item 31."""
    whole = isinstance(step, float | np.floating) and float(step).is_integer()
    return str(int(step)) if whole else str(step).strip()


def _column_of_one(
    schema: EventSchema | InteractionSchema | ItemTextSchema, frame: "pd.DataFrame"
) -> Sequence[Any]:
    events = isinstance(schema, EventSchema)
    own, who = (schema.activity, schema.case) if events else (schema.item, schema.user)
    several = who in frame.columns and frame[who].nunique() > 1
    if several:
        raise DataError(f'column "{who}" holds several: ask about all of them with predict_table')
    return list(Table(frame, HANDED).column(own, "activity" if events else "item"))


def _series(
    schema: SeriesSchema, frame: "pd.DataFrame", memory: SeriesMemory | None, measured: str
) -> Piece:
    name = _series_name(schema, frame)
    if memory is not None:
        if len(frame) and memory.name and name != memory.name:
            raise DataError(f"stream: this is series {memory.name!r}, got {name!r}")
        name = memory.name or name
        frame = _joined(schema, memory, frame)
    table = Table(frame.reset_index(drop=True), HANDED)
    clock = _row_stamps(schema, table)
    if not len(frame) or np.isnan(numbers(table, schema.target[0], "target")).all():
        until = -(1 << 62) if memory is None else memory.until
        kept = SeriesMemory(table.frame, name, until)
        return Piece(Inputs(reals=torch.zeros(1, 0, schema.reals)), kept, lambda outputs: outputs)
    packed = schema.encode(table)
    stamps = packed.stamps_at(slice_of(len(packed)))
    at = slice_of(len(packed)) if memory is None else (stamps > memory.until).nonzero()[:, 0]
    last = int(stamps[-1])
    # Two seasons back is as far as any input looks; rows after the last value wait for one.
    longest = max((schema.season, *packed.panel.lags))
    far = int(stamps[max(0, len(packed) - 2 * longest - 2)])
    rows = table.frame[clock >= far].reset_index(drop=True)
    if schema.time is None:
        last -= int((clock < far).sum())
    base, scale = packed.origin_at(at, measured)

    def finish(outputs: Tensor) -> Tensor:
        return schema.decode(outputs.double(), base, scale)

    inputs = _one_row(None, packed.inputs_at(at)[1])
    return Piece(inputs, SeriesMemory(rows, name, last), finish)


def _series_name(schema: SeriesSchema, frame: "pd.DataFrame") -> str:
    table = Table(frame, HANDED)
    ids = [""] if schema.id is None else list(labels(table, schema.id, "series").unique())
    if len(schema.target) > 1 or len(ids) > 1:
        raise DataError("stream: want one series at a time; ask about several with forecast")
    if not ids:
        return ""
    name = str(ids[0]) or schema.target[0]
    if name not in schema.names:
        near = did_you_mean(name, schema.names)
        raise DataError(
            f"stream: series {name!r} was not trained on, so its scale is not known.{near} "
            "forecast measures it by its whole history"
        )
    return name


def _joined(schema: SeriesSchema, memory: SeriesMemory, frame: "pd.DataFrame") -> "pd.DataFrame":
    """The rows remembered, then the new ones; these replace rows that still wait for a value."""
    import pandas as pd  # noqa: PLC0415

    if schema.time is None or not len(frame):
        return pd.concat([memory.rows, frame], ignore_index=True)
    before = _row_stamps(schema, Table(memory.rows, HANDED))
    after = _row_stamps(schema, Table(frame.reset_index(drop=True), HANDED))
    if (after <= memory.until).any():
        row = int((after <= memory.until).argmax())
        raise DataError(
            f'{HANDED}: row {row + 1:,}: time "{frame[schema.time].iloc[row]}" was read before; '
            "want the rows that come after"
        )
    kept = memory.rows[~np.isin(before, after)]
    return pd.concat([kept, frame], ignore_index=True)


def _row_stamps(schema: SeriesSchema, table: Table) -> np.ndarray:
    if schema.time is None or not len(table):
        return np.arange(len(table))
    return times(table, schema.time).values
