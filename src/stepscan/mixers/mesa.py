"""MesaNet (arXiv:2506.05233): each token reads the least squares fit of all values on all keys.

    H_t = gamma_t H_{t-1} + beta_t k_t k_t^T;  C_t = gamma_t C_{t-1} + beta_t k_t v_t^T
    y_t = W_o RMSNorm(C_t^T (H_t + Lambda)^-1 q_t)            the norm per head

gamma and beta are sigmoids of W x_t + b, one per head; Lambda is diagonal and learned, softplus(.)
+ 1/4, and starts at 1. q and k come through a causal window of 4 with SiLU and have unit length, v
is a linear map. The authors solve by at most 30 steps of conjugate gradients: `steps=30`; with None
the solution is exact, and on a CPU faster for heads of up to about 64 channels.
State: B x H x K x 2 K floats and the window's last inputs, constant in T.
Cost: O(T K^3) per head, or O(T K^2 steps).
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.convolution import ShortConv
from stepscan.layers.delta_inputs import unit
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.ridge_regression import ridge_regression

FLOOR = 0.25
"""The least that Lambda can become."""


@dataclass(frozen=True, kw_only=True)
class MesaConfig(MixerConfig):
    """Config of MesaNet's layer."""

    name: ClassVar[str] = "mesa"
    equation: ClassVar[str] = (
        "H = a_t H + b_t k_t k_t^T;  C = a_t C + b_t k_t v_t^T;  y = C^T (H + L)^-1 q_t"
    )
    source: ClassVar[str] = "von Oswald et al. 2025, arXiv:2506.05233"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="test-time memory",
        transition="scalar",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("ridge_regression", "short_conv"),
    )

    heads: int = 4
    """Number of heads H; must divide the width."""
    window: int = 4
    """Tokens seen by the convolution of queries and keys."""
    steps: int | None = None
    """Steps of conjugate gradients, published: 30. None: solve exactly."""

    def build(self, width: int) -> "Mesa":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"mesa: heads={self.heads} must divide width={width}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"mesa: want steps at least 1, or None to solve, got {self.steps}")
        return Mesa(self, width)


class MesaState(NamedTuple):
    """What `Mesa` carries from one stretch to the next."""

    memory: Float[Tensor, "B H K 2K"]
    """H and C, side by side."""
    window: Float[Tensor, "B window E"]


class Mesa(Mixer[MesaState]):
    """See the module docstring."""

    no_decay = ("ridge",)

    def __init__(self, config: MesaConfig, width: int) -> None:
        super().__init__()
        self.config = config
        head = width // config.heads
        self.gates = Linear(width, 2 * config.heads)
        self.qkv = Linear(width, 3 * width, bias=False)
        self.conv = ShortConv(2 * width, config.window, bias=False)
        self.ridge = nn.Parameter(torch.empty(config.heads, head))
        self.norm = nn.RMSNorm(head, eps=1e-5)
        self.out = Linear(width, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Lambda starts at 1."""
        nn.init.constant_(self.ridge, math.log(math.expm1(1 - FLOOR)))

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> MesaState:
        """Nothing to fit yet, no inputs yet."""
        window = self.conv.init_state(batch, device=device, dtype=dtype)
        heads, head = self.ridge.shape
        return MesaState(window.new_zeros(batch, heads, head, 2 * head), window)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: MesaState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], MesaState]:
        """Mix along T."""
        memory, window = (None, None) if state is None else state
        width = x.shape[-1]
        qk, v = self.qkv(x).split((2 * width, width), -1)
        qk, window = self.conv(qk, window, resets)
        q, k, v = (p.unflatten(-1, self.ridge.shape) for p in (*qk.chunk(2, -1), v))
        wide = torch.promote_types(x.dtype, torch.float32)
        decay, weight = self.gates(x).to(wide).chunk(2, -1)
        y, memory = ridge_regression(
            unit(q),
            unit(k),
            v,
            ridge=F.softplus(self.ridge.to(wide)) + FLOOR,
            weight=torch.sigmoid(weight),
            log_decay=F.logsigmoid(decay),
            steps=self.config.steps,
            state=memory,
            resets=resets,
        )
        return self.out(self.norm(y).flatten(-2)), MesaState(memory, window)
