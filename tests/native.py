"""What every native form must show, at every level and with one thread and with two.

`step(form)` is as in the laws: `(inputs, state, resets) -> (y, state)`, inputs a tuple of tensors.
"""

import pytest
import torch
from laws import leaves, outcome
from torch import Tensor
from torch.utils import _pytree as pytree

from stepscan import kernels

RMS = 1e-5  # of the error, relative to the numbers: float32 against the definition in float64
FLOOR = 1e-6  # numbers smaller than this count as if they were this large

every_level = pytest.mark.parametrize("level", ["v4", "v3", "v2", "generic"], indirect=True)
every_thread = pytest.mark.parametrize("threads", [1, 2], indirect=True)


def needs(function: str):
    """Mark a test or a parameter that needs this C function."""
    here = kernels.kernels()
    return pytest.mark.skipif(
        not kernels.available(function),
        reason=f"install with a C++ compiler, unset STEPSCAN_KERNELS ({here.why})",
    )


def accuracy_law(step, inputs, state, *, resets=None) -> None:
    """Outputs, state and gradients of form "cpu" are near those of the definition in float64."""
    wide = lambda t: t.to(torch.promote_types(t.dtype, torch.float64)) if _inexact(t) else t  # noqa: E731
    exact = pytree.tree_map_only(Tensor, wide, (inputs, state))
    want = outcome(lambda xs, s: step("recurrent")(xs, s, resets), *exact)
    assert all(t.isfinite().all() for t in leaves(want)), "the definition itself is not finite"
    got = outcome(lambda xs, s: step("cpu")(xs, s, resets), inputs, state)
    for i, (a, b) in enumerate(zip(leaves(got), leaves(want), strict=True)):
        assert a.isfinite().all(), f"[{i}] {tuple(a.shape)}: not finite"
        size, error = (x.abs().square().mean().sqrt().item() for x in (b, wide(a) - b))
        assert error <= RMS * max(size, FLOOR), f"[{i}] {tuple(a.shape)}: {error:.2e} of {size:.2e}"


def repeat_law(step, inputs, state, *, resets=None) -> None:
    """The same again, bit for bit."""
    once, again = (outcome(lambda xs, s: step("cpu")(xs, s, resets), inputs, state) for _ in "ab")
    assert all(map(torch.equal, leaves(once), leaves(again)))


def _inexact(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()
