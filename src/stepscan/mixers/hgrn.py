"""HGRN (arXiv:2311.04823): a gated linear recurrence that turns, its forget gates above a floor.

    alpha_t = gamma + (1 - gamma) sigmoid(W_f x_t)                  gamma = 0 in the lowest layer
    h_t = alpha_t e^(i theta) h_{t-1} + (1 - alpha_t) c_t           h, c complex, theta per channel
    y_t = W_o (RMSNorm([Re h_t, Im h_t]) * silu(W_g x_t))

The real and the imaginary part of c_t are silu(W_i x_t). theta starts at 10000^(-d / D), as rotary
positions do, and is learned. `rotation=False` is the real recurrence with h and c real, the form in
which HGRN is mostly run now. Floors: `layers/lower_bound.py`. Uncertain: the order of norm and gate
(later code of the authors has the norm first, as here).
State: B x D complex numbers, constant in T.   Cost: O(T D) beside the projections.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.lower_bound import log_forget, lower_bound
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.linear_scan import linear_scan


@dataclass(frozen=True, kw_only=True)
class HGRNConfig(MixerConfig):
    """Config of HGRN."""

    name: ClassVar[str] = "hgrn"
    equation: ClassVar[str] = "h = a_t exp(i theta) h + (1 - a_t) c_t;  y = [Re h, Im h]"
    source: ClassVar[str] = "Qin et al. 2023, arXiv:2311.04823"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="gated RNN",
        transition="diagonal",
        gate="input",
        eigenvalues="disc",
        ops=("linear_scan",),
    )

    rotation: bool = True
    """Complex hidden state that turns by an angle per channel; without it a real one."""
    layer: int = 0
    """Which layer of the model this is, 0 the lowest: sets the initial lower bound."""
    layers: int = 1
    """How many layers the model has."""

    def build(self, width: int) -> "HGRN":
        """Build the module for a model of this width."""
        return HGRN(self, width)


class HGRNState(NamedTuple):
    """What `HGRN` carries from one stretch to the next."""

    hidden: Float[Tensor, "B D parts"]
    """Real and imaginary part, or the real one."""


class HGRN(Mixer[HGRNState]):
    """See the module docstring."""

    no_decay = ("bound", "angle")

    def __init__(self, config: HGRNConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.parts = 2 if config.rotation else 1
        inner = self.parts * width
        self.sizes = (width, inner, inner)  # forget gates, inputs, output gates
        self.inputs = Linear(width, sum(self.sizes), bias=False)
        self.angle = nn.Parameter(torch.empty(width)) if config.rotation else None
        self.bound = lower_bound(width, config.layer, config.layers)
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out = Linear(inner, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values of the angles."""
        if self.angle is not None:
            with torch.no_grad():
                self.angle.copy_(10000.0 ** -(torch.arange(len(self.angle)) / len(self.angle)))

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> HGRNState:
        """Zero hidden state."""
        weight = self.out.weight
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        shape = batch, len(weight), self.parts
        return HGRNState(torch.zeros(shape, device=device or weight.device, dtype=dtype))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: HGRNState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], HGRNState]:
        """Mix along T."""
        hidden = (self.init_state(len(x)) if state is None else state).hidden
        f, c, gate = self.inputs(x).split(self.sizes, -1)
        g = log_forget(f, self.bound)
        written = -torch.expm1(g)[..., None] * F.silu(c).unflatten(-1, (-1, self.parts))
        decay, hidden = g.exp(), hidden.to(torch.promote_types(g.dtype, hidden.dtype))
        if self.angle is None:
            h, hidden = linear_scan(
                decay, written.squeeze(-1), state=hidden.squeeze(-1), resets=resets
            )
            return self._read(h, gate, x), HGRNState(hidden[..., None])
        angle = self.angle.to(g.dtype)
        h, last = linear_scan(
            torch.complex(decay * angle.cos(), decay * angle.sin()),
            torch.view_as_complex(written.contiguous()),
            state=torch.view_as_complex(hidden.contiguous()),
            resets=resets,
        )
        return self._read(torch.view_as_real(h).flatten(-2), gate, x), HGRNState(
            torch.view_as_real(last)
        )

    def _read(self, h: Tensor, gate: Tensor, x: Tensor) -> Tensor:
        return self.out(self.norm(h.to(x.dtype)) * F.silu(gate))
