"""From a checkpoint folder to a model: names and sizes first, then one tensor after another."""

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stepscan.models.folder import tensors_of
from stepscan.models.imports.base import CheckpointError, Format, Settings, Source
from stepscan.models.model import SequenceModel
from stepscan.names import lookup

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
TYPES = {"F64", "F32", "F16", "BF16"}


class Checkpoint(NamedTuple):
    """What was read."""

    model: SequenceModel
    """In evaluation mode, float32."""
    settings: Settings
    """The checkpoint's own config: which tokens begin and end a text, for example."""


def read(folder: Path, formats: Mapping[str, Format]) -> Checkpoint:
    """See `read_checkpoint`."""
    settings = Settings.read(folder)
    kind = settings.values.get("model_type")
    if not isinstance(kind, str):
        raise settings.error(f"want a model_type, got {kind!r:.40}")
    try:
        format_ = lookup(formats, kind, kind="model_type")
        settings.only("quantization_config", None)
        if format_.inside is not None:
            settings = settings.inside(format_.inside)
        config = format_.config(settings)
        with torch.device("meta"):  # sizes without memory
            wanted = {k: tuple(v.shape) for k, v in tensors_of(SequenceModel(config)).items()}
    except CheckpointError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise settings.error(str(error)) from error
    sources = format_.all_sources(settings)
    assert not wanted.keys() - sources.keys(), wanted.keys() - sources.keys()
    sources = {name: sources[name] for name in wanted}
    with ExitStack() as stack:
        files = _Files(folder, stack, format_.renamed)
        _check_sizes(files, sources, wanted)
        _check_rest(files, sources, format_)
        model = SequenceModel(config).eval()
        with torch.no_grad():
            for name, tensor in tensors_of(model).items():
                tensor.copy_(_made(files, sources[name]))
                if not tensor.isfinite().all():
                    first = sources[name].names[0]
                    raise CheckpointError(f"{folder}: {first} holds NaN or infinite values")
    return Checkpoint(model, settings)


class _Files:
    """The tensors of all shards by name; values are read only when they are asked for."""

    def __init__(self, folder: Path, stack: ExitStack, renamed: Mapping[str, str]) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._homes: dict[str, tuple[Any, str]] = {}
        for path, promised in _shards(folder).items():
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
                names = set(file.keys())
                for name in names:
                    part, known = file.get_slice(name), name
                    for theirs, usual in renamed.items():
                        known = known.replace(theirs, usual)
                    if known in self.shapes:
                        raise CheckpointError(f"{path}: {name}: such a tensor is there twice")
                    self.shapes[known] = tuple(part.get_shape())
                    self._homes[known] = file, name
                    if part.get_dtype() not in TYPES:
                        raise CheckpointError(
                            f"{path}: {name} is of type {part.get_dtype()}; only floating point "
                            f"weights are imported ({', '.join(sorted(TYPES))})"
                        )
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path}: {error}; truncated?") from error
            if promised is not None and names != promised:
                name = min(names ^ promised)
                what = "names it, the shard lacks it" if name in promised else "does not name it"
                raise CheckpointError(f"{path}: {name}: {INDEX} {what}")

    def read(self, name: str) -> Tensor:
        try:
            file, known = self._homes[name]
            return file.get_tensor(known)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.folder}: {name}: {error}; truncated?") from error


def _shards(folder: Path) -> dict[Path, set[str] | None]:
    """The files with weights, and the names that an index promises in each."""
    if (folder / WEIGHTS).is_file():
        return {folder / WEIGHTS: None}
    path = folder / INDEX
    if not path.is_file():
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        found = f"only {pickles[0]}, which is never read" if pickles else "none"
        advice = "; save it again as safetensors where you trust it" if pickles else ""
        raise CheckpointError(f"{folder}: want {WEIGHTS} or {INDEX}, found {found}{advice}")
    try:
        places = json.loads(path.read_bytes())["weight_map"]
        shards: dict[Path, set[str] | None] = {folder / home: set() for home in places.values()}
        for name, home in places.items():
            if Path(home).name != home:
                raise ValueError(f"{home!r:.60} is not a name of a file here")
            shards[folder / home].add(name)  # type: ignore[union-attr]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not an index of shards ({error})") from None
    if missing := [shard for shard in shards if not shard.is_file()]:
        raise CheckpointError(f"{min(missing)}: {INDEX} names this shard, it is not there")
    return shards


def _made(files: _Files, source: Source) -> Tensor:
    return source.make(*(files.read(name).float() for name in source.names))


def _check_sizes(
    files: _Files, sources: Mapping[str, Source], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Every source is there, and becomes a tensor of the size that the config asks for."""
    for ours, source in sources.items():
        for name in source.names:
            if name not in files.shapes:
                raise CheckpointError(f"{files.folder}: the tensor {name} is missing")
        shapes = [files.shapes[name] for name in source.names]
        try:
            made = source.make(*(torch.empty(shape, device="meta") for shape in shapes))
            fits = tuple(made.shape) == wanted[ours]
        except (RuntimeError, IndexError):
            fits = False
        if not fits:
            raise CheckpointError(
                f"{files.folder}: {' + '.join(source.names)}: of size {_and(shapes)}, which does "
                f"not become the {wanted[ours]} that config.json asks for"
            )


def _check_rest(files: _Files, sources: Mapping[str, Source], format_: Format) -> None:
    """Nothing is left over; a copy of a tied weight has to be one."""
    left = files.shapes.keys() - {name for source in sources.values() for name in source.names}
    if format_.unused is not None:
        left = {name for name in left if not re.fullmatch(format_.unused, name)}
    if format_.output in left and format_.embedding in files.shapes:
        if not torch.equal(files.read(format_.output), files.read(format_.embedding)):
            raise CheckpointError(
                f"{files.folder}: config.json ties {format_.output} to {format_.embedding}, but "
                "the two differ; is tie_word_embeddings right?"
            )
        left = left - {format_.output}
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise CheckpointError(
            f"{files.folder}: the tensor {min(left)}{more} would be left unused: config.json "
            "describes another model"
        )


def _and(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join(map(str, shapes))
