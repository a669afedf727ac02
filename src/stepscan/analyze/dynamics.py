"""Where a recurrent mixer comes to rest: fixed and slow points under one input that stays the same.

    h' = F(h, x)        q(h) = |F(h, x) - h|^2 / 2        the speed of the state

Minima of q are sought from many states at once, by gradient descent (Adam) and then Newton's steps.
Where q is zero lies a fixed point, which holds what was stored; where it is merely small, a slow
point, through which the state creeps: what remains of a fixed point that is just not there. The
eigenvalues of the Jacobian at each say what it does: all inside the unit circle attract, some
outside make a saddle, one near 1 keeps a number. Source: Sussillo and Barak 2013, Neural
Computation 25(3); what counts as slow is our own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from stepscan.mixers import Mixer

FIXED = 1e-18  # q of a fixed point, in float64, per squared unit of the state's size
SLOW = 1e-3  # q of a slow point, in parts of the median q of the starts
APART = 1e-4  # of the states' size: fixed points nearer to each other are one
APART_SLOW = 0.1  # the same for slow ones, whose place is as blurred as their valley is flat

Step = Callable[[Tensor], Tensor]
"""[n, D] states -> [n, D] states, one step later; row by row."""


class Point(NamedTuple):
    """A fixed or slow point."""

    state: Float[Tensor, " D"]
    speed: float
    """q: half the squared length of a step from here."""
    fixed: bool
    """Else slow."""
    eigenvalues: Tensor
    """Complex, of the Jacobian of the step, the largest first."""
    share: float
    """Part of the starts that ended here."""

    @property
    def kind(self) -> str:
        """attractor, saddle or repeller."""
        outside = (self.eigenvalues.abs() > 1).double().mean().item()
        return "attractor" if not outside else "repeller" if outside == 1 else "saddle"


def rest_points(
    step: Step, starts: Float[Tensor, "n D"], *, steps: int = 2000, rate: float = 0.02
) -> list[Point]:
    """Fixed and slow points near `starts`, the slowest first.

    Args:
        step: The map, in the dtype of the starts; see `step_of` for that of a mixer.
        starts: States from which to descend: best those that the model visits.
        steps: Of gradient descent; its rate falls to zero.
        rate: At the start, in units of the states' size.
    """
    starts = starts.detach().double()
    size = starts.square().mean().sqrt().clamp_min(1e-3).item()
    speed = lambda h: (step(h) - h).square().sum(1) / 2  # noqa: E731
    usual = speed(starts).median().item()
    h = starts.clone().requires_grad_()
    optimizer = torch.optim.Adam([h], lr=rate * size, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        speed(h).nan_to_num(0.0).sum().backward()
        optimizer.step()
        schedule.step()
    found = _polished(step, h.detach(), speed)
    with torch.no_grad():
        speeds = speed(found)
    fixed = FIXED * size**2 * starts.shape[1]
    kept = [i for i in speeds.argsort().tolist() if speeds[i] < max(fixed, SLOW * usual)]
    groups: list[list[int]] = []
    for i in kept:  # the slowest of each heap stands for it
        apart = size * (APART if speeds[i] < fixed else APART_SLOW)
        near = (g for g in groups if (found[g[0]] - found[i]).square().mean().sqrt() < apart)
        group = next(near, None)
        groups.append([i]) if group is None else group.append(i)
    points = []
    for group in groups:
        at, q = found[group[0]], speeds[group[0]].item()
        values = torch.linalg.eigvals(_jacobians(step, at[None])[0])
        values = values[values.abs().argsort(descending=True)]
        points.append(Point(at, q, q < fixed, values, len(group) / len(starts)))
    return points


def step_of(mixer: Mixer, token: Float[Tensor, " D"], like: Any) -> Step:
    """The map of a mixer's state under one token, on states flattened by `flatten`.

    Args:
        mixer: In float64 for exact fixed points.
        token: What is read again and again.
        like: A state of one row; counters keep its values, its real tensors are the state.
    """
    leaves, spec = pytree.tree_flatten(like)
    moves = [leaf.is_floating_point() and leaf.numel() > 0 for leaf in leaves]

    def step(h: Tensor) -> Tensor:
        parts = iter(h.split([x.numel() for x, m in zip(leaves, moves, strict=True) if m], 1))
        full = [
            next(parts).reshape(len(h), *x.shape[1:]) if m else x.expand(len(h), *x.shape[1:])
            for x, m in zip(leaves, moves, strict=True)
        ]
        tokens = token.expand(len(h), 1, -1)
        return flatten(mixer(tokens, pytree.tree_unflatten(full, spec))[1])

    return step


def flatten(state: Any) -> Float[Tensor, "B D"]:
    """The real tensors of a state, side by side."""
    leaves = pytree.tree_leaves(state)
    return torch.cat([x.flatten(1) for x in leaves if x.is_floating_point() and x.numel()], 1)


def _polished(step: Step, h: Tensor, speed: Step) -> Tensor:
    """Newton's steps towards F(h) = h, each taken only by rows that it slows."""
    one = torch.eye(h.shape[1], dtype=h.dtype)
    with torch.no_grad():
        for _ in range(8):
            lead = torch.linalg.lstsq(
                _jacobians(step, h) - one, (h - step(h))[..., None], driver="gelsd"
            ).solution.squeeze(-1)
            better = speed(h + lead) < speed(h)
            if not better.any():
                break
            h = torch.where(better[:, None], h + lead, h)
    return h


def _jacobians(step: Step, h: Tensor) -> Float[Tensor, "n D D"]:
    """By one backward pass for every row of the matrix: states do not touch each other."""
    with torch.enable_grad():
        at = h.detach().requires_grad_()
        y = step(at)
        rows = [
            torch.autograd.grad(y[:, i].sum(), at, retain_graph=True)[0] for i in range(y.shape[1])
        ]
    return torch.stack(rows, 1)
