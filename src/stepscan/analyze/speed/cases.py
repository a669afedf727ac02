"""Every op, ready to run in any of its forms: what `speed` times and `doctor` checks."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from stepscan.analyze.speed.inputs import TABLE, Inputs, Sizes, Work
from stepscan.kernels import available

NATIVE, TORCH_LOOP, NEWTON = "cpu", "fused", "newton"


class Case(NamedTuple):
    """An op, ready to run in any of its forms; the first form is the definition."""

    op: str
    verb: Callable[..., tuple[Any, Any]]
    inputs: Inputs
    """Positional and keyword arguments; tensors, NamedTuples of tensors, plain values."""
    forms: tuple[str, ...]
    work: Work = Work()

    def run(self, form: str) -> tuple[Any, Any]:
        """The op's (y, state)."""
        arguments, options = self.inputs
        return self.verb(*arguments, **options, form=form)

    def derive(self, form: str) -> list[Tensor]:
        """Outputs, final state, and the gradients of a loss that weighs every number in them."""
        arguments, options = inputs = leaves(self.inputs)
        found = pytree.tree_leaves(self.verb(*arguments, **options, form=form))
        real = [torch.view_as_real(t) if t.is_complex() else t for t in found if t.requires_grad]
        loss = sum((t * torch.arange(t.numel()).to(t).cos().view_as(t)).sum() for t in real)
        gradients = torch.autograd.grad(loss, tensors(inputs), materialize_grads=True)  # type: ignore[arg-type]
        return [t.detach() for t in (*found, *gradients)]


def leaves(inputs: Any) -> Any:
    """The same inputs, to be derived by."""
    return pytree.tree_map_only(Tensor, _leaf, inputs)


def tensors(inputs: Any) -> list[Tensor]:
    """Those among the inputs that can be derived by."""
    found = (t for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor))
    return [t for t in found if t.is_floating_point() or t.is_complex()]


def cases(T: int, *, heads: int, size: int, batch: int = 1, ops: str = "") -> Iterator[Case]:
    """All ops, or those that are called so or whose name contains one of `ops`, by commas."""
    wanted = [name.strip() for name in ops.split(",")]
    chosen = [op for op in TABLE if op in wanted]
    for op in chosen or [op for op in TABLE if any(name in op for name in wanted)]:
        module, build = TABLE[op]
        name = op.partition(" ")[0]
        inputs, work = build(Sizes(batch, T, heads, size, torch.Generator().manual_seed(0)))
        forms = tuple(form for form in module.FORMS if _serves(form, name, inputs))
        assert forms[0] == "recurrent"
        yield Case(op, getattr(module, name), inputs, forms, work)


def _serves(form: str, op: str, inputs: Inputs) -> bool:
    first = inputs[0][0]
    if form in (TORCH_LOOP, NEWTON):
        return hasattr(first, {TORCH_LOOP: TORCH_LOOP, NEWTON: "channelwise"}[form])
    if form != NATIVE:
        return True
    # The C function has the name of the op; a cell says whether it is one of the kernel's.
    return available(op) and (op != "cell_scan" or hasattr(first, "native"))


def _leaf(t: Tensor) -> Tensor:
    return t.detach().clone().requires_grad_(t.is_floating_point() or t.is_complex())
