"""Teacher forcing for cells that are to become a dynamical system, trained on its observations.

    z~_t = z_t + alpha (z^_t - z_t);   z_{t+1} = F(z~_t);   said: the first O numbers of z_{t+1}

z^_t has the observation x_t in its first O numbers and what z_t has in the others (the read-out is
the identity on those). alpha = 0 lets the cell run freely: on a chaotic orbit its gradients grow
without bound. alpha = 1 is the usual forcing: the cell never sees what becomes of its own errors.

    gtf              alpha in between at every step (Hess et al. 2023, arXiv:2306.04406): Jacobians
                     along the orbit are (1 - alpha) J, so their product stays below 1 in norm for
                     alpha >= 1 - 1 / largest norm of J
    sparse_tf        alpha = 1 at every n-th step, else 0 (Mikhaeil et al. 2022, arXiv:2110.07238)
    adaptive_alpha   1 - 1 / growth, the growth that of the Jacobians' products along the orbits:
                     taken at once when it rises, followed slowly when it falls. The paper's own
                     schedule could not be checked in detail.

Where all numbers are observed, the forced ones of a cell are all of z; where the latent state is
wider, only O of them are, and the bound on the gradients is lost for the others.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stepscan.ops.cells import HiddenState


def gtf(
    cell: Any, x: Float[Tensor, "B T O"], *, alpha: float | Float[Tensor, ""]
) -> Float[Tensor, "B T-1 O"]:
    """What the cell says of x[:, 1:], pulled towards what was observed at each step.

    Args:
        cell: A cell whose state is its hidden vector, such as `MIXERS["plrnn"]().build(3).cell()`.
        x: Observations in equal intervals, the first of which sets the state.
        alpha: How much of the observation is taken, from 0 to 1.
    """
    if isinstance(alpha, float | int) and not 0 <= alpha <= 1:
        raise ValueError(f"gtf: want alpha from 0 to 1, got {alpha}")
    return _forced(cell, x, [alpha] * (x.shape[1] - 1))


def sparse_tf(cell: Any, x: Float[Tensor, "B T O"], *, every: int) -> Float[Tensor, "B T-1 O"]:
    """What the cell says of x[:, 1:], set to what was observed at steps 0, every, 2 every, ..."""
    if every < 1:
        raise ValueError(f"sparse_tf: want every >= 1, got {every}")
    return _forced(cell, x, [float(t % every == 0) for t in range(x.shape[1] - 1)])


def adaptive_alpha(
    cell: Any,
    x: Float[Tensor, "B T O"],
    *,
    previous: float = 0.0,
    keep: float = 0.99,
) -> float:
    """The alpha for the next steps of training, from the Jacobians at these observations.

    Args:
        cell: A cell with `jacobian(z)`, all of whose numbers are observed.
        x: Some orbits.
        previous: The alpha so far.
        keep: How much of it stays, where less would do.
    """
    _, outputs = cell.sizes
    if x.shape[2] != outputs:
        raise ValueError(
            f"adaptive_alpha: want observations of all {outputs} numbers, got {x.shape[2]}"
        )
    with torch.no_grad():
        product = torch.eye(outputs, dtype=x.dtype).expand(len(x), -1, -1)
        log_norm = x.new_zeros(len(x))
        for jacobian in cell.jacobian(x[:, :-1]).unbind(1):
            product = jacobian @ product
            norm = torch.linalg.matrix_norm(product, 2).clamp_min(1e-30)
            product, log_norm = product / norm[:, None, None], log_norm + norm.log()
        growth = (log_norm.max() / (x.shape[1] - 1)).exp().item()
    wanted = max(0.0, 1 - 1 / growth)
    return wanted if wanted > previous else keep * previous + (1 - keep) * wanted


def free_run(cell: Any, start: Float[Tensor, "B O"], *, steps: int) -> Float[Tensor, "B T O"]:
    """What the cell says when it is set to `start` and then left alone."""
    x = start[:, None].expand(-1, steps + 1, -1)
    with torch.no_grad():
        return _forced(cell, x, [1.0] + [0.0] * (steps - 1))


def _forced(cell: Any, x: Float[Tensor, "B T O"], alphas: list[Any]) -> Float[Tensor, "B T-1 O"]:
    inputs, outputs = cell.sizes
    observed = x.shape[2]
    if not 1 <= observed <= outputs:
        raise ValueError(f"forcing: want 1 to {outputs} observed numbers, got {observed}")
    z = torch.cat([x[:, 0], x.new_zeros(len(x), outputs - observed)], 1)
    u = cell.project(x.new_zeros(len(x), 1, inputs))[:, 0]  # no input: the system is on its own
    said: list[Tensor] = []
    for alpha, seen in zip(alphas, x.unbind(1), strict=False):
        if not isinstance(alpha, float | int) or alpha:
            pull = alpha * (seen - z[:, :observed])
            z = torch.cat([z[:, :observed] + pull, z[:, observed:]], 1)
        z, _ = cell.step(u, HiddenState(z))
        said.append(z[:, :observed])
    return torch.stack(said, 1)
