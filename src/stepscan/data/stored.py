"""Parts that lie on disk: written piece by piece, read through a memory map.

A part on disk is a `Packed` like any other; only the pages that a batch asks for are read. The
files are removed as soon as they are mapped: the system frees them with the last reader, so that
nothing is left behind however a run ends.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from stepscan.data.base import Packed


class Stored(Packed):
    """A part whose arrays are memory-mapped files."""


class PartWriter:
    """Writes the pieces of one part, whole sequences each, and maps what was written.

    Args:
        folder: Where the files lie until they are mapped; there must be room for all of the part.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._like: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
        self._steps = 0

    def append(self, packed: Packed) -> None:
        """Write some sequences after those before; a piece without steps says the types only."""
        arrays = _arrays(packed)
        if not self._like:
            self._like = {k: (a.dtype, a.shape[1:]) for k, a in arrays.items()}
            self._files = {k: (self._folder / k).open("wb") for k in arrays}
        assert {k: (a.dtype, a.shape[1:]) for k, a in arrays.items()} == self._like
        for name, array in arrays.items():
            self._files[name].write(np.ascontiguousarray(array).data)
        self._steps += len(packed)

    def finish(self) -> Packed:
        """Map the part; its files are gone from the folder."""
        self.close()
        mapped: dict[str, Tensor] = {}
        for name, (kind, shape) in self._like.items():
            path, whole = self._folder / name, (self._steps, *shape)
            if self._steps and 0 not in shape:
                # Copy on write: torch wants arrays it may write to, the file is never touched.
                array = np.memmap(path, kind, mode="c", shape=whole)
            else:
                array = np.zeros(whole, kind)
            mapped[name] = torch.from_numpy(array)
            path.unlink()
        targets = {k.split(".", 1)[1]: v for k, v in mapped.items() if k.startswith("target.")}
        tokens, reals = mapped.get("tokens"), mapped.get("reals")
        return Stored(mapped["starts"], tokens=tokens, reals=reals, targets=targets)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


class Workshop:
    """A folder for what is on its way, removed at the end; under `scratch`, or where the system
    keeps temporary files.
    """

    def __init__(self, scratch: str | None = None) -> None:
        if scratch is not None:
            Path(scratch).mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="stepscan-", dir=scratch)
        self.path = Path(self._folder.name)

    def room(self, name: str) -> Path:
        """A new folder in it."""
        path = self.path / name
        path.mkdir()
        return path

    def __enter__(self) -> "Workshop":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()


def _arrays(packed: Packed) -> Mapping[str, np.ndarray]:
    targets = packed.targets_as_stored
    named = {"starts": packed.starts, "tokens": packed.tokens, "reals": packed.reals}
    named |= {f"target.{name}": target for name, target in targets.items()}
    return {name: tensor.numpy() for name, tensor in named.items() if tensor is not None}
