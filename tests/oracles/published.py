"""Functions published elsewhere, as a second opinion on ours: how to load them and to compare.

A reference is loaded from its file alone, so that no GPU driver is wanted; with `wide` its casts
to float32 become casts to float64, or no difference below 1e-7 could be seen.
"""

import re
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-6}
"""Largest difference, relative to the largest number of what the reference gives."""
SIZES = {"B": 2, "H": 3, "K": 4, "V": 5, "M": 6, "L": 7, "N": 2, "R": 6, "1": 1}
"""All different, so that no two dimensions can be exchanged unseen."""
KINDS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x,
    "unit": lambda x: F.normalize(x, dim=-1),
    "decay": lambda x: F.logsigmoid(2 * x + 1),
    "rate": torch.sigmoid,
    "turn": lambda x: 2 * torch.sigmoid(x),
    "positive": lambda x: x.exp(),
}


class Case(NamedTuple):
    """One of our functions and what it is judged by, both called with the same inputs."""

    name: str
    theirs: str
    """Module and function: "fla.ops.gla.naive:naive_recurrent_gla"."""
    inputs: Mapping[str, str]
    """Name to "shape" or "kind shape", a letter a dimension: "decay BTH"."""
    call: Callable[..., Any]
    """(their function, **inputs) to outputs, in the order and layout of ours."""
    ours: Callable[..., Any]
    wrong: Mapping[str, Callable[..., Any]] = {}
    """What ours must not be: each has to be found out."""
    edit: tuple[str, str] | None = None
    """A line of theirs, and what stands there in the convention of ours."""
    lengths: tuple[int, ...] = (1, 37, 64)
    differentiable: bool = True
    """False where theirs writes over what its own gradients need."""


class DifferenceError(AssertionError):
    """Ours and theirs are not the same function."""


def installed(package: str) -> bool:
    """Whether a package is there, without importing it."""
    return find_spec(package) is not None


@cache
def module(name: str, *, wide: bool, edit: tuple[str, str] | None = None) -> ModuleType:
    """A module of its own from one file of an installed package."""
    top, *rest = name.split(".")
    package = find_spec(top)
    assert package is not None, f"{top} is not installed: run `make oracles`"
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]).joinpath(*rest).with_suffix(".py")
    source = path.read_text()
    if edit is not None:
        assert edit[0] in source, f"{path} does not say {edit[0]!r}"
        source = source.replace(*edit)
    uncompiled = "(lambda function: function)"  # TorchScript would read the file as it is
    source = re.sub(r"torch\.jit\.script(_method)?\b", uncompiled, source)
    source = source.replace("torch.jit.ScriptModule", "torch.nn.Module")
    if wide:
        source = re.sub(r"\btorch\.float(32)?\b", "torch.float64", source)
        source = source.replace(".float()", ".double()")
    spec = spec_from_file_location(f"{name}_{'wide' if wide else 'as_is'}", path)
    assert spec is not None
    loaded = module_from_spec(spec)
    sys.modules[loaded.__name__] = loaded  # some decorators look their module up
    exec(compile(source, path, "exec"), loaded.__dict__)
    return loaded


def reference(case: Case, dtype: torch.dtype) -> Callable[..., Any]:
    """Their function, bound as `case.call` says."""
    name, _, function = case.theirs.partition(":")
    found = getattr(module(name, wide=dtype == torch.float64, edit=case.edit), function)
    return lambda **inputs: case.call(found, **inputs)


def draw(case: Case, T: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random inputs; those of float32 are the same numbers, rounded."""
    rng = torch.Generator().manual_seed(T)
    drawn = {}
    for name, spec in case.inputs.items():
        kind, shape = spec.split() if " " in spec else ("normal", spec)
        size = [T if letter == "T" else SIZES[letter] for letter in shape]
        drawn[name] = KINDS[kind](torch.randn(size, generator=rng, dtype=torch.float64)).to(dtype)
    return drawn


@contextmanager
def default(dtype: torch.dtype):
    """Tensors that name no dtype have this one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def run(function: Callable[..., Any], inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """The tensors that a function gives."""
    with default(next(iter(inputs.values())).dtype):
        found = function(**inputs)
    return [t for t in pytree.tree_leaves(found) if isinstance(t, Tensor)]


def gradients(function: Callable[..., Any], inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Of a sum that weighs every output differently, in all inputs."""
    leaf = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    with default(torch.float64):  # the loss too
        outputs = run(function, leaf)
        loss = sum((y * torch.arange(y.numel()).to(y).cos().view_as(y)).sum() for y in outputs)
    return list(torch.autograd.grad(loss, list(leaf.values())))


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest, relative to the largest number of the reference; raises if beyond tolerance."""
    if len(ours) != len(theirs):
        raise DifferenceError(f"{len(ours)} outputs instead of {len(theirs)}")
    largest = 0.0
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise DifferenceError(
                f"[{i}]: {a.dtype} {tuple(a.shape)}, not {b.dtype} {tuple(b.shape)}"
            )
        found = ((a - b).abs().max() / b.abs().max().clamp(min=1e-3)).item()
        if not found <= TOLERANCE[b.dtype]:  # nor if it is not a number
            raise DifferenceError(f"[{i}]: differs by {found:.1e} of the largest number")
        largest = max(largest, found)
    return largest


def unnoticed(case: Case, T: int) -> list[str]:
    """The mutations that the comparison does not find out."""
    inputs = draw(case, T, torch.float64)
    theirs, found = run(reference(case, torch.float64), inputs), []
    for name, mutant in mutations(case).items():
        outputs = run(mutant, inputs)
        try:
            difference(outputs, theirs)
        except DifferenceError:
            continue
        found.append(name)
    return found


def mutations(case: Case) -> dict[str, Callable[..., Any]]:
    """Ours made wrong: each input one step late, or ignored if it has no steps; and `wrong`."""
    found = dict(case.wrong)
    for name, spec in case.inputs.items():
        shape = spec.split()[-1]

        def late(name=name, shape=shape, **inputs: Tensor) -> Any:
            x = inputs[name]
            changed = x.roll(1, shape.index("T")) if "T" in shape else torch.zeros_like(x)
            return case.ours(**inputs | {name: changed})

        found[f"{name} late" if "T" in shape else f"{name} ignored"] = late
    return found
