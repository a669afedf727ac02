"""The mLSTM of xLSTM 7B (arXiv:2503.13427): at the width of the model, without convolution.

    q_t, k_t, v_t = W_q x_t, W_k x_t, W_v x_t                         q scaled by 1 / sqrt(K)
    i~_t, f~_t = cap(W_i x_t + b_i), cap(W_f x_t + b_f)               cap(z) = c tanh(z / c)
    S_t = f_t S_{t-1} + i_t k_t v_t^T;  n_t = f_t n_{t-1} + i_t k_t   f = sigmoid(f~), i = e^i~
    h_t = S_t^T q_t / max(|n_t . q_t|, 1)
    y_t = W_o (sigmoid(W_g x_t) * LayerNorm(h_t))                     the norm per head, no bias

The recurrence is that of `mlstm`; the block around it is not: it is meant to stand before a
channel mixer, as attention does. Queries and keys have half the width of the values. As published,
gates see no input at first, input gates start at e^-10 and forget gates at sigmoid of 3 to 6.
State: B x H x K x (V + 1) floats and their scale, constant in T.   Cost: O(T K V) per head.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.linear_attention import ScaledMemory, linear_attention


@dataclass(frozen=True, kw_only=True)
class MLSTMLargeConfig(MixerConfig):
    """Config of the mLSTM of xLSTM 7B."""

    name: ClassVar[str] = "mlstm_large"
    equation: ClassVar[str] = (
        "S = f S + e^i k_t v_t^T;  n = f n + e^i k_t;  y = S^T q / max(|n.q|, 1)"
    )
    source: ClassVar[str] = "Beck et al. 2025, arXiv:2503.13427"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="linear attention",
        transition="scalar",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("linear_attention",),
    )

    heads: int = 4
    """Number of heads H; must divide the widths of keys and values."""
    key_ratio: float = 0.5
    """Width of all keys together, as a multiple of the model width."""
    value_ratio: float = 1.0
    """Width of all values together, as a multiple of the model width."""
    gate_cap: float | None = 15.0
    """Bound c of the gates' inputs. None: no bound."""
    norm_eps: float = 1e-6
    """Added to the variance in the norm of what a head reads."""
    layer: int = 0
    """Which layer of the model this is; every one starts alike."""
    layers: int = 1
    """How many layers the model has: scales the initial output map."""

    def build(self, width: int) -> "MLSTMLarge":
        """Build the module for a model of this width."""
        keys, values = round(width * self.key_ratio), round(width * self.value_ratio)
        if min(self.heads, keys, values) < 1 or keys % self.heads or values % self.heads:
            raise ValueError(
                f"mlstm_large: heads={self.heads} must divide the keys={keys} and values={values}"
            )
        if self.gate_cap is not None and not self.gate_cap > 0:
            raise ValueError(f"mlstm_large: want gate_cap above 0 or None, got {self.gate_cap}")
        if self.layers < 1:
            raise ValueError(f"mlstm_large: want layers at least 1, got {self.layers}")
        return MLSTMLarge(self, width, keys, values)


class MLSTMLarge(Mixer[ScaledMemory]):
    """See the module docstring."""

    def __init__(self, config: MLSTMLargeConfig, width: int, keys: int, values: int) -> None:
        super().__init__()
        self.config = config
        self.sizes = keys, keys, values, values
        self.inputs = Linear(width, sum(self.sizes), bias=False)  # q, k, v, output gates
        self.gates = Linear(width, 2 * config.heads)  # input gates, then forget gates
        self.norm = nn.Parameter(torch.empty(values))
        self.out = Linear(values, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values."""
        width, heads = len(self.out.weight), self.config.heads
        nn.init.normal_(self.inputs.weight, std=(2 / (5 * width)) ** 0.5)
        nn.init.normal_(self.out.weight, std=2 / (self.config.layers * width**0.5))
        nn.init.zeros_(self.gates.weight)
        nn.init.ones_(self.norm)
        with torch.no_grad():
            self.gates.bias[:heads] = -10.0
            self.gates.bias[heads:] = torch.linspace(3, 6, heads)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> ScaledMemory:
        """Empty memory on scale 1."""
        heads, weight = self.config.heads, self.norm
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        shape = batch, heads, self.sizes[0] // heads, self.sizes[2] // heads + 1
        memory = torch.zeros(shape, device=device or weight.device, dtype=dtype)
        return ScaledMemory(memory, memory.new_zeros(batch, heads))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: ScaledMemory | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], ScaledMemory]:
        """Mix along T."""
        *qkv, gate = self.inputs(x).split(self.sizes, -1)
        q, k, v = (part.unflatten(-1, (self.config.heads, -1)) for part in qkv)
        gates = self.gates(x).to(torch.promote_types(x.dtype, torch.float32))
        if (cap := self.config.gate_cap) is not None:
            gates = cap * torch.tanh(gates / cap)
        log_input, forget = gates.chunk(2, -1)
        h, state = linear_attention(
            q * q.shape[-1] ** -0.5,
            k,
            v,
            log_decay=F.logsigmoid(forget),
            log_input=log_input,
            normalize="bounded",
            state=state,
            resets=resets,
        )
        h = F.layer_norm(h, h.shape[-1:], eps=self.config.norm_eps).flatten(2) * self.norm
        return self.out(torch.sigmoid(gate) * h), state
