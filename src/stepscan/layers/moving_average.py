"""The multi-dimensional damped exponential moving average of MEGA (arXiv:2209.10655).

    h_t = (1 - alpha delta) h_{t-1} + alpha beta x_t        N per channel; alpha, delta: sigmoids
    y_t = sum_n gamma_n h_tn / sqrt(N) + omega x_t

Initial values as published: the logits of alpha and delta normal with 0.2, beta alternately 1 and
-1 with noise of 0.02, gamma and omega standard normal.
State: B x D x N floats.   Cost: O(T D N).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepscan.ops.linear_scan import linear_scan


class MovingAverage(nn.Module):
    """See the module docstring. `states` is N."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        if states < 1:
            raise ValueError(f"moving average: want states at least 1, got {states}")
        self.alpha, self.delta, self.beta, self.gamma = (
            nn.Parameter(torch.empty(width, states)) for _ in range(4)
        )
        self.omega = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fresh initial values."""
        self.alpha.normal_(std=0.2)
        self.delta.normal_(std=0.2)
        self.beta.normal_(std=0.02).add_((-1.0) ** torch.arange(self.beta.shape[1]))
        self.gamma.normal_()
        self.omega.normal_()

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "B D N"]:
        """Nothing yet."""
        dtype = torch.promote_types(dtype or self.alpha.dtype, torch.float32)
        device = device or self.alpha.device
        return torch.zeros(batch, *self.alpha.shape, device=device, dtype=dtype)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: Float[Tensor, "B D N"],
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B D N"]]:
        """Average along T."""
        wide = (p.to(state.dtype) for p in (self.alpha, self.delta, self.beta, self.gamma))
        alpha, delta, beta, gamma = wide
        alpha = alpha.sigmoid()
        written = (alpha * beta * x[..., None].to(state.dtype)).flatten(2)
        kept = (1 - alpha * delta.sigmoid()).flatten().expand_as(written)
        h, last = linear_scan(kept, written, state=state.flatten(1), resets=resets)
        y = (h.unflatten(2, gamma.shape) * gamma).sum(-1) * gamma.shape[1] ** -0.5
        return y.to(x.dtype) + self.omega * x, last.view_as(state)
