"""The linear recurrent unit (LRU, arXiv:2303.06349): a stable complex diagonal recurrence.

    lambda = exp(-exp(log_nu) + i * exp(log_theta))           |lambda| < 1 whatever is learned
    h_t = lambda * h_{t-1} + exp(log_gamma) * (B x_t)         h, lambda: complex [N]
    y_t = Re(C h_t) + skip * x_t

As published: lambda starts uniform on the ring between two radii, gamma as sqrt(1 - |lambda|^2),
which gives every h the variance of x. The paper's block puts a GLU behind this layer: here that is
the channel mixer of the model.
State: B x N complex numbers, constant in T.   Cost: O(T (D N + N)).
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.linear_scan import linear_scan
from stepscan.ops.projection import project


@dataclass(frozen=True, kw_only=True)
class LRUConfig(MixerConfig):
    """Config of the linear recurrent unit."""

    name: ClassVar[str] = "lru"
    equation: ClassVar[str] = "h = lambda h + gamma B x_t;  y = Re(C h) + D x_t;  lambda complex"
    source: ClassVar[str] = "Orvieto et al. 2023, arXiv:2303.06349"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="state space",
        transition="diagonal",
        gate="fixed",
        eigenvalues="disc",
        ops=("linear_scan",),
    )

    expansion: float = 1.0
    """Number of complex states N, as a multiple of the model width."""
    radius_min: float = 0.0
    """Smallest initial |lambda|: towards 1 for longer memory."""
    radius_max: float = 1.0
    """Largest initial |lambda|."""
    phase_max: float = 2 * math.pi
    """Largest initial phase of lambda: smaller for smoother and longer memory."""

    def build(self, width: int) -> "LRU":
        """Build the module for a model of this width."""
        inner = round(width * self.expansion)
        if inner < 1:
            raise ValueError(f"lru: expansion={self.expansion} leaves no hidden state")
        if not 0 <= self.radius_min < self.radius_max <= 1 or not self.phase_max > 0:
            raise ValueError(
                "lru: want 0 <= radius_min < radius_max <= 1 and phase_max > 0, "
                f"got {self.radius_min}, {self.radius_max} and {self.phase_max}"
            )
        return LRU(self, width, inner)


class LRUState(NamedTuple):
    """What `LRU` carries from one stretch to the next: real and imaginary parts."""

    hidden: Float[Tensor, "B N 2"]


class LRU(Mixer[LRUState]):
    """See the module docstring."""

    no_decay = ("log_nu", "log_theta", "log_gamma")
    slow = ("log_nu", "log_theta")

    def __init__(self, config: LRUConfig, width: int, inner: int) -> None:
        super().__init__()
        self.config = config
        self.log_nu = nn.Parameter(torch.empty(inner))
        self.log_theta = nn.Parameter(torch.empty(inner))
        self.log_gamma = nn.Parameter(torch.empty(inner))
        self.write = nn.Parameter(torch.empty(2, inner, width))  # real and imaginary part of B
        self.read = nn.Parameter(torch.empty(2, width, inner))  # real and imaginary part of C
        self.skip = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values: the ring, and the gain that belongs to it."""
        config, (_, width, inner) = self.config, self.read.shape
        low, high = config.radius_min**2, config.radius_max**2
        with torch.no_grad():
            tiny = torch.finfo(self.log_nu.dtype).eps  # a uniform number may be 0, its log not
            part = self.log_nu.new_empty(inner).uniform_(tiny, 1 - tiny)
            nu = -0.5 * (part * (high - low) + low).log()
            self.log_nu.copy_(nu.log())
            self.log_theta.uniform_(tiny, 1).mul_(config.phase_max).log_()
            self.log_gamma.copy_(0.5 * (-torch.expm1(-2 * nu)).log())
        nn.init.normal_(self.write, std=(2 * width) ** -0.5)
        nn.init.normal_(self.read, std=inner**-0.5)
        nn.init.normal_(self.skip)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> LRUState:
        """Zero hidden state."""
        weight = self.log_nu
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        shape = batch, *weight.shape, 2
        return LRUState(torch.zeros(shape, device=device or weight.device, dtype=dtype))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: LRUState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], LRUState]:
        """Mix along T."""
        wide = torch.promote_types(self.log_nu.dtype, torch.float32)
        hidden = None if state is None else torch.view_as_complex(state.hidden.contiguous())
        decay = torch.polar((-self.log_nu.to(wide).exp()).exp(), self.log_theta.to(wide).exp())
        gain = self.log_gamma.to(wide).exp()
        written = torch.complex(*(gain * project(x, part).to(wide) for part in self.write))
        h, hidden = linear_scan(decay.expand_as(written), written, state=hidden, resets=resets)
        real, imaginary = (part.to(x.dtype) for part in (h.real, h.imag))
        y = project(real, self.read[0]) - project(imaginary, self.read[1]) + self.skip * x
        return y, LRUState(torch.view_as_real(hidden))
