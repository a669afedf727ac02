"""Griffin's recurrent block (arXiv:2402.19427): a gated linear recurrence per channel, the RG-LRU.

    u_t = conv(W_x x)_t + b                                    a causal window per channel
    r_t, i_t = sigmoid(W_r u_t + b_r), sigmoid(W_i u_t + b_i)  blocks on the diagonal, H each
    log a_t = -8 r_t softplus(rate)
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t u_t)
    y_t = W_o (h_t * gelu(W_g x_t))                            gelu's tanh approximation

The first token after a fresh start or a reset enters without sqrt(1 - a_t^2), as in the authors'
released code: nothing is before it for whose variance it would have to make room. The paper does
not say so, and with `whole_start=False` it is not so.
Initial values: rates such that a^2 at r = 1/8 is uniform in (0.9^2, 0.999^2), all biases 0, all
weights normal: W_x and W_g of variance 1 / D, the window of 0.01 / W, W_r and W_i of 0.01 H / E,
W_o of 2 / (layers E), as in released ports of the authors' code; the paper has a at r = 1 in (0.9,
0.999). The width is that of the paper, 4/3 of the model's, rounded to a multiple of H.
State: B x E floats, the window's last inputs and a counter, constant in T.
Cost: O(T E), besides the projections.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.convolution import ShortConv
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.linear_scan import linear_scan
from stepscan.ops.positions import positions


@dataclass(frozen=True, kw_only=True)
class RGLRUConfig(MixerConfig):
    """Config of Griffin's recurrent block."""

    name: ClassVar[str] = "rg_lru"
    equation: ClassVar[str] = "h = a_t h + sqrt(1 - a_t^2) i_t u_t;  log a_t = -8 r_t softplus(c)"
    source: ClassVar[str] = "De et al. 2024, arXiv:2402.19427"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="gated RNN",
        transition="diagonal",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("linear_scan", "short_conv"),
    )

    heads: int = 4
    """Blocks H of the gates' maps; the inner width is rounded to a multiple of it."""
    expansion: float = 4 / 3
    """Inner width E, as a multiple of the model width."""
    window: int = 4
    """Tokens seen by the convolution in front of the recurrence."""
    whole_start: bool = True
    """Let the first token in undamped, as the authors' code does; the paper names no exception."""
    layer: int = 0
    """Which layer of the model this is; every one starts alike."""
    layers: int = 1
    """How many layers the model has: scales the initial output map."""

    def build(self, width: int) -> "RGLRU":
        """Build the module for a model of this width."""
        if min(self.heads, self.window, self.layers) < 1:
            raise ValueError(
                "rg_lru: want heads, window and layers at least 1, "
                f"got {self.heads}, {self.window} and {self.layers}"
            )
        inner = self.heads * round(width * self.expansion / self.heads)
        if inner < 1:
            raise ValueError(
                f"rg_lru: width={width} times expansion={self.expansion} is less than one channel "
                f"for each of heads={self.heads}"
            )
        return RGLRU(self, width, inner)


class RGLRUState(NamedTuple):
    """What `RGLRU` carries from one stretch to the next."""

    hidden: Float[Tensor, "B E"]
    window: Float[Tensor, "B W-1 E"]
    length: Int[Tensor, "B"]


class RGLRU(Mixer[RGLRUState]):
    """See the module docstring."""

    def __init__(self, config: RGLRUConfig, width: int, inner: int) -> None:
        super().__init__()
        self.config = config
        self.input = Linear(width, inner)
        self.gate = Linear(width, inner)
        self.conv = ShortConv(inner, config.window, activation=None)
        block = inner // config.heads
        self.gate_weight = nn.Parameter(torch.empty(2, config.heads, block, block))  # out, in
        self.gate_bias = nn.Parameter(torch.empty(2, inner))  # of r, of i
        self.rate = nn.Parameter(torch.empty(inner))
        self.out = Linear(inner, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values."""
        width, inner = self.out.weight.shape
        block, window = self.gate_weight.shape[-1], self.config.window
        for weight, variance in (
            (self.input.weight, 1 / width),
            (self.gate.weight, 1 / width),
            (self.conv.weight, 0.01 / window),
            (self.gate_weight, 0.01 / block),
            (self.out.weight, 2 / (self.config.layers * inner)),
        ):
            nn.init.normal_(weight, std=variance**0.5)
        for bias in (
            self.input.bias,
            self.gate.bias,
            self.conv.bias,
            self.gate_bias,
            self.out.bias,
        ):
            assert bias is not None
            nn.init.zeros_(bias)
        with torch.no_grad():
            decay = -0.5 * torch.empty_like(self.rate).uniform_(0.9**2, 0.999**2).log()
            self.rate.copy_(decay.expm1().log())  # softplus(rate) = decay

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> RGLRUState:
        """Zero hidden state, no inputs yet."""
        window = self.conv.init_state(batch, device=device, dtype=dtype)
        hidden = window.new_zeros(batch, len(self.rate))
        return RGLRUState(hidden, window, hidden.new_zeros(batch, dtype=torch.int64))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: RGLRUState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], RGLRUState]:
        """Mix along T."""
        hidden, window, length = self.init_state(len(x)) if state is None else state
        u, window = self.conv(self.input(x), window, resets)
        blocks = u.unflatten(-1, self.gate_weight.shape[1:3])
        logits = torch.einsum("bthi,ghoi->gbtho", blocks, self.gate_weight).flatten(-2)
        wide = torch.promote_types(x.dtype, torch.float32)
        r, i = torch.sigmoid((logits + self.gate_bias[:, None, None]).to(wide))
        log_decay = -8 * r * F.softplus(self.rate.to(wide))
        # The bound keeps the root's slope finite where a gate is so shut that 1 - a^2 is no number.
        room = (-torch.expm1(2 * log_decay)).clamp(min=torch.finfo(wide).tiny).sqrt()
        if resets is None:
            place = length[:, None] + torch.arange(x.shape[1], device=x.device)
        else:
            place = positions(length, resets)
        if self.config.whole_start:
            room = torch.where((place == 0)[..., None], 1.0, room)
        length = torch.cat([length[:, None], place + 1], 1)[:, -1]
        h, hidden = linear_scan(log_decay.exp(), room * i * u.to(wide), state=hidden, resets=resets)
        gate = F.gelu(self.gate(x), approximate="tanh")
        return self.out(h.to(x.dtype) * gate), RGLRUState(hidden, window, length.clone())
