"""Command lines from frozen dataclasses: fields are flags, attribute docstrings their help."""

import contextlib
import io
import re
from collections.abc import Sequence
from typing import TypeVar

A = TypeVar("A")


def parse(args: type[A], argv: Sequence[str], *, command: str) -> A:
    """Read `argv`; what cannot be read is a `ValueError` of one line, `--help` prints and exits."""
    import tyro  # noqa: PLC0415  (a tenth of a second that `stepscan --help` need not wait for)

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                args,
                args=list(argv),
                prog=f"stepscan {command}",
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        words = re.sub(r"[^\x20-\x7e\n]", " ", said.getvalue())  # the box around it
        lines = [line.strip(" -") for line in words.splitlines()]
        reason = " ".join(line for line in lines if line and "--help" not in line)
        reason = re.sub(r" +", " ", reason)
        reason = re.split(r" Got errors| Argument helptext| Perhaps you meant", reason)[0]
        raise ValueError(f"{command}: {reason} See: stepscan {command} --help") from None
