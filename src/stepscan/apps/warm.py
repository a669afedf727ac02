"""Go on training: a model of series learns on from new data with the weights it has.

Its columns, grid of time, season, horizon and the scales of every series it knows are kept, since
its weights mean nothing without them; series it does not know are measured on the training part of
the new data and added. MASE is measured against the new history. Before the first step the model is
judged on the new validation part as it is, so that what training keeps is never worse there than
what it began with.
"""

import dataclasses
import os

import torch

from stepscan.apps.candidate import Candidate
from stepscan.apps.domain import Domain
from stepscan.apps.model import Model
from stepscan.data.base import DataOptions
from stepscan.data.series import SeriesSchema
from stepscan.models import SequenceModel
from stepscan.train.config import TrainConfig

RATE = 1 / 3
"""Of the recipe's learning rate, unless one is asked for: a model that has learned moves less."""
FREE = ("kind", "missing", "valid", "test")
"""What may be said about how to read the data; all else is as the model learned it."""


def begin(run: str | os.PathLike[str]) -> Model:
    """The model of a run to go on from.

    Raises:
        ValueError: it is of another kind than series, or there is none.
    """
    model = Model.load(run)
    if not isinstance(model.schema, SeriesSchema):
        raise ValueError(
            f"update: only models of series learn on from new data, {os.fspath(run)} is of "
            f"{model.kind}; fit a new one"
        )
    return model


def reading(model: Model, options: DataOptions | None) -> DataOptions:
    """How to read the new data: as the old.

    Raises:
        ValueError: a column or a horizon is asked for.
    """
    options = options or DataOptions()
    plain = DataOptions()
    for field in dataclasses.fields(DataOptions):
        if field.name not in FREE and getattr(options, field.name) != getattr(plain, field.name):
            raise ValueError(
                f"update: the model keeps what it learned about columns, season and horizon; leave "
                f"out {field.name}, or fit a new model"
            )
    schema: SeriesSchema = model.schema
    missing = tuple((model.about.get("options") or {}).get("missing", ()))
    return dataclasses.replace(
        options,
        kind="series",
        horizon=schema.horizon,
        season=schema.season,
        missing=options.missing or missing,
    )


def slower(
    train: TrainConfig, model: Model, *, length: int | None, rate: float | None
) -> TrainConfig:
    """Stretches as long as before and smaller steps, unless they are asked for."""
    return dataclasses.replace(
        train,
        length=2 * model.reach if length is None else length,
        learning_rate=train.learning_rate * (RATE if rate is None else 1),
    )


def inherit(candidate: Candidate, network: SequenceModel) -> None:
    """The weights of another model; what was measured of its bands is measured again at the end."""
    with torch.no_grad():
        candidate.model.load_state_dict(network.state_dict())
        stretch = getattr(candidate.model.head, "stretch", None)
        if stretch is not None:
            stretch.fill_(1.0)


def line(model: Model, domain: Domain) -> str:
    """What is kept, for people."""
    schema = domain.dataset.schema
    assert isinstance(schema, SeriesSchema)
    new = len(set(schema.names) - set(model.schema.names))
    added = f"; {new:,} new series are measured and added" if new else ""
    return (
        f"goes on     from {model.about.get('folder', 'a model')}: its weights, columns, season, "
        f"horizon and scales are kept{added}"
    )
