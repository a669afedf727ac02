"""Positions in the plane, as LightNet gives them to linear attention (arXiv:2405.21022).

`md_lrpe`: queries and keys turn by their row in one half of the channels, and by their column in
the other, so that a score depends on the differences of rows and of columns only; the frequencies
of each half are base^(-i / pairs), those of rotary embedding (`layers/rotary.py`). Deviation: the
same for all heads, in the authors' code they go on from head to head.

`MDToeplitz` (MD-TPE): a Toeplitz matrix along each axis, an exponential one so that it is a scan,

    x + sum over axes of W RMSNorm(sum_{m <= n} lambda^(n - m) x_m)      lambda per head and axis

Published initial values: lambda the sigmoid of a standard normal number. Deviation: the authors'
code has a factor per head inside the norm as well, of which the norm leaves but the sign.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepscan.layers.projection import Linear
from stepscan.layers.rotary import turn
from stepscan.ops.linear_scan import linear_scan


def md_lrpe(x: Float[Tensor, "N R C H K"], base: float = 10000.0) -> Float[Tensor, "N R C H K"]:
    """Turn queries or keys to their places; channels beyond a multiple of 4 stay as they are."""
    (R, C), pairs = x.shape[1:3], x.shape[-1] // 4
    if not pairs:
        raise ValueError(f"md_lrpe: want at least 4 channels a head, got {x.shape[-1]}")
    speed = base ** -(torch.arange(pairs, device=x.device, dtype=torch.float64) / pairs)
    row, column = (torch.arange(n, device=x.device)[:, None] * speed for n in (R, C))
    angle = torch.cat([row[:, None].expand(R, C, -1), column.expand(R, C, -1)], -1)
    return turn(x, angle[:, :, None])


class MDToeplitz(nn.Module):
    """See the module docstring."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.randn(2, heads))
        self.norms = nn.ModuleList(nn.RMSNorm(width // heads, eps=1e-5) for _ in range(2))
        self.maps = nn.ModuleList(Linear(width, width, bias=False) for _ in range(2))

    def forward(self, x: Float[Tensor, "N R C D"]) -> Float[Tensor, "N R C D"]:
        """Nodes that know their place."""
        heads, y = self.logit.shape[1], x
        for axis, (norm, out) in enumerate(zip(self.norms, self.maps, strict=True), 1):
            lines = x.movedim(axis, 2).flatten(0, 1)  # [. n D]
            kept = self.logit[axis - 1].sigmoid().repeat_interleave(x.shape[-1] // heads)
            sums, _ = linear_scan(kept.to(x.dtype).expand_as(lines), lines)
            part = out(norm(sums.unflatten(-1, (heads, -1))).flatten(-2))
            y = y + part.unflatten(0, (len(x), -1)).movedim(2, axis)
        return y
