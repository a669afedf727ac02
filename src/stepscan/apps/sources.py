"""Where the data of a run came from, so that it can be read again: a path, a name, or a frame that
is kept in the run folder.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from stepscan.apps import runs
from stepscan.data.base import DataOptions, Dataset, Schema
from stepscan.data.frames import KEPT, frame_table, is_frame, keep_frame
from stepscan.data.open import open_dataset, open_table

if TYPE_CHECKING:
    import pandas as pd

Data: TypeAlias = "str | os.PathLike[str] | pd.DataFrame"


class Source(NamedTuple):
    """A data set, and how to open it again."""

    dataset: Dataset
    keep: Callable[[Path], str]
    """Given the run folder, writes there what cannot be read elsewhere; says what to open."""


def open_source(
    data: Data, options: DataOptions | None = None, like: Schema | None = None
) -> Source:
    """Open a file, a folder, the name of a data set, or a frame; `like` see `open_dataset`."""
    if isinstance(data, str | os.PathLike):
        path = os.fspath(data)
        return Source(open_dataset(path, options, like), lambda folder: runs.source(path))
    if not is_frame(data):
        raise ValueError(f"want a file, a folder, a name or a frame, got {type(data).__name__}")
    options = options or DataOptions()
    name = str(getattr(data, "attrs", {}).get("name", "frame"))
    table = frame_table(data, name, options.missing)

    def keep(folder: Path) -> str:
        return str(keep_frame(table, folder / f"{runs.word(name)}-{KEPT}").absolute())

    return Source(open_table(table, options, like), keep)


def moved(source: str, folder: Path) -> str:
    """The source of a run, in its folder if it was kept there and the folder has moved since."""
    path = Path(source)
    beside = folder / path.name
    kept = path.name.endswith(KEPT) and not path.exists() and beside.exists()
    return str(beside) if kept else source
