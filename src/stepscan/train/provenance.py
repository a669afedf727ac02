"""What a run was made of: it goes on with the same settings, model and data, or not at all."""

import dataclasses
import hashlib
import json
import platform
from importlib.metadata import version
from typing import Any

import torch

from stepscan.data.base import Packed
from stepscan.models.model import SequenceModel
from stepscan.train.checkpoint import Checkpoint
from stepscan.train.config import FREE, TrainConfig

PLACES = 4096  # of the data that are looked at: enough to notice that it is not the same


def describe(config: TrainConfig, model: SequenceModel, packed: Packed) -> dict[str, Any]:
    """Plain data, kept in every checkpoint."""
    return {
        "config": json.loads(json.dumps(dataclasses.asdict(config))),
        "model": _digest(repr(model.config).encode()),
        "data": _data(packed),
        "machine": {  # what decides the last bits of a float
            "stepscan": version("stepscan"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
        },
    }


def check_same(found: Checkpoint, now: dict[str, Any]) -> list[str]:
    """Raise `ValueError` if the run is another one; returns what may change its last bits."""
    for name, value in now["config"].items():
        then = found.meta["config"].get(name)
        if name not in FREE and value != then:
            raise ValueError(f"{found.path}: trained with {name}={then}, not {value}")
    if found.meta["model"] != now["model"]:
        raise ValueError(f"{found.path}: is of a model with another config")
    if found.meta["data"] != now["data"]:
        raise ValueError(f"{found.path}: was trained on other data; has the file changed?")
    before = found.meta["machine"]
    return [
        f"{name} was {before.get(name)}, is {value}: the run may differ in the last bits"
        for name, value in now["machine"].items()
        if before.get(name) != value
    ]


def _data(packed: Packed) -> str:
    at = torch.linspace(0, len(packed) - 1, PLACES, dtype=torch.float64).long()
    parts = [*packed.inputs_at(at), *packed.targets_at(at).values()]
    arrays = [packed.starts, *(part for part in parts if part is not None)]
    return _digest(*(array.cpu().contiguous().numpy().tobytes() for array in arrays))


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
