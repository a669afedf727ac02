"""Checkpoints that outlive kill -9, power loss, full disks and flipped bits. No pickle anywhere.

    root/step-000000000123/rank-00000-of-00001.safetensors    every tensor
                           manifest.json                      sizes, digests, plain data

Save: look for room; write and sync the tensors in `.stage-*`; write and sync the manifest, which
ends with a digest of itself; sync and rename the folder; sync its parent; retire the oldest by
another rename. So a folder called `step-*` is whole, at every instant. It is never written again.
Load: names, the set of files, sizes and digests must be what the manifest says; where they are
not, the next older checkpoint serves. The test kills a process at every one of these points.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = 1
MANIFEST, SHARD = "manifest.json", "rank-00000-of-00001.safetensors"
STEP = re.compile(r"step-(\d{12})")
LARGEST_MANIFEST = 64 << 20  # bytes
ROOM = 1 << 16  # bytes beside the tensors: the manifest, the header, folders


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the reason."""


class CheckpointCorruptError(CheckpointError):
    """Truncated, changed, or not ours."""


class CheckpointVersionError(CheckpointError):
    """Whole, but of a format that this version does not read."""


class Checkpoint(NamedTuple):
    """What `save` was given, and where it lies."""

    path: Path
    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def save(
    root: Path, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *, keep: int = 2
) -> Path:
    """Write one checkpoint, whole or not at all, and keep the newest `keep`.

    Raises:
        OSError: no room (found out before anything is written), or a write failed. The older
            checkpoints are as they were.
    """
    final = root / f"step-{step:012d}"
    if not root.is_dir():
        root.mkdir(parents=True)
        _sync(root.parent)
    if final.exists():
        raise FileExistsError(errno.EEXIST, "checkpoints are never overwritten", str(final))
    owned = {name: _owned(tensor) for name, tensor in tensors.items()}
    _check_room(root, sum(tensor.nbytes for tensor in owned.values()))
    stage = root / f".stage-{final.name}-{uuid.uuid4().hex[:8]}"
    stage.mkdir()
    try:
        save_file(owned, stage / SHARD)
        _sync(stage / SHARD)
        files = {SHARD: _facts(stage / SHARD)}
        _write_manifest(stage / MANIFEST, {"step": step, "meta": dict(meta), "files": files})
        _sync(stage)
        stage.rename(final)
    except BaseException as error:
        shutil.rmtree(stage, ignore_errors=True)
        if isinstance(error, SafetensorError):  # how safetensors reports a failed write
            raise OSError(
                errno.EIO, f"could not be written ({error})", str(stage / SHARD)
            ) from error
        raise
    _sync(root)
    for old in _present(root)[keep:]:
        _retire(old)
    return final


def load(path: Path) -> Checkpoint:
    """Read one checkpoint and verify every byte of it."""
    manifest = _read_manifest(path)
    expected = {MANIFEST, *manifest["files"]}
    found = {file.name for file in path.iterdir()}
    if found != expected or expected != {MANIFEST, SHARD}:
        wrong = sorted(found ^ expected) or sorted(found)
        raise CheckpointCorruptError(f"{path}: missing or foreign files: {', '.join(wrong)}")
    shard = path / SHARD
    if shard.is_symlink() or not shard.is_file() or _facts(shard) != manifest["files"][SHARD]:
        raise CheckpointCorruptError(f"{shard}: not what was written (size or sha256 differs)")
    try:
        tensors = load_file(shard)
    except SafetensorError as error:
        raise CheckpointCorruptError(f"{shard}: {error}") from error
    if path.name != f"step-{manifest['step']:012d}":
        raise CheckpointCorruptError(f"{path}: holds step {manifest['step']}; was it renamed?")
    return Checkpoint(path, manifest["step"], tensors, manifest["meta"])


def newest(root: Path) -> tuple[Checkpoint | None, list[CheckpointCorruptError]]:
    """The newest checkpoint that is whole, and what was wrong with newer ones; None if none exist.

    Raises:
        CheckpointCorruptError: there are checkpoints, and none of them is whole.
        CheckpointVersionError: the newest whole one is of another format; to fall back to an
            older one would silently lose work.
    """
    problems: list[CheckpointCorruptError] = []
    for path in _present(root):
        try:
            return load(path), problems
        except CheckpointCorruptError as problem:
            problems.append(problem)
        except OSError as error:
            problems.append(CheckpointCorruptError(f"{path}: {error}"))
    if problems:
        raise CheckpointCorruptError("; ".join(map(str, problems)))
    return None, []


def set_aside(root: Path, *, newer_than: int) -> list[Path]:
    """Rename corrupt checkpoints, so that their steps can be saved again and nothing is lost."""
    moved = []
    for path in _present(root):
        if int(path.name.removeprefix("step-")) > newer_than:
            moved.append(path.rename(root / f"corrupt-{path.name}-{uuid.uuid4().hex[:8]}"))
    return moved


def exist(root: Path) -> bool:
    """Whether there are any checkpoints, whole or not."""
    return bool(_present(root))


def clean(root: Path) -> None:
    """Delete what a killed process left half done. Only for the one who holds the run's lock."""
    if root.is_dir():
        for path in root.iterdir():
            if path.name.startswith((".stage-", ".trash-")):
                shutil.rmtree(path, ignore_errors=True)


def _present(root: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if STEP.fullmatch(p.name)), reverse=True)


def _retire(path: Path) -> None:
    trash = path.rename(path.with_name(f".trash-{path.name}-{uuid.uuid4().hex[:8]}"))
    shutil.rmtree(trash, ignore_errors=True)


def _owned(tensor: Tensor) -> Tensor:
    """A tensor with a storage of its own: safetensors writes no views."""
    tensor = tensor.detach()
    alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if alone else tensor.clone().contiguous()


def _check_room(root: Path, need: int) -> None:
    free, need = shutil.disk_usage(root).free, int(need * 1.05) + ROOM
    if free < need:
        raise OSError(
            errno.ENOSPC, f"a checkpoint needs {need:,} bytes, {free:,} are free", str(root)
        )


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _canonical(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()


def _write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    content = {"format": FORMAT, **content}
    digest = hashlib.sha256(_canonical(content)).hexdigest()
    with path.open("wb") as file:
        file.write(_canonical({**content, "sha256": digest}))
        file.flush()
        os.fsync(file.fileno())


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if folder.is_symlink() or path.is_symlink() or not path.is_file():
        raise CheckpointCorruptError(f"{path}: missing")
    if path.stat().st_size > LARGEST_MANIFEST:
        raise CheckpointCorruptError(f"{path}: larger than {LARGEST_MANIFEST >> 20} MB")
    written = path.read_bytes()
    try:
        content = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise CheckpointCorruptError(f"{path}: not JSON ({error}); was it cut off?") from None
    digest = content.pop("sha256", None) if isinstance(content, dict) else None
    # Every format keeps this digest, so that damage and another version are told apart.
    if digest != hashlib.sha256(_canonical(content)).hexdigest():
        raise CheckpointCorruptError(f"{path}: not what was written (its digest differs)")
    if content["format"] != FORMAT:
        raise CheckpointVersionError(
            f"{path}: format {content['format']}; this stepscan reads format {FORMAT}: "
            f"resume it with the version that wrote it"
        )
    return content


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
