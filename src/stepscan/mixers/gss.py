"""Gated state spaces (GSS, arXiv:2206.13947): a narrow diagonal state space inside a wide gate.

    u = gelu(W_u x) of width D / 4,  v = gelu(W_v x) of width 4 D
    h_t = exp(A) h_{t-1} + (exp(A) - 1) / A * u_t        A = -exp(r) + i exp(s), shared by channels
    y_t = W_o (W_y (Re(C . h_t) + skip * u_t) * v_t)

As published: no time step and no HiPPO, since random initial values serve; r, s, the two parts of C
and skip are normal. Whether the authors' code has a norm inside is not known here; this has none.
The published N is 512, and the default 64, for widths of 64 rather than 1,024.
State: B x D/4 x 2 N floats, constant in T.   Cost: O(T D N / 4), as products with a kernel of 32
tokens.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.discretize import discretize_diagonal
from stepscan.ops.ssm_conv import ssm_conv


@dataclass(frozen=True, kw_only=True)
class GSSConfig(MixerConfig):
    """Config of gated state spaces."""

    name: ClassVar[str] = "gss"
    equation: ClassVar[str] = "h = e^A h + (e^A - 1)/A u_t;  y = W_o (W_y (Re(C h) + D u_t) * v_t)"
    source: ClassVar[str] = "Mehta et al. 2022, arXiv:2206.13947"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="state space",
        transition="diagonal",
        gate="fixed",
        eigenvalues="disc",
        ops=("ssm_conv",),
    )

    state_size: int = 64
    """Complex numbers N of state per channel of u."""
    inner_ratio: float = 0.25
    """Width of u as a part of the model width."""
    gate_ratio: float = 4.0
    """Width of the gate v as a multiple of the model width."""

    def build(self, width: int) -> "GSS":
        """Build the module for a model of this width."""
        inner, gate = round(width * self.inner_ratio), round(width * self.gate_ratio)
        if self.state_size < 1 or min(inner, gate) < 1:
            raise ValueError(
                f"gss: want state_size and both widths at least 1, got {self.state_size}, "
                f"inner_ratio * width = {inner} and gate_ratio * width = {gate}"
            )
        return GSS(self, width, inner, gate)


class GSSState(NamedTuple):
    """What `GSS` carries from one stretch to the next: real and imaginary parts."""

    memory: Float[Tensor, "B E N 2"]


class GSS(Mixer[GSSState]):
    """See the module docstring."""

    no_decay = ("log_decay", "log_frequency")
    slow = ("log_decay", "log_frequency")

    def __init__(self, config: GSSConfig, width: int, inner: int, gate: int) -> None:
        super().__init__()
        self.config, self.sizes = config, (inner, gate)
        self.inputs = Linear(width, inner + gate)
        self.log_decay = nn.Parameter(torch.empty(config.state_size))
        self.log_frequency = nn.Parameter(torch.empty(config.state_size))
        self.readout = nn.Parameter(torch.empty(inner, config.state_size, 2))
        self.skip = nn.Parameter(torch.empty(inner))
        self.widen = Linear(inner, gate)
        self.out = Linear(gate, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values of the state space model."""
        for parameter in (self.log_decay, self.log_frequency, self.readout, self.skip):
            nn.init.normal_(parameter)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> GSSState:
        """Empty memory."""
        weight = self.readout
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        return GSSState(
            torch.zeros(batch, *weight.shape, device=device or weight.device, dtype=dtype)
        )

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: GSSState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], GSSState]:
        """Mix along T."""
        u, v = F.gelu(self.inputs(x)).split(self.sizes, -1)
        wide = torch.promote_types(self.log_decay.dtype, torch.float32)
        A = torch.complex(-self.log_decay.to(wide).exp(), self.log_frequency.to(wide).exp())
        log_a, b = discretize_diagonal(A[None], torch.ones_like(self.skip, dtype=wide)[:, None])
        y, memory = ssm_conv(
            u,
            log_a=log_a,
            b=b.expand_as(log_a),
            c=torch.view_as_complex(self.readout.to(wide)),
            state=None if state is None else torch.view_as_complex(state.memory.contiguous()),
            resets=resets,
        )
        y = self.out(self.widen(y + self.skip * u) * v)
        return y, GSSState(torch.view_as_real(memory))
