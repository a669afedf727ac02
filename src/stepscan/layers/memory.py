"""What the mixers share whose memory learns at test time (`ops/test_time_scan.py`).

    q, k, v = SiLU(conv(W x))                   a causal window per channel; q, k of unit length
    gates   = W_g x + b                         numbers per head and token, before their sigmoids

`window=None` leaves out the convolution with its SiLU. Sources: Titans (arXiv:2501.00663) and Miras
(arXiv:2504.13173) for the inputs, TTT (arXiv:2407.04620) for the memory with its residual norm.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepscan.layers.convolution import ShortConv
from stepscan.layers.delta_inputs import unit
from stepscan.layers.projection import Linear
from stepscan.ops import test_time_scan as scan
from stepscan.ops.memory_network import Rule


class MemoryInputs(nn.Module):
    """Queries, keys, values and gates; `gates` holds a first bias for each of them."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        window: int | None,
        normalize: bool = True,
        gates: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads={heads} must divide width={width}")
        self.heads, self.normalize = heads, normalize
        self.qkv = Linear(width, 3 * width, bias=False)
        self.conv = None if window is None else ShortConv(3 * width, window, bias=False)
        self.gates = Linear(width, len(gates) * heads) if gates else None
        if self.gates is not None:
            with torch.no_grad():
                self.gates.bias.copy_(torch.tensor(gates).repeat_interleave(heads))

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "B window E"]:
        """The convolution's: no inputs yet."""
        if self.conv is not None:
            return self.conv.init_state(batch, device=device, dtype=dtype)
        dtype = torch.promote_types(dtype or self.qkv.weight.dtype, torch.float32)
        device = device or self.qkv.weight.device
        return torch.zeros(batch, 0, len(self.qkv.weight), device=device, dtype=dtype)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: Float[Tensor, "B window E"] | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[list[Tensor], list[Tensor], Float[Tensor, "B window E"]]:
        """q, k, v [B T H K]; the gates [B T H]; the state."""
        qkv = self.qkv(x)
        if self.conv is not None:
            qkv, state = self.conv(qkv, state, resets)
        elif state is None:
            state = self.init_state(len(x))
        qkv = rearrange(qkv, "b t (n h k) -> n b t h k", n=3, h=self.heads)
        q, k, v = qkv.unbind(0)
        if self.normalize:
            q, k = unit(q), unit(k)
        logits = [] if self.gates is None else list(self.gates(x).split(self.heads, -1))
        return [q, k, v], logits, state


class LearnedMemory(nn.Module):
    """The memory of each head: its initial values, which the outer model learns, and its rule.

    Layers are normal with `std`, by default 1 / sqrt(inputs); biases zero; the norm starts at 1
    and 0. With "q_norm" a layer's A starts with |A|_q = 1, so that W = A; with "softmax" it is
    standard normal, as W sums to one over the inputs anyway.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        heads: int,
        rule: Rule,
        bias: bool = False,
        normed: bool = True,
        momentum: bool = False,
        std: float | None = None,
    ) -> None:
        super().__init__()
        self.rule, self.keys, self.momentum, self.std, self.bias = (
            rule, sizes[0], momentum, std, bias,
        )  # fmt: skip
        self.layers = nn.ParameterList(
            torch.empty(heads, inputs + bias, outputs) for inputs, outputs in pairwise(sizes)
        )
        self.norm_weight = nn.Parameter(torch.empty(heads, sizes[-1])) if normed else None
        self.norm_bias = nn.Parameter(torch.empty(heads, sizes[-1])) if normed else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fresh initial values."""
        for W in self.layers:
            W.normal_(std=self.std or (W.shape[1] - self.bias) ** -0.5)
            if self.rule.retention == "q_norm":
                W.div_(torch.linalg.vector_norm(W, self.rule.norm_power, (1, 2), keepdim=True))
            if self.rule.retention == "softmax":
                W.normal_()
            if self.bias:
                W[:, -1].zero_()
        if self.norm_weight is not None and self.norm_bias is not None:
            self.norm_weight.fill_(1.0)
            self.norm_bias.zero_()

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> scan.MemoryState:
        """The memory before it has learned anything."""
        dtype = torch.promote_types(dtype or self.layers[0].dtype, torch.float32)
        init = [W.to(device or W.device, dtype) for W in self.layers]
        return scan.init_state(batch, init, self.rule, keys=self.keys, momentum=self.momentum)

    def forward(
        self,
        q: Float[Tensor, "B T H K"],
        k: Float[Tensor, "B T H K"],
        v: Float[Tensor, "B T H V"],
        *,
        rate: Float[Tensor, "B T H"],
        log_decay: Float[Tensor, "B T H"] | None = None,
        momentum: Float[Tensor, "B T H"] | None = None,
        weight: Float[Tensor, "B T H"] | None = None,
        threshold: Float[Tensor, "B T H"] | None = None,
        scale: Float[Tensor, "B T H"] | None = None,
        state: scan.MemoryState | None,
        resets: Bool[Tensor, "B T"] | None,
    ) -> tuple[Float[Tensor, "B T H V"], scan.MemoryState]:
        """Learn and read: the arguments of `test_time_scan`."""
        norm = None
        if self.norm_weight is not None and self.norm_bias is not None:
            norm = self.norm_weight, self.norm_bias
        return scan.test_time_scan(
            q, k, v, init=tuple(self.layers), rate=rate, rule=self.rule, log_decay=log_decay,
            momentum=momentum, weight=weight, threshold=threshold, scale=scale, norm=norm,
            state=state, resets=resets,
        )  # fmt: skip
