"""Checkpoints of the Hugging Face hub, from a folder on this disk: config.json and safetensors.

A format is one file here and one line in `FORMATS`: how its config becomes ours, and where each of
our tensors comes from (`Format`). Logits equal those of the transformers library. The folder is
untrusted input, as model folders are: nothing is executed, no pickle is read, all sizes are known
and agree before memory is asked for.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from stepscan.models.imports.base import CheckpointError, Format, Settings
from stepscan.models.imports.falcon_mamba import FALCON_MAMBA
from stepscan.models.imports.llama import LLAMA
from stepscan.models.imports.mamba import MAMBA
from stepscan.models.imports.mamba2 import MAMBA2
from stepscan.models.imports.olmo_hybrid import OLMO_HYBRID
from stepscan.models.imports.qwen3_5_text import QWEN3_5, QWEN3_5_TEXT
from stepscan.models.imports.qwen3_next import QWEN3_NEXT
from stepscan.models.imports.reader import Checkpoint, read
from stepscan.models.imports.recurrent_gemma import RECURRENT_GEMMA
from stepscan.models.imports.rwkv import RWKV
from stepscan.models.imports.xlstm import XLSTM

__all__ = ["FORMATS", "Checkpoint", "CheckpointError", "Format", "Settings", "read_checkpoint"]

FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "falcon_mamba": FALCON_MAMBA,
        "llama": LLAMA,
        "mamba": MAMBA,
        "mamba2": MAMBA2,
        "olmo_hybrid": OLMO_HYBRID,
        "qwen3_5": QWEN3_5,
        "qwen3_5_text": QWEN3_5_TEXT,
        "qwen3_next": QWEN3_NEXT,
        "recurrent_gemma": RECURRENT_GEMMA,
        "rwkv": RWKV,
        "xlstm": XLSTM,
    }
)
"""By the `model_type` of config.json."""


def read_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint:
    """The model of a folder with config.json and safetensors, whole or in shards.

    Raises:
        CheckpointError: something is missing, left over, of another size or kind; in one line.
    """
    return read(Path(folder), FORMATS)
