"""Whole models: inputs, pre-norm blocks around mixers, a head; and their folders on disk."""

from stepscan.models.config import ModelConfig
from stepscan.models.folder import load_folder, save_folder
from stepscan.models.heads import (
    HEADS,
    Classify,
    EventOutput,
    Forecast,
    NextEvent,
    NextToken,
    Regress,
)
from stepscan.models.inputs import Inputs
from stepscan.models.model import SequenceModel

__all__ = [
    "HEADS",
    "Classify",
    "EventOutput",
    "Forecast",
    "Inputs",
    "ModelConfig",
    "NextEvent",
    "NextToken",
    "Regress",
    "SequenceModel",
    "load_folder",
    "save_folder",
]
