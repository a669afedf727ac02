"""What the numbers were measured with, so that they can be measured again."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from stepscan.kernels import kernels

PACKAGES = ("stepscan", "torch", "numpy", "transformers", "mambapy")
FLAGS = ("avx", "fma", "f16c", "amx", "asimd", "sve", "bf16")
CPU = Path("/proc/cpuinfo")


def describe() -> dict[str, Any]:
    """Versions, processor, threads and kernels: nothing that names the machine."""
    lines = CPU.read_text().splitlines() if CPU.exists() else []
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    facts = {name.strip(): value.strip() for name, value in pairs}
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    level, why, _ = kernels()
    return {
        "versions": {"python": platform.python_version()} | _versions(),
        "processor": facts.get("model name") or platform.machine(),
        "flags": [flag for flag in flags if any(word in flag for word in FLAGS)],
        "threads": torch.get_num_threads(),
        "kernels": f"{level or 'none'} ({why})",
    }


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
