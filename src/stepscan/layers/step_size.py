"""The step sizes that Mamba starts from (arXiv:2312.00752)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def fill_step_bias(bias: Float[Tensor, "..."]) -> None:
    """Fill with b so that softplus(b) is log-uniform in (1e-3, 1e-1)."""
    with torch.no_grad():
        step = bias.uniform_(math.log(1e-3), math.log(1e-1)).exp()
        bias.copy_(step + (-torch.expm1(-step)).log())  # softplus turned round
