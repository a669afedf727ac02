"""mLSTM (xLSTM, arXiv:2405.04517): an LSTM with a matrix for a cell and an exponential input gate.

    x_t, z_t = W_up u_t;  c_t = silu(conv(x)_t)
    q_t, k_t = W_q c_t, W_k c_t;  v_t = W_v x_t;  i~_t, f~_t = W [q_t, k_t, v_t] + b
    S_t = f_t S_{t-1} + i_t k_t v_t^T;  n_t = f_t n_{t-1} + i_t k_t        f = sigmoid(f~), i = e^i~
    h_t = S_t^T q_t / max(|n_t . q_t|, 1)        q scaled by 1 / sqrt(K)
    y_t = W_down ((LayerNorm(h_t) + skip * c_t) * silu(z_t))        the norm per head

As published, the block's projections included: they map blocks of 4 channels for q, k and v. The
authors scale k in place of q: their S and n are 1 / sqrt(K) of these, y is the same. How S and n
are kept from overflowing: `ops/linear_attention.py`.
State: B x H x K x (K + 1) floats, their scale, the window's last inputs; constant in T.
Cost: O(T K^2) per head.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.convolution import ShortConv
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.linear_attention import ScaledMemory, linear_attention


@dataclass(frozen=True, kw_only=True)
class MLSTMConfig(MixerConfig):
    """Config of mLSTM."""

    name: ClassVar[str] = "mlstm"
    equation: ClassVar[str] = (
        "S = f S + e^i k_t v_t^T;  n = f n + e^i k_t;  y = S^T q / max(|n.q|, 1)"
    )
    source: ClassVar[str] = "Beck et al. 2024, arXiv:2405.04517"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="linear attention",
        transition="scalar",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("linear_attention", "short_conv"),
    )

    heads: int = 4
    """Number of heads H; must divide the inner width."""
    expansion: float = 2.0
    """Inner width E, as a multiple of the model width."""
    window: int = 4
    """Tokens seen by the convolution of queries and keys."""
    block: int = 4
    """Channels mapped together to queries, keys and values; must divide the inner width."""
    layer: int = 0
    """Which layer of the model this is; every one starts alike."""
    layers: int = 1
    """How many layers the model has: scales the initial output map."""

    def build(self, width: int) -> "MLSTM":
        """Build the module for a model of this width."""
        inner = round(width * self.expansion)
        if min(self.heads, self.block) < 1 or inner < 1 or inner % self.heads or inner % self.block:
            raise ValueError(
                f"mlstm: heads={self.heads} and block={self.block} must divide inner width {inner}"
            )
        if self.window < 1 or self.layers < 1:
            raise ValueError(
                f"mlstm: want window and layers at least 1, got {self.window} and {self.layers}"
            )
        return MLSTM(self, width, inner)


class MLSTMState(NamedTuple):
    """What `MLSTM` carries from one stretch to the next."""

    memory: Float[Tensor, "B H K K+1"]
    log_scale: Float[Tensor, "B H"]
    window: Float[Tensor, "B W-1 E"]


class MLSTM(Mixer[MLSTMState]):
    """See the module docstring."""

    def __init__(self, config: MLSTMConfig, width: int, inner: int) -> None:
        super().__init__()
        self.config = config
        blocks = inner // config.block
        self.up = Linear(width, 2 * inner, bias=False)
        self.conv = ShortConv(inner, config.window)
        self.qkv = nn.Parameter(torch.empty(3, blocks, config.block, config.block))  # out, in
        self.gates = Linear(3 * inner, 2 * config.heads)  # input gates, then forget gates
        self.norm = nn.Parameter(torch.empty(inner))
        self.skip = nn.Parameter(torch.empty(inner))
        self.down = Linear(inner, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values, those of xLSTM: the gates see no input yet."""
        width, heads = len(self.down.weight), self.config.heads
        for weight in (self.up.weight, self.qkv):
            nn.init.normal_(weight, std=(2 / (5 * width)) ** 0.5)
        nn.init.normal_(self.down.weight, std=2 / (self.config.layers * width**0.5))
        nn.init.zeros_(self.gates.weight)
        nn.init.ones_(self.norm)
        nn.init.ones_(self.skip)
        with torch.no_grad():
            self.gates.bias[:heads].normal_(std=0.1)
            self.gates.bias[heads:] = torch.linspace(3, 6, heads)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> MLSTMState:
        """Empty memory on scale 1, no inputs yet."""
        window = self.conv.init_state(batch, device=device, dtype=dtype)
        heads = self.config.heads
        head = len(self.norm) // heads
        memory = window.new_zeros(batch, heads, head, head + 1)
        return MLSTMState(memory, window.new_zeros(batch, heads), window)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: MLSTMState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], MLSTMState]:
        """Mix along T."""
        state = self.init_state(x.shape[0]) if state is None else state
        inner, z = self.up(x).chunk(2, -1)
        seen, window = self.conv(inner, state.window, resets)
        sources = torch.stack([seen, seen, inner], 2).unflatten(3, (-1, self.config.block))
        qkv = torch.einsum("btngi,ngoi->btngo", sources, self.qkv).flatten(3)
        gates = self.gates(qkv.flatten(2))
        log_input, forget = gates.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, -1)
        q, k, v = qkv.unflatten(3, (self.config.heads, -1)).unbind(2)
        h, memory = linear_attention(
            q * q.shape[-1] ** -0.5,
            k,
            v,
            log_decay=F.logsigmoid(forget),
            log_input=log_input,
            normalize="bounded",
            state=ScaledMemory(state.memory, state.log_scale),
            resets=resets,
        )
        h = F.layer_norm(h, h.shape[-1:]).flatten(2) * self.norm
        return self.down((h + self.skip * seen) * F.silu(z)), MLSTMState(*memory, window=window)
