"""Depthwise causal convolution with its weights (equation and state: `ops/short_conv.py`)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepscan.ops.short_conv import short_conv


class ShortConv(nn.Module):
    """A window of `window` tokens per channel, as in front of Mamba's scan (arXiv:2312.00752).

    Initial values as there: those of a depthwise `nn.Conv1d`, uniform in +-1/sqrt(window).
    """

    def __init__(
        self, width: int, window: int = 4, activation: str | None = "silu", bias: bool = True
    ) -> None:
        super().__init__()
        if window < 1:
            raise ValueError(f"ShortConv: want window at least 1, got {window}")
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(width, window))
        self.bias = nn.Parameter(torch.empty(width)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values."""
        bound = self.weight.shape[1] ** -0.5
        for p in self.parameters():
            nn.init.uniform_(p, -bound, bound)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "B P D"]:
        """No inputs yet: zeros for the P = window - 1 before, float32 or wider."""
        width, window = self.weight.shape
        dtype = torch.promote_types(dtype or self.weight.dtype, torch.float32)
        device = device or self.weight.device
        return torch.zeros(batch, window - 1, width, device=device, dtype=dtype)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: Float[Tensor, "B P D"] | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B P D"]]:
        """Convolve along T."""
        return short_conv(
            x, self.weight, self.bias, activation=self.activation, state=state, resets=resets
        )
