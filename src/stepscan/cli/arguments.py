"""Command lines from frozen dataclasses: fields are flags, attribute docstrings their help."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, get_type_hints

from stepscan.names import did_you_mean

A = TypeVar("A")


def parse(args: type[A], argv: Sequence[str], *, command: str) -> A:
    """Read `argv`; what cannot be read is a `ValueError` of one line, `--help` prints and exits."""
    import tyro  # noqa: PLC0415  (a tenth of a second that `stepscan --help` need not wait for)

    help_ = f"See: stepscan {command} --help"
    known = {"--help", *_flags(args)}
    for word in argv:
        if word == "--":
            break
        flag = word.split("=")[0].replace("_", "-")
        if word.startswith("--") and flag not in known:
            near = did_you_mean(flag, known)
            raise ValueError(f"{command}: unknown option {word.split('=')[0]}.{near} {help_}")
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
        raise ValueError(f"{command}: {_reason(said.getvalue())} {help_}") from None


def names(text: str) -> list[str]:
    """Split at commas, but not at those inside brackets: attention[window=64,heads=2]."""
    found, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return [name.strip() for name in found if name.strip()]


def _flags(args: type[Any]) -> Iterator[str]:
    """The flags of a dataclass and of those inside it, with their other names."""
    hints = get_type_hints(args, include_extras=True)
    for field in dataclasses.fields(args):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _flags(hint)
            continue
        yield "--" + field.name.replace("_", "-")
        for extra in getattr(hint, "__metadata__", ()):
            yield from getattr(extra, "aliases", None) or ()


def _reason(said: str) -> str:
    """What the parser said, without the box around it."""
    words = re.sub(r"[^\x20-\x7e\n]", " ", said)
    lines = [line.strip(" -") for line in words.splitlines()]
    reason = re.sub(r" +", " ", " ".join(line for line in lines if line and "--help" not in line))
    reason = re.split(r" Got errors| Argument helptext| Perhaps you meant", reason)[0]
    wrong = re.search(r"Error parsing (\S+): (.*)", reason)
    if wrong is None:
        return re.sub(r"^(Unrecognized options|Missing argument|Value error) ", "", reason)
    plain = re.search(r"(int|float)\S*( with base 10)?: (.*?)\.?$", wrong[2])
    if plain is not None:
        return f"{wrong[1]}: want a {'whole ' * (plain[1] == 'int')}number, got {plain[3]}."
    got = re.search(r"from \[?(.*?)\]?\.?$|(?:got|value) (.*?)\.?$", wrong[2])
    kind = re.search(r"matching (\S+)", wrong[2])
    if got is None or kind is None:
        return f"{wrong[1]}: {wrong[2]}"
    wanted = {"INT": "a whole number", "FLOAT": "a number"}
    kinds = [wanted.get(k, k) for k in kind[1].split("|") if k != "{None}"]
    return f"{wrong[1]}: want {' or '.join(kinds)}, got {got[1] or got[2]}."
