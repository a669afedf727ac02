"""From x' = A x + b u to h_t = A_bar h_{t-1} + b_bar u_t, with a time step dt.

    zoh         A_bar = exp(dt A),  b_bar = A^-1 (exp(dt A) - 1) b        u constant over a step
    bilinear    A_bar = (1 - dt A / 2)^-1 (1 + dt A / 2),  b_bar = (1 - dt A / 2)^-1 dt b
    euler       A_bar = 1 + dt A,  b_bar = dt b                           unstable for a long dt

`bilinear` is of second order in dt and keeps what is stable stable; `zoh` is of first order for an
input that changes within a step, exact for one that does not. Sources: LSSL (arXiv:2110.13985).
"""

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn import functional as F

from stepscan.names import lookup

METHODS = dict.fromkeys(("zoh", "bilinear", "euler"))


def discretize(
    A: Float[Tensor, "*#D N N"],
    b: Float[Tensor, "*#D N"],
    dt: Float[Tensor, "*#D"],
    method: str = "bilinear",
) -> tuple[Float[Tensor, "*D N N"], Float[Tensor, "*D N"]]:
    """A_bar and b_bar of a dense system; A and b may be shared by several dt."""
    lookup(METHODS, method, kind="discretization")
    N, scale = A.shape[-1], dt[..., None, None]
    A, b = scale * A, scale * b[..., None]
    if method == "zoh":  # both at once, from the exponential of [[A, b], [0, 0]]
        both = F.pad(torch.cat([A, b], -1), (0, 0, 0, 1)).matrix_exp()
        return both[..., :N, :N], both[..., :N, N]
    eye = torch.eye(N, dtype=A.dtype, device=A.device)
    if method == "euler":
        return eye + A, b[..., 0]
    both = torch.linalg.solve(eye - A / 2, torch.cat([eye + A / 2, b], -1))
    return both[..., :N], both[..., N]


def discretize_diagonal(
    A: Complex[Tensor, "*#B N"], dt: Float[Tensor, "*#B #N"], method: str = "zoh"
) -> tuple[Complex[Tensor, "*B N"], Complex[Tensor, "*B N"]]:
    """log A_bar and b_bar / b of a diagonal system."""
    lookup(METHODS, method, kind="discretization")
    if method == "zoh":
        log_a = dt * A
        return log_a, torch.expm1(log_a) / A
    if method == "euler":
        return (1 + dt * A).log(), dt * torch.ones_like(A)
    half = dt * A / 2
    return ((1 + half) / (1 - half)).log(), dt / (1 - half)
