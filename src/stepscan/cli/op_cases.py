"""Every op with inputs of a chosen size: what `speed` times and `doctor` checks."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from stepscan.kernels import available
from stepscan.ops import (
    attention,
    cells,
    delta_rule,
    dplr,
    linear_attention,
    linear_scan,
    long_conv,
    selective_scan,
    semiring_scan,
    short_conv,
    ssm_conv,
)

NATIVE = "cpu"


class Case(NamedTuple):
    """An op, ready to run in any of its forms; the first form is the definition."""

    op: str
    verb: Callable[..., tuple[Any, Any]]
    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    """Positional and keyword arguments; tensors, NamedTuples of tensors, plain values."""
    forms: tuple[str, ...]

    def run(self, form: str) -> tuple[Any, Any]:
        """The op's (y, state)."""
        arguments, options = self.inputs
        return self.verb(*arguments, **options, form=form)

    def derive(self, form: str) -> list[Tensor]:
        """Outputs, final state, and the gradients of a loss that weighs every number in them."""
        arguments, options = pytree.tree_map_only(Tensor, _leaf, self.inputs)
        found = pytree.tree_leaves(self.verb(*arguments, **options, form=form))
        real = [torch.view_as_real(t) if t.is_complex() else t for t in found if t.requires_grad]
        loss = sum((t * torch.arange(t.numel()).to(t).cos().view_as(t)).sum() for t in real)
        leaves = [t for t in pytree.tree_leaves((arguments, options)) if isinstance(t, Tensor)]
        gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)  # type: ignore[arg-type]
        return [t.detach() for t in (*found, *gradients)]


def cases(T: int, *, heads: int, size: int, width: int) -> Iterator[Case]:
    """All ops on one row of T tokens: `heads` heads of K = V = `size`, or `width` channels."""
    rng = torch.Generator().manual_seed(0)
    randn, rand = partial(torch.randn, generator=rng), partial(torch.rand, generator=rng)
    q, k, v = randn(3, 1, T, heads, size)
    k = F.normalize(k, dim=-1)
    beta, scalar, vector = rand(1, T, heads), -rand(1, T, heads), -rand(1, T, heads, size)
    x, b, dt = randn(3, 1, T, width)
    state = 16
    A, B, C = -rand(width, state) - 0.1, randn(1, T, state), randn(1, T, state)
    system = {
        "log_a": torch.complex(-rand(width, state) - 0.1, randn(width, state)),
        "b": torch.complex(randn(width, state), randn(width, state)),
        "c": torch.complex(randn(width, state), randn(width, state)),
    }
    cell = cells.LSTM(
        randn(4 * size, width) / width**0.5,
        randn(4 * size, size) / size**0.5,
        randn(4 * size),
        randn(4 * size),
    )
    attend, delta = linear_attention.linear_attention, delta_rule.delta_rule
    rows: list[tuple[str, Any, Any, tuple[Any, ...], dict[str, Any]]] = [
        ("linear_scan", linear_scan.linear_scan, linear_scan, (rand(1, T, width), b), {}),
        (
            "selective_scan",
            selective_scan.selective_scan,
            selective_scan,
            (x, dt),
            {"A": A, "B": B, "C": C},
        ),
        ("linear_attention", attend, linear_attention, (q, k, v), {}),
        ("linear_attention, decay", attend, linear_attention, (q, k, v), {"log_decay": scalar}),
        (
            "linear_attention, decays",
            attend,
            linear_attention,
            (q, k, v),
            {"log_decay": vector},
        ),
        ("delta_rule", delta, delta_rule, (q, k, v), {"beta": beta}),
        ("delta_rule, decay", delta, delta_rule, (q, k, v), {"beta": beta, "log_decay": scalar}),
        (
            "dplr",
            dplr.dplr,
            dplr,
            (q, k, v),
            {"a": -k, "b": beta[..., None] * k, "log_decay": vector},
        ),
        ("attention", attention.attention, attention, (q / size**0.5, k, v), {}),
        (
            "attention, window",
            attention.attention,
            attention,
            (q / size**0.5, k, v),
            {"window": 64},
        ),
        ("short_conv", short_conv.short_conv, short_conv, (x, randn(width, 4)), {}),
        ("long_conv", long_conv.long_conv, long_conv, (x, randn(width, min(T, 256))), {}),
        ("ssm_conv", ssm_conv.ssm_conv, ssm_conv, (x,), system),
        ("cell_scan, lstm", cells.cell_scan, cells, (cell, x), {}),
        ("semiring_scan", semiring_scan.semiring_scan, semiring_scan, (b, x, "logsumexp_plus"), {}),
    ]
    for op, verb, module, arguments, options in rows:
        native = available(op.partition(",")[0])  # the C function has the name of the op
        forms = tuple(name for name in module.FORMS if name != NATIVE or native)
        assert forms[0] == "recurrent"
        yield Case(op, verb, (arguments, options), forms)


def _leaf(t: Tensor) -> Tensor:
    return t.detach().clone().requires_grad_(t.is_floating_point() or t.is_complex())
