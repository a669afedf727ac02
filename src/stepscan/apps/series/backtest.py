"""Rolling-origin backtests: forecasts from several cutoffs, as they would have been made then.

    cutoff_w = end - horizon - (windows - 1 - w) step        w = 0 .. windows - 1

The same dates for all series on a calendar, counted from each series' own end otherwise. Without
`refit` the model only reads: what lies before a cutoff becomes its state, its weights stay. With it
a model of the same config is trained with the run's own budget on what lies before the cutoff; the
scales of its inputs stay those of the run. The simple methods forecast from the same cutoffs; what
they have to learn (DLinear, and the errors their bands are made of) lies before the first one, or
before the last refit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan.apps import runs
from stepscan.apps.baselines import series as simple
from stepscan.apps.baselines.ets import ets_quantiles, installed, spread_evenly
from stepscan.apps.candidate import Candidate
from stepscan.apps.domain import with_options
from stepscan.apps.series.domain import LEVELS, Series, forecast
from stepscan.apps.series.frames import band_edges, moments
from stepscan.apps.series.scores import (
    DEFINITIONS,
    leaderboard,
    load_libraries,
    quantile_column,
    score_window,
)
from stepscan.data.base import DataError, Dataset
from stepscan.data.panel import Panel, SeriesPacked, cut_parts
from stepscan.data.series import SeriesSchema
from stepscan.models import SequenceModel
from stepscan.train.config import TrainConfig

if TYPE_CHECKING:
    import pandas as pd

ETS_FITS = 200
"""How often exponential smoothing is estimated at most, over all series and windows."""


class Backtest(NamedTuple):
    """What a backtest found."""

    frame: "pd.DataFrame"
    """unique_id, ds, cutoff, y, then per model a column with its median and the edges of its bands,
    such as `gla-lo-80` and `gla-hi-80`: the shape of utilsforecast."""
    scores: "pd.DataFrame"
    """One row per horizon and model, one column per metric; definitions in `scores.DEFINITIONS`."""
    by_series: "pd.DataFrame"
    """unique_id, cutoff, horizon, metric, and a column per model."""
    notes: tuple[str, ...]
    """What was left out and why, in sentences."""

    def definitions(self) -> dict[str, str]:
        """Exactly what each metric is."""
        return {m: words for m, words in DEFINITIONS.items() if m in self.scores.columns}


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The cutoffs, as places in a panel."""

    place: Int[np.ndarray, "W S"]
    """The last step known in each window of each series; -1 where the series has no such window."""
    stop: Int[np.ndarray, " S"]
    """One past the last value of each series."""

    @property
    def first(self) -> Int[np.ndarray, " S"]:
        """One past the first cutoff of each series; its stop where it has none."""
        never = np.iinfo(np.int64).max
        place = np.where(self.place >= 0, self.place, never).min(0)
        return np.where(place < never, place + 1, self.stop)


def windows_of(
    panel: Panel, schema: SeriesSchema, windows: int, step: int | None
) -> tuple[Windows, list[str]]:
    """The cutoffs of a panel, and notes on series that cannot take part in some.

    A series takes part where a season and two values and more lie before the cutoff, and a value
    after it.

    Raises:
        DataError: no series has them all, or the numbers make no sense.
    """
    horizon = schema.horizon
    step = horizon if step is None else step
    if windows < 1 or step < 1:
        raise DataError(f"backtest: want windows and step of 1 or more, got {windows} and {step}")
    begin = panel.begin.numpy()
    stop = panel.last_seen[panel.end - 1].numpy() + 1
    end = stop
    if schema.calendar and (schema.step or schema.months):
        first = schema.frequency.index(panel.stamps[panel.begin].numpy())
        end = begin + (first + stop - begin).max() - first
    back = horizon + step * np.arange(windows)[::-1]
    last = end - 1 - back[:, None]
    shortest = max(schema.season + 2, 3)
    fits = (last - begin + 1 >= shortest) & (last + 1 < stop)
    if not fits[-1].any():
        longest = int((stop - begin).max())
        raise DataError(
            f"backtest: the longest series has {longest} {schema.frequency}; a window wants "
            f"{shortest} before its cutoff and {horizon} after it"
        )
    if not fits[0].any():
        most = int(fits.any(1).sum())
        raise DataError(
            f"backtest: {windows} windows {step} {schema.frequency} apart reach back before the "
            f"data begins; want {most} windows or fewer, or a smaller step"
        )
    short = int((~fits).any(0).sum())
    notes = [f"{short:,} series lack history or values for some windows"] if short else []
    return Windows(place=np.where(fits, last, -1), stop=stop), notes


@dataclass(kw_only=True)
class Rolling:
    """A panel with its windows, and the models that forecast from them."""

    panel: Panel
    names: Sequence[str]
    schema: SeriesSchema
    windows: Windows
    valid: int
    """Steps before a cutoff that methods choose by, and measure their errors on."""

    def packed(self, window: int) -> tuple[SeriesPacked, Int[Tensor, " M"]]:
        """The steps up to the cutoffs of a window after some context, and the cutoffs in them."""
        place = self.windows.place[window]
        there = place >= 0
        begin = self.panel.begin.numpy()
        first = np.where(there, np.maximum(begin, place + 1 - self.schema.context), begin)
        last = np.where(there, place + 1, begin)
        packed = SeriesPacked(
            self.panel, self.names, first=first, last=last, low=last, high=self.windows.stop
        )
        return packed, packed.ends()

    def before(self, window: int) -> Series:
        """What lies before the cutoffs of a window, as data to learn from: train and valid."""
        place = self.windows.place[window]
        begin = self.panel.begin.numpy()
        stop = np.where(place >= 0, place + 1, begin)
        valid = np.maximum(begin, stop - self.valid)
        parts = cut_parts(self.panel, self.names, (valid, stop, stop), self.schema.context)
        return Series(Dataset(name="before a cutoff", schema=self.schema, parts=parts, said=()))


def refitted(
    network: SequenceModel, train: TrainConfig, series: Series
) -> tuple[SequenceModel, int]:
    """A fresh model of the same config trained on this data, and its reach."""
    series.recipe = with_options(series.recipe, length=train.length)
    candidate = Candidate(series, network.config, train)
    candidate.trainer.advance()
    return candidate.finish(), series.reach


def run_config(about: Any) -> TrainConfig:
    """How the run was trained, from its folder.

    Raises:
        ValueError: the folder is gone.
    """
    plan = runs.read_json(Path(str(about.get("folder", ""))) / "run.json")
    return TrainConfig(**runs.tuples(plan["train"]))


def backtest(
    network: SequenceModel,
    rolling: Rolling,
    *,
    name: str,
    reach: int,
    train: TrainConfig | None,
    every: int,
    levels: Sequence[float],
    horizons: Sequence[int],
    say: Callable[[str], None],
    beside: bool = True,
) -> Backtest:
    """See `SeriesModel.backtest`; with `train`, refitted before every `every`-th window, and the
    simple methods only if they are wanted `beside`.
    """
    load_libraries()
    import pandas as pd  # noqa: PLC0415

    schema, count = rolling.schema, len(rolling.windows.place)
    notes: list[str] = []
    methods: dict[str, simple.Method] = {}
    pieces, details = [], []
    ets = max(1, ETS_FITS // count) if beside and installed() else 0
    if beside and not ets:
        notes.append("ETS is left out: it needs pip install 'stepscan[timeseries]'")
    for window in range(count):
        packed, at = rolling.packed(window)
        if window % every == 0 if train is not None else window == 0:
            series = rolling.before(window)
            if train is not None:
                say(f"window {window + 1} of {count}: training on what lies before it")
                network, reach = refitted(network, train, series)
            parts = series.packed("train"), series.packed("valid")
            methods = dict(simple.simple_methods(*parts, LEVELS)) if beside else {}
        said = {name: forecast(network, schema, packed, at, reach=reach)}
        said |= {who: method(packed, at) for who, method in methods.items()}
        if ets:
            said["ETS"] = torch.full_like(said[name], torch.nan)
            some = spread_evenly(packed, at, ets)
            row = torch.searchsorted(at, some)
            said["ETS"][row] = ets_quantiles(packed, some, LEVELS)
            if window == 0 and len(some) < len(at):
                notes.append(
                    f"ETS is estimated for {len(some):,} of {len(at):,} series, its row is of those"
                )
        known = packed.panel
        frame = _rows(known, schema, packed, at, said, rolling)
        frame = frame[frame["y"].notna()].assign(window=window)
        history = _history(known, schema, packed, at, rolling.names)
        for h in horizons:
            part = frame[frame["h"] <= h].reset_index(drop=True)
            scored = score_window(part, history, list(said), LEVELS, schema.season)
            cutoffs = part.groupby("unique_id")["cutoff"].first()
            details.append(
                scored.assign(horizon=h, cutoff=cutoffs.reindex(scored["unique_id"]).to_numpy())
            )
        pieces.append(frame)
        say(f"window {window + 1} of {count}: {frame['cutoff'].max()}, {len(at):,} series")
    who = list(said)
    every_row = pd.concat(pieces, ignore_index=True)
    by_series = pd.concat(details, ignore_index=True)
    scores = leaderboard(by_series, who)
    if any("ETS is estimated" in note for note in notes):
        notes.append(_on_the_same(by_series, name))
    notes += _without_scale(by_series, name)
    keys = ["unique_id", "cutoff", "horizon", "metric"]
    return Backtest(
        _banded(every_row, who, levels),
        scores,
        by_series[[*keys, *who]],
        tuple(notes),
    )


def _rows(
    panel: Panel,
    schema: SeriesSchema,
    packed: SeriesPacked,
    at: Int[Tensor, " M"],
    said: dict[str, Float[Tensor, "M H Q"]],
    rolling: Rolling,
) -> "pd.DataFrame":
    """One row per cutoff and step ahead that is in the panel, with every quantile."""
    import pandas as pd  # noqa: PLC0415

    horizon = schema.horizon
    place = packed.steps[at][:, None] + torch.arange(1, horizon + 1)
    series = packed.series_at(at)
    inside = place < torch.from_numpy(rolling.windows.stop)[series][:, None]
    place = place.clamp(max=len(panel.y) - 1)
    ids = np.array(rolling.names, dtype=object)[series.numpy()]
    columns: dict[str, Any] = {
        "unique_id": np.repeat(ids, horizon),
        "ds": moments(panel.stamps[place].flatten().numpy(), schema),
        "cutoff": np.repeat(moments(panel.stamps[packed.steps[at]].numpy(), schema), horizon),
        "y": panel.y[place].masked_fill(~inside, torch.nan).flatten().numpy(),
        "h": np.tile(np.arange(1, horizon + 1), len(at)),
    }
    for who, table in said.items():
        columns[who] = table[..., LEVELS.index(0.5)].flatten().double().numpy()
        for i, level in enumerate(LEVELS):
            columns[quantile_column(who, level)] = table[..., i].flatten().double().numpy()
    return pd.DataFrame(columns)


def _history(
    panel: Panel,
    schema: SeriesSchema,
    packed: SeriesPacked,
    at: Int[Tensor, " M"],
    names: Sequence[str],
) -> "pd.DataFrame":
    """unique_id, ds, y of every step up to the cutoffs: the in-sample part of the window."""
    import pandas as pd  # noqa: PLC0415

    last = torch.full((len(names),), -1)
    last[packed.series_at(at)] = packed.steps[at]
    place = (torch.arange(len(panel.y)) <= last[panel.series]).nonzero()[:, 0]
    ids = np.array(names, dtype=object)[panel.series[place].numpy()]
    stamps = moments(panel.stamps[place].numpy(), schema)
    return pd.DataFrame({"unique_id": ids, "ds": stamps, "y": panel.y[place].numpy()})


def _banded(
    frame: "pd.DataFrame", models: Sequence[str], levels: Sequence[float]
) -> "pd.DataFrame":
    """The frame as people know it: medians, and the edges of the bands asked for."""
    columns: dict[str, Any] = {c: frame[c] for c in ("unique_id", "ds", "cutoff", "y")}
    for m in models:
        learned = frame[[quantile_column(m, level) for level in LEVELS]].to_numpy(copy=True)
        columns[m] = frame[m]
        edges = band_edges(torch.from_numpy(learned), levels, LEVELS)
        for label, values in edges.items():
            columns[f"{m}-{label}"] = values.numpy()
    return type(frame)(columns)


def _on_the_same(by_series: "pd.DataFrame", name: str) -> str:
    """The model's figures where ETS has some, so that the two can be compared."""
    rows = by_series[(by_series["metric"] == "MASE") & by_series["ETS"].notna()]
    rows = rows[rows["horizon"] == rows["horizon"].max()]
    ours, theirs = (rows.groupby("unique_id")[who].mean().mean() for who in (name, "ETS"))
    return f"on the series that ETS was estimated for: MASE {name} {ours:.3f}, ETS {theirs:.3f}"


def _without_scale(by_series: "pd.DataFrame", name: str) -> list[str]:
    rows = by_series[by_series["metric"] == "MASE"]
    constant = rows[rows[name].isna()]["unique_id"].nunique()
    if not constant:
        return []
    return [f"{constant:,} series never change before a cutoff: without MASE, RMSSE and CRPS there"]


def check_levels(levels: Sequence[float]) -> None:
    """Before anything is computed: bands must lie within the quantiles learned."""
    band_edges(torch.zeros(len(LEVELS)), levels, LEVELS)


def check_unseen(
    rolling: Rolling, until: Int[np.ndarray, " S"] | int | None, learned: Sequence[str]
) -> None:
    """Windows must not ask for what the model was trained on or chosen by.

    Raises:
        DataError: it says how many windows do not.
    """
    if until is None:
        return
    place = rolling.windows.place
    known = np.array([n in set(learned) for n in rolling.names])
    if isinstance(until, int):
        stamps = rolling.panel.stamps.numpy()
        late = (place < 0) | (stamps[np.minimum(place + 1, len(stamps) - 1)] > until)
    else:
        late = (place < 0) | (place + 1 >= until)
    fair = (late | ~known).all(1)
    if not fair.all():
        fewer = f"take {int(fair.sum())} windows or fewer, a smaller step"
        raise DataError(
            f"backtest: {int((~fair).sum())} of {len(place)} windows ask for values that the model "
            f"was trained on or chosen by; {fewer if fair.any() else 'give rows that came since'}, "
            "or refit, which trains on what lies before each cutoff"
        )
