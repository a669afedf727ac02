"""A model that reads along: the state of every series is kept, new rows cost only their own steps.

The weights do not change. After `update` the quantiles are those that `forecast` gives for the
whole history, up to rounding, since a state stands for all that was read (the split law). Three
things differ by their nature: a covariate known ahead, and the time of a step where times are
irregular, counts if it is there when the step before it is read; a series that the model was not
trained on is measured at its first update and keeps these scales; attention without a window keeps
its newest `Domain.reach` steps wherever a piece ends, and so looks back over more or fewer than in
one long reading.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan import state as states
from stepscan.data.base import DataError
from stepscan.data.grid import Grid, Rows, measure
from stepscan.data.joining import joined, kept
from stepscan.data.panel import Panel
from stepscan.data.series import SeriesSchema
from stepscan.models import Inputs, SequenceModel
from stepscan.train.carry import newest_slots

ROWS = 32  # series read side by side


@dataclass(kw_only=True)
class Live:
    """Where every series stands."""

    network: SequenceModel
    schema: SeriesSchema
    reach: int
    rows: Rows | None = None
    """Of each series the rows that inputs still look back at, and those that wait for a value."""
    layers: Any = None
    """The state, one row per series."""
    read: Int[Tensor, " S"]
    """How many steps of each series were read."""
    stamps: Int[Tensor, " S"]
    """The time of the last of them."""
    quantiles: Float[Tensor, "S H Q"]
    """What was said after it, in real units."""

    @classmethod
    def begin(cls, network: SequenceModel, schema: SeriesSchema, reach: int) -> "Live":
        """Before any row."""
        none = torch.zeros(0, dtype=torch.int64)
        empty = torch.zeros(0, schema.horizon, 1, dtype=torch.float64)
        return cls(
            network=network,
            schema=schema,
            reach=reach,
            read=none,
            stamps=none,
            quantiles=empty,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the series."""
        return () if self.rows is None else tuple(self.rows.names)

    def update(self, new: Rows, source: str) -> int:
        """Read new rows; returns the number of steps read. On an error nothing has changed."""
        until = dict(zip(self.names, self.stamps.tolist(), strict=True))
        rows = new if self.rows is None else joined(self.rows, new, until, self.schema, source)
        grid = Grid(rows, self.schema.frequency)
        if not len(grid.names):
            raise DataError(f'{source}: column "{", ".join(self.schema.target)}" holds no values')
        if grid.names != rows.names:  # a series without any value yet: nothing to remember it by
            rows = _without_empty(rows, grid.names)
            grid = Grid(rows, self.schema.frequency)
        schema = self._with_new(grid)
        panel = schema.panel(grid, grid.end)
        old = len(self.names)
        last = torch.from_numpy(grid.last_value)
        first = panel.begin.clone()
        for s in range(old):
            own = panel.stamps[panel.begin[s] : panel.end[s]]
            first[s] += int((own <= self.stamps[s]).sum())
        counts = (last + 1 - first).clamp(min=0)
        layers, said, order = [], [], []
        for group in _groups(counts, old):
            state = states.select(self.layers, group) if int(group[0]) < old else None
            begun = self.read[group] if state is not None else torch.zeros_like(group)
            outputs, state = self._go_on(panel, first[group], counts[group], begun, state)
            layers.append(state)
            said.append(self._decoded(panel, group, last[group], outputs, schema))
            order.append(group)
        still = (counts[:old] == 0).nonzero()[:, 0]
        if len(still):
            layers.append(states.select(self.layers, still))
            said.append(self.quantiles[still])
            order.append(still)
        back = torch.cat(order).argsort()
        before = torch.cat([self.read, torch.zeros(len(counts) - old, dtype=torch.int64)])
        stamps = torch.where(counts > 0, panel.stamps[last], _longer(self.stamps, len(counts)))
        self.layers = states.select(states.join(layers), back)
        self.quantiles = torch.cat(said)[back]
        self.read, self.stamps, self.schema = before + counts, stamps, schema
        self.rows = _looked_at(rows, grid, schema)
        return int(counts.sum())

    def _with_new(self, grid: Grid) -> SeriesSchema:
        """The schema with the series that come for the first time, measured by what they bring."""
        known = set(self.schema.names)
        if all(name in known for name in grid.names):
            return self.schema
        here = measure(grid, grid.end, self.schema.season, self.schema.horizon)
        return self.schema.known(grid, here)

    @torch.no_grad()
    def _go_on(
        self,
        panel: Panel,
        first: Int[Tensor, " G"],
        counts: Int[Tensor, " G"],
        begun: Int[Tensor, " G"],
        state: Any,
    ) -> tuple[Tensor, Any]:
        """Read each series from `first`, `counts` steps, all ending at the same time.

        Shorter ones wait at the left, where there is nothing to read yet, and a reset ends it; this
        is only so for series that begin, the others of a group have as many steps. Pieces end where
        they would had the longest been read alone from its beginning.
        """
        longest = int(counts.max())
        offset = torch.arange(longest) - (longest - counts[:, None])
        place, empty = first[:, None] + offset.clamp(min=0), offset < 0
        outputs, at = None, 0
        while at < longest:
            piece = min(self.reach - int(begun[0] + at) % self.reach, longest - at)
            part = slice(at, at + piece)
            reals = panel.inputs(place[:, part]).masked_fill(empty[:, part, None], 0)
            resets = (empty | ((offset == 0) & (begun == 0)[:, None]))[:, part]
            outputs, state = self.network(Inputs(reals=reals), state, resets)
            state = newest_slots(state, self.reach)
            at += piece
        assert outputs is not None
        return outputs[:, -1], state

    def _decoded(
        self,
        panel: Panel,
        group: Int[Tensor, " G"],
        last: Int[Tensor, " G"],
        outputs: Tensor,
        schema: SeriesSchema,
    ) -> Float[Tensor, "G H Q"]:
        measured = getattr(self.network.config.head, "measured", "base")
        if measured == "base":
            origin, unit = panel.base(last), panel.spread[group]
        else:
            origin = panel.center[group][:, None].expand(-1, schema.horizon)
            unit = panel.scale[group]
        return schema.decode(outputs.double(), origin, unit)


def _groups(counts: Int[Tensor, " S"], old: int) -> Iterator[Int[Tensor, " G"]]:
    """Series that are read side by side: known ones with as many steps; new ones of any length."""
    every = torch.arange(len(counts))
    for count in counts[:old].unique().tolist():
        if count:
            yield from every[:old][counts[:old] == count].split(ROWS)
    fresh = every[old:]
    yield from (g for g in fresh[counts[old:].argsort()].split(ROWS) if len(g))


def _looked_at(rows: Rows, grid: Grid, schema: SeriesSchema) -> Rows:
    """The rows that the next steps look back at: two seasons and the last value seen."""
    longest = max((schema.season, *schema.lags))
    far = np.maximum(grid.begin, grid.last_value - 2 * longest - 2)
    since = grid.stamps[far]
    return kept(rows, rows.stamps >= since[rows.series])


def _without_empty(rows: Rows, names: Sequence[str]) -> Rows:
    place = {name: i for i, name in enumerate(names)}
    number = np.array([place.get(name, -1) for name in rows.names])
    some = kept(rows, number[rows.series] >= 0)
    static = {
        column: [v for v, i in zip(values, number, strict=True) if i >= 0]
        for column, values in rows.static.items()
    }
    return replace(some, series=number[some.series], names=list(names), static=static)


def _longer(stamps: Int[Tensor, " S"], count: int) -> Int[Tensor, " N"]:
    return torch.cat([stamps, torch.zeros(count - len(stamps), dtype=torch.int64)])
