"""A model of series: it forecasts, looks back on how it would have done, and learns on."""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch

from stepscan.apps.model import Model
from stepscan.apps.series import anomalies, imputation
from stepscan.apps.series import backtest as rolling
from stepscan.apps.series.domain import forecast
from stepscan.apps.series.frames import Said, forecast_frame
from stepscan.apps.series.learning import Learned, learn
from stepscan.apps.series.live import Live
from stepscan.data.base import DataError, Dataset, Schema
from stepscan.data.frequency import held_out
from stepscan.data.grid import read_rows
from stepscan.data.joining import rows_of, stamp_of
from stepscan.data.panel import SeriesPacked
from stepscan.data.series import SeriesSchema
from stepscan.models import Forecast
from stepscan.models.heads import HeadConfig

if TYPE_CHECKING:
    import pandas as pd

    Data = str | os.PathLike[str] | pd.DataFrame | Dataset | None


class SeriesModel(Model):
    """What `fit` returns for time series."""

    asks: ClassVar[tuple[str, ...]] = (
        "forecast",
        "backtest",
        "anomalies",
        "impute",
        "update",
        "learn",
        "stream",
    )
    _live: Live | None = None

    @classmethod
    def answers(cls, head: HeadConfig, schema: Schema) -> bool:
        """Quantiles over its horizon."""
        assert isinstance(schema, SeriesSchema)
        return isinstance(head, Forecast) and head.horizon == schema.horizon

    @property
    def name(self) -> str:
        """What its column is called beside those of other methods."""
        return " ".join(dict.fromkeys(c.name for c in self.network.config.mixers))

    def forecast(
        self,
        data: "Data" = None,
        *,
        horizon: int | None = None,
        quantiles: Sequence[float] | None = None,
        levels: Sequence[float] | None = None,
        samples: int | None = None,
        seed: int = 0,
    ) -> "pd.DataFrame":
        """The next values of every series in a table, after its last value.

        Args:
            data: A frame or a file with the columns that the model was trained on; rows after the
                last value tell the covariates that are known ahead, and new series are welcome.
                Or an opened data set. None is all that `update` has read, without it the data that
                the model was trained on.
            horizon: Fewer steps than the model learned.
            quantiles: Those wanted, within the outermost ones learned; None is all of these.
            levels: Percent that central bands are to hold, such as (80, 90).
            samples: How many futures to draw, see `apps.series.calibration`.
            seed: Of the samples.

        Returns:
            One row per series and step: `series`, `time`, and a column per quantile such as `0.5`.
            With `levels` the shape of utilsforecast: `unique_id`, `ds`, the median under the
            model's name, and its bands such as `gla-lo-80`. With `samples` one row per series,
            step and sample: `series`, `time`, `sample`, `value`.
        """
        return forecast_frame(
            self._said(data),
            self.schema,
            name=self.name,
            horizon=horizon,
            quantiles=quantiles,
            levels=levels,
            samples=samples,
            seed=seed,
        )

    def update(self, rows: "Data", *, history: "Data" = None) -> int:
        """Read new rows without training: the next `forecast()` starts after them.

        Args:
            rows: A frame or a file with the rows that came since, of any of the series.
            history: Where to begin, at the first call or to begin anew: a frame or a file. None is
                the data that the model was trained on.

        Returns:
            How many steps were read. What is kept, and what differs from a forecast over the whole
            history, is told in `apps.series.live`.

        Raises:
            DataError: a row of a time that was read before, a missing column; nothing has changed.
        """
        schema: SeriesSchema = self.schema
        live = self._live if history is None else None
        if live is None:
            live = Live.begin(self.network, schema, self.reach)
            own = self._own(history)
            if own is None:
                table = self.table(history)  # type: ignore[arg-type]
                live.update(read_rows(table, schema.columns), table.name)
            else:
                live.update(rows_of(own.panel, own.names, schema), "history")
        table = self.table(rows)  # type: ignore[arg-type]
        count = live.update(read_rows(table, schema.columns), table.name)
        self._live = live
        return count

    def learn(
        self,
        rows: "str | os.PathLike[str] | pd.DataFrame",
        *,
        since: "str | pd.Timestamp | float | None" = None,
        method: str = "uoro",
        learning_rate: float = 1e-4,
        seed: int = 0,
    ) -> Learned:
        """Learn from new values as they are read, one step at a time, without going back in time.

        The weights change, here and not on disk: `save` keeps them.

        Args:
            rows: A frame or a file: what came before, as far as the model is to look back, then
                the new values.
            since: The time of the last row that was learned from before; None learns from all.
            method: uoro and dni for any model whose state does not grow; rtrl (exact) and snap1
                for small ones: see `train.online`.
            learning_rate: Of every step; large ones forget.
            seed: Of the random signs of uoro.

        Raises:
            DataError: no value has come that was foretold; the weights are as they were.
            ValueError: an unknown method, a state that grows (attention without a window).
        """
        packed = self.schema.encode(self.table(rows))
        stamp = -(1 << 62) if since is None else stamp_of(since, self.schema)
        self._live = None  # its state was read with other weights
        return learn(
            self.network, packed, stamp, method=method, learning_rate=learning_rate, seed=seed
        )

    def anomalies(
        self,
        data: "Data" = None,
        *,
        rate: float = 0.001,
        ahead: Sequence[int] | None = None,
        hide: bool = True,
    ) -> "pd.DataFrame":
        """How surprising every value is, given what came before it: see `apps.series.anomalies`.

        Args:
            data: As for `forecast`; of a table the steps after the first season and horizon are
                judged. None is the test part of the data that the model was trained on.
            rate: The share of sound values that may be called anomalies, measured on the
                validation part of the model's own data.
            ahead: By forecasts of how many steps ahead to judge; None: 1 and the whole horizon.
            hide: Look a second time without what was found.

        Returns:
            One row per series and step: `series`, `time`, `value`; a step ahead the median
            `expected` and the outermost quantiles `low` and `high`; `score` = -log10 of the
            probability of such a surprise (NaN where the value is missing); `anomaly`; and beside
            it the score of the residual of the seasonal naive forecast.
        """
        packed = self._own(data)
        if packed is None:
            packed = self.schema.encode(self.table(data))  # type: ignore[arg-type]
        return anomalies.find(
            self.network,
            self.schema,
            packed,
            self._sound(),
            rate=rate,
            leads=ahead,
            hide=hide,
            reach=self.reach,
        )

    def impute(self, data: "str | os.PathLike[str] | pd.DataFrame") -> "pd.DataFrame":
        """The series of a table with their gaps filled: see `apps.series.imputation`.

        Forecasts from before, forecasts back from after, and the line between are averaged by the
        errors they make in runs of known values. What lies after the last value is not filled:
        that is a forecast.

        Args:
            data: A frame or a file with the columns that the model was trained on.

        Returns:
            One row per series and step of the grid: `series`, `time`, `value` (where it was missing
            the median), `missing`, and the outermost quantiles `low` and `high`, which are the
            value where that is known.
        """
        packed = self.schema.encode(self.table(data))
        seen = self.about.get("seen_until")
        return imputation.fill_frame(
            self.network, self.schema, packed, reach=self.reach, seen_until=seen
        )

    def _sound(self) -> SeriesPacked | None:
        """The validation part of the model's own data; None, with a warning, where it is gone."""
        try:
            dataset = self.own_data()
        except (ValueError, OSError) as error:
            warnings.warn(
                f"the validation part of the training data cannot be read ({error}): the rate is "
                "that of the model's own bands",
                RuntimeWarning,
                stacklevel=3,
            )
            return None
        if dataset.schema != self.schema:
            return None
        packed = dataset.parts["valid"]
        assert isinstance(packed, SeriesPacked)
        return packed

    def backtest(
        self,
        data: "Data" = None,
        *,
        windows: int = 4,
        step: int | None = None,
        refit: bool | int = False,
        levels: Sequence[float] = (80, 90),
        horizons: Sequence[int] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> rolling.Backtest:
        """How the model would have done: forecasts from several cutoffs beside simple methods.

        Args:
            data: As for `forecast`.
            windows: How many cutoffs; the last one lies a horizon before the end of the data.
            step: Steps between cutoffs; None is the horizon.
            refit: Train anew on what lies before each cutoff, with the budget of the run; a number
                k trains before every k-th. Without it the weights stay and the model only reads.
            levels: Percent that the bands in the frame hold.
            horizons: Score the first so many steps, for each number; None scores all.
            say: Called with a line of progress per window.

        Returns:
            `frame`, `scores`, `by_series` and `notes`: see `Backtest`.

        Raises:
            DataError: the windows reach back before the data, or into what the model has seen.
        """
        rolling.load_libraries()
        rolling.check_levels(levels)
        schema = self.schema
        assert isinstance(schema, SeriesSchema)
        wanted = [schema.horizon] if horizons is None else [int(h) for h in horizons]
        if not wanted or not all(1 <= h <= schema.horizon for h in wanted):
            raise DataError(f"backtest: want horizons from 1 to {schema.horizon}, got {wanted}")
        own = self._own(data)
        if own is not None:
            panel, names, until = own.panel, own.names, own.asked_from
            if "learned" in self.about:  # online, from all of its rows
                until = panel.end.numpy()
            found, notes = rolling.windows_of(panel, schema, windows, step)
        else:
            grid = schema.grid(self.table(data))  # type: ignore[arg-type]
            names, until = tuple(grid.names), self.about.get("seen_until")
            whole = schema.panel(grid, grid.end)
            found, notes = rolling.windows_of(whole, schema, windows, step)
            # series not learned from are measured before their first cutoff
            panel = schema.panel(grid, found.first)
        longest = int((panel.end - panel.begin).max())
        valid = held_out(None, longest, schema.horizon, schema.frequency)
        work = rolling.Rolling(panel=panel, names=names, schema=schema, windows=found, valid=valid)
        if not refit:
            rolling.check_unseen(work, until, schema.names)
        tested = rolling.backtest(
            self.network,
            work,
            name=self.name,
            reach=self.reach,
            train=rolling.run_config(self.about) if refit else None,
            every=max(1, int(refit)),
            levels=levels,
            horizons=wanted,
            say=say or (lambda line: None),
        )
        return tested._replace(notes=(*notes, *tested.notes))

    def _own(self, data: "Data") -> SeriesPacked | None:
        """The test part of the model's own data, or of a data set read as that was."""
        if data is None:
            data = self.own_data()
        if not isinstance(data, Dataset):
            return None
        if data.schema != self.schema:
            raise DataError(
                f"forecast: {data.name} was read in another way than the model's data; give a "
                "file, or nothing to forecast the data it was trained on"
            )
        packed = data.parts["test"]
        assert isinstance(packed, SeriesPacked)
        return packed

    def _said(self, data: "Data") -> Said:
        if data is None and self._live is not None:
            return self._spoken(self._live.names, self._live.stamps, self._live.quantiles)
        packed = self._own(data)
        if packed is None:
            packed = self.schema.encode(self.table(data))  # type: ignore[arg-type]
        ends = packed.ends()
        quantiles = forecast(self.network, self.schema, packed, ends, reach=self.reach)
        names = tuple(packed.names[i] for i in packed.series_at(ends).tolist())
        said = self._spoken(names, packed.stamps_at(ends), quantiles)
        return said._replace(ahead=packed.stamps_ahead(ends)) if self.schema.gap else said

    def _spoken(
        self, names: tuple[str, ...], stamps: torch.Tensor, quantiles: torch.Tensor
    ) -> Said:
        head = self.network.config.head
        assert isinstance(head, Forecast)
        rho = getattr(self.network.head, "persistence", None)
        return Said(names, stamps, quantiles, head.quantiles, 0.0 if rho is None else float(rho))


MODEL = SeriesModel
