"""Mamba's decay, read off the input: one number per head and token, or one per key channel.

    log decay = -exp(log_rate) softplus(W x + step_bias)

One rate per head; with `channels` one step for each of them, and W of rank `channels`, as in Kimi
Delta Attention (arXiv:2510.26692). Initial values as published with Gated DeltaNet
(arXiv:2412.06464): rates uniform in (0, 16), with `channels` in (1, 16); steps
softplus(step_bias) log-uniform in (1e-3, 1e-1), as in Mamba (arXiv:2312.00752).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.projection import Linear
from stepscan.layers.step_size import fill_step_bias


class DecayGate(nn.Module):
    """See the module docstring. `log_rate` and `step_bias` take no weight decay."""

    def __init__(self, width: int, heads: int, channels: int | None = None) -> None:
        super().__init__()
        if channels is None:
            self.step: nn.Module = Linear(width, heads, bias=False)
        else:
            down, up = (width, channels), (channels, heads * channels)
            self.step = nn.Sequential(Linear(*down, bias=False), Linear(*up, bias=False))
        self.log_rate = nn.Parameter(torch.empty(heads))
        self.step_bias = nn.Parameter(
            torch.empty(heads) if channels is None else torch.empty(heads, channels)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values of the rates and the steps."""
        with torch.no_grad():
            low = float(self.step_bias.ndim > 1)
            self.log_rate.uniform_(low, 16).clamp_(min=1e-4).log_()
        fill_step_bias(self.step_bias)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T H *K"]:
        """The log decays, float32 or wider."""
        wide = torch.promote_types(x.dtype, torch.float32)
        bias, rate = self.step_bias.to(wide), self.log_rate.to(wide).exp()
        step = F.softplus(self.step(x).to(wide).unflatten(-1, bias.shape) + bias)
        return -rate.view(-1, *(1 for _ in bias.shape[1:])) * step
