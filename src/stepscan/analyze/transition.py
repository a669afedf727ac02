"""What a step does to the old state, measured: the Jacobian d state_t / d state_{t-1} of each part.

    structure     scalar (one factor per head), diagonal, dense, nonlinear, or none (a shift)
    gate          what the factors depend on: fixed, the input, the state
    eigenvalues   of the Jacobian: how fast each direction is forgotten, and whether it turns

`stepscan mixers` says of each mixer what its authors say of it; the tests hold that against what
is measured here. Made for looking: the cost is one backward pass for every number of the state.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from stepscan import state as states
from stepscan.mixers import Mixer

STRUCTURES = ("none", "scalar", "diagonal", "dense", "nonlinear")  # from poor to rich
TOKENS = 3  # different inputs to one state
DISTANCES = 0.1, 1.0, 10.0  # to other states: a step that bends does so within one of them
MOST = 400  # numbers of a part whose Jacobian is written out: of larger ones, some heads


Step = Callable[[Sequence[Tensor], Sequence[int]], list[Tensor]]
"""(new values of some parts of the state, which parts) -> those parts, one token later."""


class Part(NamedTuple):
    """One tensor of the state."""

    name: str
    size: int
    structure: str
    """One of STRUCTURES."""
    gate: str
    """fixed, input or state."""
    eigenvalues: Tensor
    """Complex, of the Jacobian of this part with itself, for every token."""


@torch.no_grad()
def transition(mixer: Mixer, x: Tensor) -> list[Part]:
    """The parts of the state, measured at the last TOKENS of `x` [1 T D], in float64.

    Each token is read from the same state. Parts that grow with the sequence, counters and empty
    ones are left out: nothing carries over.
    """
    if not mixer.causal:
        raise ValueError("transition: want a causal mixer; one that reads both ways has no step")
    if x.ndim != 3 or len(x) != 1 or x.shape[1] <= TOKENS:
        raise ValueError(f"transition: want x [1 T D] with T > {TOKENS}, got {tuple(x.shape)}")
    before = states.detach(mixer(x[:, :-TOKENS])[1])
    named, spec = pytree.tree_flatten_with_path(before)
    flat = [leaf for _, leaf in named]

    def step(token: Tensor) -> Step:
        def run(values: Sequence[Tensor], group: Sequence[int]) -> list[Tensor]:
            old = list(flat)
            for i, value in zip(group, values, strict=True):
                old[i] = value
            new = pytree.tree_leaves(mixer(token, pytree.tree_unflatten(old, spec))[1])
            return [new[i] for i in group]

        return run

    tokens = x[:, -TOKENS:].split(1, 1)
    steps = [step(token) for token in tokens]
    after = pytree.tree_leaves(mixer(tokens[0], before)[1])
    kept = [
        i
        for i, value in enumerate(flat)
        if value.is_floating_point() and value.numel() and after[i].shape == value.shape
    ]
    parts = []
    for i in kept:
        # Parts of one shape act together: weights, those of the chunk's start, their momentum.
        group = [i, *(j for j in kept if j != i and flat[j].shape == flat[i].shape)]
        parts.append(_part(pytree.keystr(named[i][0]), [flat[j] for j in group], group, steps))
    return parts


def structure(parts: list[Part]) -> str:
    """The richest structure among the parts that carry the memory: half as large as the largest."""
    kept = [part for part in parts if part.structure != "none"]
    large = [part for part in kept if 2 * part.size >= max(p.size for p in kept)]
    return max((p.structure for p in large), key=STRUCTURES.index, default="none")


def _part(name: str, values: list[Tensor], group: list[int], steps: list[Step]) -> Part:
    """One part, `values[0]`, with those of its shape, from steps with different tokens."""
    probe = torch.randn_like(values[0])
    window = _window(values[0])
    jacobians = [_jacobian(run, values[0], group[0], window) for run in steps]
    shape = max((_shape(jacobian, window) for jacobian in jacobians), key=STRUCTURES.index)
    pulls = [_pull(run, values, group, probe) for run in steps]
    gate = "fixed" if all(_same(pull[0], pulls[0][0]) for pull in pulls) else "input"
    for run, here in zip(steps, pulls, strict=True):
        for far in DISTANCES:
            elsewhere = [value + far * torch.randn_like(value) for value in values]
            if not _same(_pull(run, elsewhere, group, probe), here):
                shape, gate = "nonlinear", "state"
    eigenvalues = torch.cat([torch.linalg.eigvals(jacobian) for jacobian in jacobians])
    return Part(name, values[0].numel(), shape, gate, eigenvalues)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-9)


def _shape(jacobian: Tensor, window: list[int]) -> str:
    diagonal = jacobian.diagonal()
    shift = torch.linalg.matrix_power(jacobian, len(jacobian))
    if torch.allclose(shift, 0 * jacobian, atol=1e-9) and not diagonal.any():
        return "none"  # what was read moves on, and out
    if _is_diagonal(jacobian, 1):
        heads = diagonal.reshape(window[0], window[1], -1)
        alike = len(window) > 2 and torch.allclose(heads, heads[..., :1].expand_as(heads))
        return "scalar" if alike else "diagonal"
    return "diagonal" if window[-1] == 2 and _is_diagonal(jacobian, 2) else "dense"


def _is_diagonal(jacobian: Tensor, block: int) -> bool:
    """Whether only blocks of this size stand on the diagonal: 2 for complex numbers as pairs."""
    blocks = torch.ones(len(jacobian) // block, dtype=jacobian.dtype).diag()
    mask = torch.kron(blocks, torch.ones(block, block, dtype=jacobian.dtype))
    return torch.allclose(jacobian * (1 - mask), 0 * jacobian, atol=1e-12)


@torch.enable_grad()
def _pull(run: Step, values: list[Tensor], group: list[int], probe: Tensor) -> Tensor:
    """One product of a vector with the Jacobian of the first part, with respect to all."""
    at = [value.clone().requires_grad_() for value in values]
    y = run(at, group)[0]
    if not y.requires_grad:
        return torch.stack([torch.zeros_like(value) for value in at])
    return torch.stack(torch.autograd.grad(y, at, probe, materialize_grads=True))


def _window(value: Tensor) -> list[int]:
    """Sizes of the first numbers along each axis: heads, then columns go where there are many."""
    sizes = list(value.shape)
    for axis in (1, value.ndim - 1, *range(2, value.ndim - 1)):
        if torch.Size(sizes).numel() > MOST and sizes[axis] > 2:  # 2: complex numbers, as pairs
            sizes[axis] = 1
    return sizes


@torch.enable_grad()
def _jacobian(run: Step, value: Tensor, part: int, window: list[int]) -> Tensor:
    """[n, n], of the numbers in the window."""
    first = tuple(slice(0, n) for n in window)
    at = value.clone().requires_grad_()
    y = run([at], [part])[0][first].flatten()
    if not y.requires_grad:
        return torch.zeros(len(y), len(y), dtype=value.dtype)
    grads = (torch.autograd.grad(one, at, retain_graph=True)[0] for one in y)
    return torch.stack([grad[first].flatten() for grad in grads])
