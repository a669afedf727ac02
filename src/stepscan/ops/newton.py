"""Newton's method for a nonlinear recurrence: all its steps are one equation, solved at once.

    s_t = f(s_{t-1}, u_t)  for all t                     with any guess of all s:
    r_t = f(s_{t-1}, u_t) - s_t                          what is wrong with it
    d_t = J_t d_{t-1} + r_t,  J_t = df/ds at s_{t-1}     a linear recurrence, solved in parallel
    s   = s + d                                          until r vanishes

The first guess is f(fresh, u_t). Each round makes at least one step more exact, mostly all of them
at once: a few rounds do where f contracts. Where r does not shrink the loop serves, with a warning.
The backward pass is exact whatever the number of rounds: one linear recurrence, run from the end,
with the J of the solution. Sources: DEER (arXiv:2309.12252) and ParaRNN (arXiv:2510.21450), whose
code runs a fixed number of rounds.

A cell whose channels have no part in each other's next state says so with `channelwise = True`: its
J are then of one number per channel for each pair of state tensors, instead of one per pair of
numbers in the state.
Cost of a round: T steps side by side, N vector-Jacobian products and O(T N^2) for channelwise
cells of N state tensors; O(T N^3) for N numbers of any other state.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils import _pytree as pytree

from stepscan.ops.linear_scan import linear_scan

ROUNDS = 64
"""Most rounds; the loop serves after so many."""
PATIENCE = 12
"""Rounds in which the worst residual must get better than it ever was."""
EXACT = 64
"""Residuals of so many units in the last place are none; one more round follows all the same."""

Run = Callable[..., tuple[Tensor, Any]]


def newton(
    cell: Any,
    x: Float[Tensor, "B T D"],
    *,
    state: Any,
    resets: Bool[Tensor, "B T"] | None,
    loop: Run,
) -> tuple[Float[Tensor, "B T E"], Any]:
    """The form "newton" of `cell_scan`; `loop` is the form that serves where this one fails."""
    with torch.autocast(x.device.type, enabled=False):  # it would make the state narrow
        problem = Problem(cell, cell.project(x), state, resets, cell.init(x.shape[0]))
        solution, why = solve(problem)
        if why:
            message = f"cell_scan: Newton's method failed for {type(cell).__name__}: {why}"
            warnings.warn(f"{message}. The loop serves instead.", RuntimeWarning, stacklevel=3)
            return loop(cell, x, state=state, resets=resets)
        if torch.is_grad_enabled():
            residual, jacobian = problem.linearize(solution)
            solution = solution + _Scan.apply(jacobian, residual)
        y, after = problem.step(problem.before(solution))
    B, T = x.shape[:2]
    ends = problem.unpack(after.unflatten(0, (B, T))[:, -1])
    return y.unflatten(0, (B, T)), type(state)(*(t.clone() for t in ends))


@torch.no_grad()
def rounds(problem: "Problem") -> Iterator[tuple[Float[Tensor, "B T N M"], float]]:
    """Better and better solutions, each with the worst residual of the one before it."""
    problem = problem.detach()
    first, fresh = (problem.pack(state)[:, None] for state in (problem.state, problem.fresh))
    T = problem.u.shape[1]
    guess = torch.cat([first, fresh.expand(-1, T - 1, -1, -1)], 1)
    solution = problem.step(guess.flatten(0, 1))[1].view_as(guess)
    while True:
        residual, jacobian = problem.linearize(solution)
        worst = (residual.abs() / (1 + solution.abs())).amax().item()
        solution = solution + scan(jacobian, residual)
        yield solution, worst


def solve(problem: "Problem") -> tuple[Float[Tensor, "B T N M"], str]:
    """All states, and why they are not the solution, or nothing."""
    best, since = math.inf, 0
    for number, (solution, worst) in enumerate(rounds(problem), 1):
        if worst <= EXACT * torch.finfo(solution.dtype).eps:
            return solution, ""
        since = 0 if worst < best else since + 1
        best = min(best, worst)
        if not math.isfinite(worst):
            return solution, f"a residual is {worst} in round {number}"
        if since == PATIENCE or number == ROUNDS:
            return solution, f"the residual is still {worst:.1e} in round {number}"
    raise AssertionError("rounds never ends")


class Problem(NamedTuple):
    """A recurrence as one equation.

    States are packed into [.. N M]: N numbers that depend on each other, for each of M channels.
    """

    cell: Any
    u: Float[Tensor, "B T ..."]
    state: Any
    resets: Bool[Tensor, "B T"] | None
    fresh: Any

    @property
    def channelwise(self) -> bool:
        """Whether the cell is."""
        return getattr(self.cell, "channelwise", False)

    def detach(self) -> "Problem":
        """The same without gradients."""
        return pytree.tree_map_only(Tensor, torch.Tensor.detach, self)

    def pack(self, state: Any) -> Float[Tensor, "rows N M"]:
        """All tensors of a state as one."""
        flat = [t.flatten(1) for t in state]
        return torch.stack(flat, 1) if self.channelwise else torch.cat(flat, 1)[..., None]

    def unpack(self, packed: Float[Tensor, "rows N M"]) -> Any:
        """The inverse of `pack`."""
        sizes = [t[0].numel() for t in self.state]
        parts = packed.unbind(1) if self.channelwise else packed[..., 0].split(sizes, 1)
        shapes = [t.shape[1:] for t in self.state]
        pairs = zip(parts, shapes, strict=True)
        return type(self.state)(*(part.reshape(-1, *shape) for part, shape in pairs))

    def before(self, after: Float[Tensor, "B T N M"]) -> Float[Tensor, "rows N M"]:
        """The state that each token starts from, given the one after each."""
        first = self.pack(self.state)[:, None]
        before = torch.cat([first, after[:, :-1]], 1)
        if self.resets is not None:
            fresh = self.pack(self.fresh)[:, None]
            before = torch.where(self.resets[..., None, None], fresh, before)
        return before.flatten(0, 1)

    def step(
        self, before: Float[Tensor, "rows N M"]
    ) -> tuple[Float[Tensor, "rows E"], Float[Tensor, "rows N M"]]:
        """All tokens side by side: their outputs, and the states after them."""
        y, after = self.cell.step(self.u.flatten(0, 1), self.unpack(before))
        return y, self.pack(after)

    def linearize(
        self, solution: Float[Tensor, "B T N M"]
    ) -> tuple[Float[Tensor, "B T N M"], Float[Tensor, "B T N N M"]]:
        """Residuals, derived by all but `solution`, and the Jacobians, derived by nothing."""
        shape = solution.shape
        with torch.enable_grad():
            fixed = self.detach()
            leaf = fixed.before(solution.detach()).requires_grad_()
            after = fixed.step(leaf)[1]
            rows = [
                torch.autograd.grad(part.sum(), leaf, retain_graph=True, materialize_grads=True)[0]
                for part in after.unbind(1)
            ]
        jacobian = torch.stack(rows, 1).unflatten(0, shape[:2])
        if self.resets is not None:
            jacobian = jacobian.masked_fill(self.resets[..., None, None, None], 0.0)
        if torch.is_grad_enabled():
            after = self.step(self.before(solution.detach()))[1]
        else:
            after = after.detach()
        return after.view(shape) - solution.detach(), jacobian


class _Scan(torch.autograd.Function):
    """`scan`, derived by r alone: J belongs to a solution, which is derived by other means."""

    @staticmethod
    def forward(ctx: Any, jacobian: Tensor, residual: Tensor) -> Tensor:
        ctx.save_for_backward(jacobian)
        return scan(jacobian, residual)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        """g_t + J_{t+1}^T (that of t + 1): the same recurrence from the end."""
        (jacobian,) = ctx.saved_tensors
        following = torch.cat([jacobian[:, 1:], torch.zeros_like(jacobian[:, :1])], 1)
        return None, scan(following.transpose(2, 3).flip(1), grad.flip(1)).flip(1)


def scan(
    jacobian: Float[Tensor, "B T N N M"], residual: Float[Tensor, "B T N M"]
) -> Float[Tensor, "B T N M"]:
    """d_t = J_t d_{t-1} + r_t from d = 0: in blocks side by side, then from block to block."""
    B, T, N, M = residual.shape
    if N == 1:
        return linear_scan(jacobian[:, :, 0, 0], residual[:, :, 0])[0][:, :, None]
    block = max(1, math.isqrt(T))
    blocks = -(-T // block)
    padding = (0, 0) * (residual.ndim - 2) + (0, blocks * block - T)
    J = torch.nn.functional.pad(jacobian, (0, 0, *padding)).view(B * blocks, block, N, N, M)
    r = torch.nn.functional.pad(residual, padding).view(B * blocks, block, N, 1, M)
    eye = torch.eye(N, dtype=r.dtype, device=r.device)[..., None].expand(B * blocks, N, N, M)
    part = torch.cat([eye, torch.zeros_like(r[:, 0])], 2)  # d as a map of the block's first one
    parts: list[Tensor] = []
    for J_t, r_t in zip(J.unbind(1), r.unbind(1), strict=True):
        part = _product(J_t, part)
        part[:, :, N:] += r_t
        parts.append(part)
    inside = torch.stack(parts, 1).view(B, blocks, block, N, N + 1, M)
    start = torch.zeros_like(residual[:, 0, :, None])
    starts: list[Tensor] = []
    for end in inside[:, :, -1].unbind(1):
        starts.append(start)
        start = _product(end[:, :, :N], start) + end[:, :, N:]
    first = torch.stack(starts, 1)[:, :, None].expand(-1, -1, block, -1, -1, -1)
    d = _product(inside[..., :N, :], first) + inside[..., N:, :]
    return d.reshape(B, blocks * block, N, M)[:, :T]


def _product(a: Float[Tensor, "*n I J M"], b: Float[Tensor, "*n J K M"]) -> Tensor:
    """Matrix products, for each channel."""
    if a.shape[-1] == 1:
        return (a[..., 0] @ b[..., 0])[..., None]
    return (a[..., :, :, None, :] * b[..., None, :, :, :]).sum(-3)
