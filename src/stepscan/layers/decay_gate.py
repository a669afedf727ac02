"""Mamba's decay, one number per head and token, read off the input.

    log decay = -exp(log_rate) softplus(W x + step_bias)

Initial values as published with Gated DeltaNet (arXiv:2412.06464): rates uniform in (0, 16), steps
softplus(step_bias) log-uniform in (1e-3, 1e-1), as in Mamba (arXiv:2312.00752).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.step_size import fill_step_bias


class DecayGate(nn.Module):
    """See the module docstring. Its vectors, `log_rate` and `step_bias`, take no weight decay."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.step = nn.Linear(width, heads, bias=False)
        self.log_rate = nn.Parameter(torch.empty(heads))
        self.step_bias = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values of the rates and the steps."""
        with torch.no_grad():
            self.log_rate.uniform_(0, 16).clamp_(min=1e-4).log_()
        fill_step_bias(self.step_bias)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T H"]:
        """The log decays, float32 or wider."""
        wide = torch.promote_types(x.dtype, torch.float32)
        step = F.softplus(self.step(x).to(wide) + self.step_bias.to(wide))
        return -self.log_rate.to(wide).exp() * step
