"""LSSL (arXiv:2110.13985): a linear state space layer with a dense matrix, the same at all times.

    x' = A x + B u        h_t = A_bar h_{t-1} + B_bar u_t         bilinear steps of length dt
    y_t = W_o GELU(C h_t + skip * u_t)

A and B belong to all channels; each channel has its own dt, C and state. They start as a HiPPO
measure, by default LegS; A is dense and trained freely where the paper trains a tridiagonal factor.
One output per channel (the paper's M = 1). log dt starts uniform between the logs of 1e-3 and 1e-1,
C normal with 1 / sqrt(N).
State: B x D x N floats, constant in T.   Cost: O(T D N) and O(D N^3) for powers of A.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.projection import Linear
from stepscan.layers.step_size import check_steps, fill_log_step
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.names import lookup
from stepscan.ops.discretize import METHODS, discretize
from stepscan.ops.hippo import MEASURES, hippo
from stepscan.ops.state_space import state_space


@dataclass(frozen=True, kw_only=True)
class LSSLConfig(MixerConfig):
    """Config of LSSL."""

    name: ClassVar[str] = "lssl"
    equation: ClassVar[str] = "(1 - dt A/2) h = (1 + dt A/2) h + dt B x_t;  y = C h + D x_t"
    source: ClassVar[str] = "Gu et al. 2021, arXiv:2110.13985"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="state space",
        transition="dense",
        gate="fixed",
        eigenvalues="disc",
        ops=("state_space",),
    )

    state_size: int = 64
    """Numbers N in the state of each channel."""
    step_min: float = 1e-3
    """Shortest initial time step dt of a channel."""
    step_max: float = 1e-1
    """Longest initial time step dt of a channel."""
    init: str = "legs"
    """Initial A and B: a HiPPO measure, or "random" for a stable random A."""
    discretization: str = "bilinear"
    """"bilinear", "zoh" or "euler"."""
    step_rescale: float = 1.0
    """A factor for all dt: 2 to run a trained model on half the sampling rate."""

    def build(self, width: int) -> "LSSL":
        """Build the module for a model of this width."""
        if self.state_size < 2:
            raise ValueError(f"lssl: want state_size at least 2, got {self.state_size}")
        check_steps(self.name, self.step_min, self.step_max, self.step_rescale)
        lookup(METHODS, self.discretization, kind="discretization of lssl")
        lookup({**MEASURES, "random": None}, self.init, kind="init of lssl")
        return LSSL(self, width)


class LSSLState(NamedTuple):
    """What `LSSL` carries from one stretch to the next."""

    memory: Float[Tensor, "B D N"]


class LSSL(Mixer[LSSLState]):
    """See the module docstring."""

    no_decay = ("log_step", "A", "B")
    slow = ("log_step", "A", "B")

    def __init__(self, config: LSSLConfig, width: int) -> None:
        super().__init__()
        self.config = config
        N = config.state_size
        self.log_step = nn.Parameter(torch.empty(width))
        self.A = nn.Parameter(torch.empty(N, N))
        self.B = nn.Parameter(torch.empty(N))
        self.readout = nn.Parameter(torch.empty(width, N))
        self.skip = nn.Parameter(torch.empty(width))
        self.out = Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values of the state space."""
        config, N = self.config, self.config.state_size
        fill_log_step(self.log_step, config.step_min, config.step_max)
        with torch.no_grad():
            if config.init == "random":  # eigenvalues in the disc of radius 1 around -3/2
                self.A.normal_(std=N**-0.5).sub_(1.5 * torch.eye(N, device=self.A.device))
                self.B.normal_()
            else:
                for weight, value in zip((self.A, self.B), hippo(config.init, N), strict=True):
                    weight.copy_(value)
        nn.init.normal_(self.readout, std=N**-0.5)
        nn.init.normal_(self.skip)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> LSSLState:
        """Empty memory."""
        weight = self.readout
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        return LSSLState(
            torch.zeros(batch, *weight.shape, device=device or weight.device, dtype=dtype)
        )

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: LSSLState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], LSSLState]:
        """Mix along T."""
        wide = torch.promote_types(self.A.dtype, torch.float32)
        dt = self.config.step_rescale * self.log_step.to(wide).exp()
        A, b = discretize(self.A.to(wide), self.B.to(wide), dt, self.config.discretization)
        memory = None if state is None else state.memory
        y, memory = state_space(x, A=A, b=b, c=self.readout.to(wide), state=memory, resets=resets)
        return self.out(F.gelu(y + self.skip * x)), LSSLState(memory)
