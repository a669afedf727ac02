"""What a person sees while training: facts as lines, and one line that moves."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class Voice:
    """Speaks to a terminal, a log file or nobody; the moving line appears in a terminal only."""

    def __init__(self, *, quiet: bool = False, file: TextIO | None = None) -> None:
        self.quiet = quiet
        self._console = Console(
            file=file or sys.stdout, quiet=quiet, highlight=False, soft_wrap=True, markup=False
        )
        self._bar: Progress | None = None
        self._task = 0

    def say(self, *lines: str) -> None:
        """Lines that stay."""
        for line in lines:
            self._console.print(line)

    @contextmanager
    def moving(self) -> Iterator[None]:
        """While the block runs, `show` draws a line that moves."""
        if self.quiet or not self._console.is_terminal:
            yield
            return
        columns = (TextColumn("  "), BarColumn(24), TextColumn("{task.description}"))
        with Progress(*columns, console=self._console, transient=True) as bar:
            self._bar, self._task = bar, int(bar.add_task("", total=1.0))
            try:
                yield
            finally:
                self._bar = None

    def show(self, part: float, line: str) -> None:
        """How far it is, from 0 to 1, and what is going on."""
        if self._bar is not None:
            self._bar.update(self._task, completed=part, description=line)  # type: ignore[arg-type]


def clock(seconds: float) -> str:
    """Minutes and seconds, 2:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def size(count: float) -> str:
    """Bytes for people, 1.5 MB."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
