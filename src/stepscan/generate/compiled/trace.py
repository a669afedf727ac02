"""What a model does in one step, as a list of torch's operations.

The trace is a run: a model reads one token, and every operation that touches what may change from
step to step (inputs and state) is noted; whatever depends on weights only has its value already.
Views need no note, for a view is only another place in the same storage. Of the ops with a memory
the definition is traced, one of `LEAVES` whole, as a single step.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from stepscan import ops
from stepscan.generate.compiled.memory import Buffer, Place, constant

LEAVES = ("attention", "delta_rule", "dplr", "linear_attention")
SHAPES_ONLY = ("new_zeros", "zeros_like", "new_ones", "ones_like", "new_full", "full_like")


class Step(NamedTuple):
    """One operation; tensors are replaced by their places."""

    name: str
    args: tuple[Any, ...]
    options: dict[str, Any]
    outs: list[Place]


@dataclass(eq=False)
class Recorder(TorchDispatchMode):
    """Notes operations while it is active."""

    steps: list[Step] = field(default_factory=list)
    buffers: dict[int, Buffer] = field(default_factory=dict)
    alive: list[Any] = field(default_factory=list)  # so that no storage takes another's number
    paused: bool = False

    def __post_init__(self) -> None:
        """What a dispatch mode needs."""
        super().__init__()

    def watch(self, tensor: Tensor) -> Place:
        """From now on operations on it are noted."""
        key = _storage(tensor)
        self.buffers.setdefault(key, Buffer(tensor.untyped_storage().nbytes()))
        self.alive.append(tensor)
        return self.place(tensor)

    def place(self, tensor: Tensor) -> Place:
        """Where it lies."""
        buffer = self.buffers.get(_storage(tensor))
        if buffer is None:
            return constant(tensor.detach())
        shape, strides = tuple(tensor.shape), tensor.stride()
        return Place(buffer, tensor.dtype, int(tensor.storage_offset()), shape, strides)

    def note(self, name: str, args: tuple[Any, ...], options: dict[str, Any], out: Any) -> None:
        """Add a step, if it depends on what is watched."""
        given, made = _tensors((args, options)), _tensors(out)
        self.alive.append((given, made))
        sources = {_storage(t) for t in given}
        if not any(key in self.buffers for key in sources):
            return
        if all(_storage(t) in sources for t in made) and made:
            return  # a view
        if not made:
            raise ValueError(f"compile_decoder: {name}: what a step does depends on its numbers")
        given, chosen = pytree.tree_map_only(Tensor, self.place, (args, options))
        self.steps.append(Step(name, given, chosen, [self.watch(t) for t in made]))

    def _note_in_place(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """As if the result were a new tensor, which it is if nothing of the old one is left."""
        room, _, rest = name.partition(".")
        verb, _, overload = rest.partition(".")
        target = args[0]
        size = target.numel() * target.element_size()
        whole = target.is_contiguous() and size == target.untyped_storage().nbytes()
        if not verb.endswith("_") or not whole or options.get("out") is not None:
            raise ValueError(f"compile_decoder: no rule for {name}, which writes in place")
        given, chosen = pytree.tree_map_only(Tensor, self.place, (args, options))
        self.buffers[_storage(target)] = Buffer(size)
        made = f"{room}.{verb.removesuffix('_')}.{overload}"
        self.steps.append(Step(made, given, chosen, [self.place(target)]))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and note it."""
        out = func(*args, **(kwargs or {}))
        if self.paused:
            return out
        name = str(func).removesuffix(".default")
        if func._schema.is_mutable and any(_storage(t) in self.buffers for t in _tensors(args)):
            self._note_in_place(name, args, kwargs or {})
        elif name.removeprefix("aten.") in SHAPES_ONLY:
            self.alive.append(out)
        else:
            self.note(name, args, kwargs or {}, out)
        return out


@contextmanager
def definitions(recorder: Recorder) -> Iterator[None]:
    """Every op runs by its definition, or is noted whole if it is a leaf."""
    changed = [
        mock.patch.object(module, "FORMS", dict.fromkeys(module.FORMS, _form(recorder, module)))
        for module in map(importlib.import_module, _modules())
        if hasattr(module, "FORMS")
    ]
    for patch in changed:
        patch.start()
    try:
        yield
    finally:
        for patch in changed:
            patch.stop()


def _modules() -> list[str]:
    return [f"{ops.__name__}.{found.name}" for found in pkgutil.iter_modules(ops.__path__)]


def _form(recorder: Recorder, module: Any) -> Callable[..., Any]:
    name = module.__name__.rpartition(".")[2]
    run = module.FORMS.get("shifted", module.FORMS["recurrent"])  # the plainer one of a convolution

    def leaf(*args: Any, **options: Any) -> Any:
        recorder.paused = True
        try:
            out = pytree.tree_map_only(Tensor, torch.clone, run(*args, **options))
        finally:
            recorder.paused = False
        recorder.note(f"stepscan.{name}", args, options, out)
        return out

    return leaf if name in LEAVES else run


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
