"""The gated attention of MEGA (arXiv:2209.10655): one head, in chunks, over a summary of the past.

    z = silu(W_z m),  q = z * gamma_q + beta_q,  k = z * gamma_k + beta_k,  v = silu(W_v x)
    r = silu(W_r m),  u = sigmoid(W_u m),  h = silu(W_h m + W_o (r * attention(q, k, v)))
    y = u * (h - x)

m is x with its past, from a moving average or a convolution. Scores have a learned bias for each
distance; softmax takes q / sqrt(K). With the block's residual path x + y is the paper's output, a
gate between x and h; the paper's x before its norm is the block's, the one inside y is normed.
Initial values as published: matrices and gamma and the bias normal with 0.02, all else zero.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.projection import Linear
from stepscan.names import lookup
from stepscan.ops.chunk_attention import FUNCTIONS, ChunkState, chunk_attention


class ChunkedAttention(nn.Module):
    """See the module docstring."""

    def __init__(self, width: int, *, keys: int, values: int, chunk: int, function: str) -> None:
        super().__init__()
        lookup(FUNCTIONS, function, kind="attention")
        if min(keys, values, chunk) < 1:
            raise ValueError(
                f"want at least 1 of each, got keys {keys}, values {values}, chunk={chunk}"
            )
        self.function, self.sizes = function, (keys, values, width, width)
        self.value = Linear(width, values)
        self.gates = Linear(width, sum(self.sizes))
        self.scale = nn.Parameter(torch.empty(2, keys))
        self.shift = nn.Parameter(torch.empty(2, keys))
        self.bias = nn.Parameter(torch.empty(1, chunk))
        self.out = Linear(values, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values."""
        for layer in (self.value, self.gates, self.out):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.scale, std=0.02)
        nn.init.zeros_(self.shift)
        nn.init.normal_(self.bias, std=0.02)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> ChunkState:
        """The start of a chunk."""
        weight, slots = self.bias, self.bias.shape[1] - 1
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        device = device or weight.device
        keys, values = (
            torch.zeros(batch, slots, 1, size, device=device, dtype=dtype)
            for size in self.sizes[:2]
        )
        return ChunkState(keys, values, torch.zeros(batch, device=device, dtype=torch.int64))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        m: Float[Tensor, "B T D"],
        state: ChunkState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], ChunkState]:
        """What the residual path is to add to x."""
        z, r, u, h = self.gates(m).split(self.sizes, -1)
        z, r, u = F.silu(z), F.silu(r), torch.sigmoid(u)
        q, k = (z[..., None, :] * self.scale + self.shift).split(1, -2)  # [B T 1 K]
        if self.function == "softmax":
            q = q * self.sizes[0] ** -0.5
        v = F.silu(self.value(x))[..., None, :]
        y, state = chunk_attention(
            q, k, v, bias=self.bias, function=self.function, state=state, resets=resets
        )
        h = F.silu(h + self.out(r * y[..., 0, :]))
        return u * (h - x), state
