"""A model of series: it forecasts."""

import os
from typing import TYPE_CHECKING, ClassVar

import torch

from stepscan.apps.model import Model
from stepscan.apps.series.domain import forecast
from stepscan.data.base import DataError, Dataset, Schema
from stepscan.data.panel import SeriesPacked
from stepscan.data.series import SeriesSchema
from stepscan.models import Forecast
from stepscan.models.heads import HeadConfig

if TYPE_CHECKING:
    import pandas as pd


class SeriesModel(Model):
    """What `fit` returns for time series."""

    asks: ClassVar[tuple[str, ...]] = ("forecast", "stream")

    @classmethod
    def answers(cls, head: HeadConfig, schema: Schema) -> bool:
        """Quantiles over its horizon."""
        assert isinstance(schema, SeriesSchema)
        return isinstance(head, Forecast) and head.horizon == schema.horizon

    def forecast(
        self, data: "str | os.PathLike[str] | pd.DataFrame | Dataset | None" = None
    ) -> "pd.DataFrame":
        """Quantiles of the next values of every series in a table, after its last value.

        Args:
            data: A frame or a file with the columns that the model was trained on; rows after the
                last value tell the covariates that are known ahead, and new series are welcome.
                Or an opened data set. None is the data that the model was trained on.

        Returns:
            One row per series and step: `series`, `time`, and a column per quantile such as `0.5`.
        """
        import pandas as pd  # noqa: PLC0415

        schema = self.schema
        assert isinstance(schema, SeriesSchema)
        if data is None:
            data = self.own_data()
        if isinstance(data, Dataset):
            if data.schema != schema:
                raise DataError(
                    f"forecast: {data.name} was read in another way than the model's data; give a "
                    "file, or nothing to forecast the data it was trained on"
                )
            packed = data.parts["test"]
            assert isinstance(packed, SeriesPacked)
        else:
            packed = schema.encode(self.table(data))
        ends = packed.ends()
        quantiles = forecast(self.network, schema, packed, ends, reach=self.reach)
        rows = []
        levels = self.network.config.head.quantiles  # type: ignore[attr-defined]
        for end, table in zip(ends.tolist(), quantiles.tolist(), strict=True):
            name = packed.names[int(packed.series_at(torch.tensor(end)))]
            ahead = schema.times_ahead(int(packed.stamps_at(torch.tensor(end))))
            for time, values in zip(ahead, table, strict=True):
                said = {str(level): value for level, value in zip(levels, values, strict=True)}
                rows.append({"series": name, "time": time, **said})
        return pd.DataFrame(rows)


MODEL = SeriesModel
