"""Which forms each op has, and which native kernels a mixer runs on."""

import pkgutil
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stepscan import ops
from stepscan.mixers import Mixer
from stepscan.names import lookup

DEFINITION, NATIVE = "recurrent", "cpu"
PROJECTION = "linear"  # the kernel of every linear map, not one of a recurrence


@cache
def modules() -> dict[str, ModuleType]:
    """The module of every op, by the name of its verb."""
    found = {}
    for info in pkgutil.iter_modules(ops.__path__):
        module = import_module(f"{ops.__name__}.{info.name}")
        name = "cell_scan" if info.name == "cells" else info.name
        if hasattr(module, "FORMS"):
            found[name] = module
    return found


def parallel(op: str) -> str:
    """The forms of an op beside its definition and its native one, as in "chunked, folded"."""
    forms = lookup(modules(), op, kind="op").FORMS
    return ", ".join(form for form in forms if form not in (DEFINITION, NATIVE))


@torch.no_grad()
def native(mixer: Mixer, x: Float[Tensor, "B T D"]) -> set[str]:
    """The native kernels that a mixer calls for this input, seen rather than claimed."""
    with _Calls() as calls:
        mixer(x)
    return calls.seen - {PROJECTION}


class _Calls(TorchDispatchMode):
    """Notes every operator of ours that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if func.namespace == "stepscan":
            self.seen.add(func.name().partition("::")[2].partition(".")[0])
        return func(*args, **(kwargs or {}))
