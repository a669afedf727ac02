"""A model on disk: a folder of config.json and weights.safetensors (and small files beside them).

Written under another name and renamed, so that a folder is whole or not there. Read as untrusted
input: the config is data, its sizes are checked against the header of the weights before anything
is allocated, the weights against their digest, and nothing is ever executed.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from stepscan.models.families import build, read_config
from stepscan.models.model import SequenceModel

FORMAT, VERSION = "stepscan-model", 1
CONFIG, WEIGHTS = "config.json", "weights.safetensors"
LARGEST_CONFIG = 256 << 20  # bytes; vocabularies of user data live in it


class ModelCorruptError(ValueError):
    """A model folder that cannot be trusted; the message names the file and the reason."""


def save_folder(
    model: SequenceModel,
    folder: str | os.PathLike[str],
    *,
    extra: Mapping[str, Any] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Path:
    """Write the model, whole or not at all; an older folder of that name is replaced at the end.

    Args:
        model: What to save.
        folder: Where to; parents are made.
        extra: Plain data kept in config.json beside the model's own (schema, task, provenance).
        files: Small files to put beside it, by name.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = folder.with_name(f".stage-{folder.name}-{uuid.uuid4().hex[:8]}")
    stage.mkdir()
    try:
        for name, content in (files or {}).items():
            _write(stage / name, content)
        save_file(
            {k: v.detach().contiguous() for k, v in tensors_of(model).items()}, stage / WEIGHTS
        )
        _sync(stage / WEIGHTS)
        config = {
            "format": FORMAT,
            "version": VERSION,
            "model": model.config.to_dict(),
            "files": {path.name: _facts(path) for path in sorted(stage.iterdir())},
            "extra": dict(extra or {}),
        }
        _write(stage / CONFIG, json.dumps(config, indent=1, allow_nan=False).encode())
        _sync(stage)
        trash = folder.with_name(f".trash-{folder.name}-{uuid.uuid4().hex[:8]}")
        if folder.exists():
            folder.rename(trash)
        try:
            stage.rename(folder)
        except OSError:
            if trash.exists():
                trash.rename(folder)
            raise
        _sync(folder.parent)
        shutil.rmtree(trash, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(stage, ignore_errors=True)
        if isinstance(error, SafetensorError):  # how safetensors reports a failed write
            raise OSError(
                errno.EIO, f"could not be written ({error})", str(folder / WEIGHTS)
            ) from error
        raise
    return folder


def recover(folder: Path) -> Path:
    """Clear away what a killed `save_folder` left. Only for the one who alone writes there.

    If it died between its two renames, the older model comes back.
    """
    for trash in sorted(folder.parent.glob(f".trash-{folder.name}-*")):
        if not folder.exists():
            trash.rename(folder)
    for left in (".trash", ".stage"):
        for path in folder.parent.glob(f"{left}-{folder.name}-*"):
            shutil.rmtree(path, ignore_errors=True)
    return folder


def load_folder(folder: str | os.PathLike[str]) -> tuple[SequenceModel, dict[str, Any]]:
    """The model, in evaluation mode, and the `extra` it was saved with.

    Raises:
        ModelCorruptError: a file is missing, truncated, changed, of another format or version, or
            asks for something that does not exist here.
    """
    folder = Path(folder)
    data = _read_config(folder)
    for name, facts in data["files"].items():
        _verify(folder, name, facts)
    try:
        config = read_config(data["model"])
        with torch.device("meta"):  # sizes without memory
            expected = {k: tuple(v.shape) for k, v in tensors_of(build(config)).items()}
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ModelCorruptError(f"{folder / CONFIG}: {error}") from error
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as header:
            found = {k: tuple(header.get_slice(k).get_shape()) for k in header.keys()}
    except (SafetensorError, OSError) as error:
        raise ModelCorruptError(f"{folder / WEIGHTS}: {error}") from error
    if wrong := [k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k)]:
        k = min(wrong)
        raise ModelCorruptError(
            f"{folder / WEIGHTS}: {k}: the config wants {expected.get(k)}, "
            f"the file has {found.get(k)}"
        )
    model = build(config)
    weights = load_file(folder / WEIGHTS)
    if bad := [k for k, v in weights.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise ModelCorruptError(f"{folder / WEIGHTS}: {min(bad)} holds NaN or infinite values")
    _, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    return model.eval(), data["extra"]


def tensors_of(model: SequenceModel) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers; a tied one is kept once, under its first name."""
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {k: v for k, v in state.items() if first.setdefault(id(v), k) == k}


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise ModelCorruptError(f"{folder}: want a model folder with {CONFIG}, found none")
    if path.is_symlink() or path.stat().st_size > LARGEST_CONFIG:
        raise ModelCorruptError(f"{path}: a link, or larger than {LARGEST_CONFIG >> 20} MB")
    try:
        data = json.loads(path.read_bytes(), parse_constant=_reject)
    except (ValueError, RecursionError) as error:
        raise ModelCorruptError(f"{path}: not JSON ({error}); was it cut off?") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ModelCorruptError(f"{path}: want format {FORMAT!r}; this is another kind of file")
    if data.get("version") != VERSION:
        raise ModelCorruptError(
            f"{path}: version {data.get('version')!r}; this stepscan reads version {VERSION}"
        )
    wanted = {"model": dict, "files": dict, "extra": dict}
    if any(not isinstance(data.get(k), kind) for k, kind in wanted.items()):
        raise ModelCorruptError(f"{path}: want the parts {', '.join(wanted)}")
    if WEIGHTS not in data["files"]:
        raise ModelCorruptError(f"{path}: names no {WEIGHTS}")
    return data


def _verify(folder: Path, name: str, facts: Any) -> None:
    path = folder / name
    if Path(name).name != name or path.is_symlink() or not path.is_file():
        raise ModelCorruptError(f"{path}: want a plain file in the model folder, found none")
    if not isinstance(facts, dict) or path.stat().st_size != facts.get("bytes"):
        raise ModelCorruptError(
            f"{path}: {path.stat().st_size:,} bytes, not as {CONFIG} says; truncated?"
        )
    if _digest(path) != facts.get("sha256"):
        raise ModelCorruptError(f"{path}: its content is not what was saved (sha256 differs)")


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reject(constant: str) -> float:
    raise ValueError(f"{constant} is not a number here ({math.nan} is never written)")
