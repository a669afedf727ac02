"""The time steps that state spaces start from: log-uniform (arXiv:2110.13985, arXiv:2312.00752)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


def fill_step_bias(bias: Float[Tensor, "..."], low: float = 1e-3, high: float = 1e-1) -> None:
    """Fill with b so that softplus(b) is log-uniform in (low, high)."""
    with torch.no_grad():
        step = bias.uniform_(math.log(low), math.log(high)).exp()
        bias.copy_(step + (-torch.expm1(-step)).log())  # softplus turned round


def check_steps(name: str, low: float, high: float, rescale: float) -> None:
    """Reject a range of initial steps, or a factor for them, that no mixer can have."""
    if not 0 < low <= high:
        raise ValueError(f"{name}: want 0 < step_min <= step_max, got {low} and {high}")
    if not rescale > 0:
        raise ValueError(f"{name}: want step_rescale above 0, got {rescale}")


def fill_log_step(log_step: Float[Tensor, "..."], low: float, high: float) -> None:
    """Fill with logs of steps, log-uniform between the two."""
    nn.init.uniform_(log_step, math.log(low), math.log(high))
