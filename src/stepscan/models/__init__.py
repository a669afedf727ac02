"""Whole models: inputs, pre-norm blocks around mixers, a head; and their folders on disk."""

from stepscan.models.config import ModelConfig
from stepscan.models.families import Config, build, read_config
from stepscan.models.folder import load_folder, save_folder
from stepscan.models.heads import (
    HEADS,
    Classify,
    Cloze,
    Ctc,
    EventOutput,
    Forecast,
    ItemScores,
    NextEvent,
    NextItem,
    NextToken,
    Regress,
)
from stepscan.models.inputs import Inputs
from stepscan.models.linear_series import LinearSeriesConfig
from stepscan.models.model import SequenceModel

__all__ = [
    "HEADS",
    "Classify",
    "Cloze",
    "Config",
    "Ctc",
    "EventOutput",
    "Forecast",
    "Inputs",
    "ItemScores",
    "LinearSeriesConfig",
    "ModelConfig",
    "NextEvent",
    "NextItem",
    "NextToken",
    "Regress",
    "SequenceModel",
    "build",
    "load_folder",
    "read_config",
    "save_folder",
]
