"""Run folders: a fresh one per run, small files whole or not there, what is needed to redo it."""

import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from stepscan.kernels import kernels

ROOT = Path("runs")


def new_folder(name: str, out: str | os.PathLike[str] | None = None) -> Path:
    """The folder of a new run: `out`, or runs/NAME-1, runs/NAME-2 ... It is made, empty."""
    if out is not None:
        folder = Path(out)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder}: is not empty; choose another --out, or --resume {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    number = 1
    while True:
        folder = ROOT / f"{word(name)}-{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def word(name: str) -> str:
    """A name as part of a path."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[:100] or "run"


def write_json(path: Path, data: Any) -> Path:
    """Write JSON under another name and rename it."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


def source(data: str | os.PathLike[str]) -> str:
    """What to open the data by, also from another working directory."""
    path = Path(data)
    return str(path.absolute()) if path.exists() else os.fspath(data)


def tuples(data: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists where a frozen dataclass has tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}


def machine() -> dict[str, str]:
    """What the figures of a run were measured on."""
    found = kernels()
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
        "kernels": found.level or f"none ({found.why})",
    }


def versions() -> dict[str, str]:
    """Of what a result depends on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("stepscan", "numpy", "pandas"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def results(title: str, sections: list[dict[str, Any]], command: str) -> dict[str, Any]:
    """The results.json of a comparison or of a run: see docs/results.md."""
    return {
        "version": 1,
        "title": title,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": machine(),
        "versions": versions(),
        "sections": sections,
    }


def command_line() -> str:
    """What was typed, for the report."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv and sys.argv[0] else ["stepscan"]
    return " ".join(words)


def read_json(path: Path) -> Mapping[str, Any]:
    """A small file of a run folder."""
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; is {path.parent} a run folder?") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: want a JSON object")
    return data


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
