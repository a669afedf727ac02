"""S4 (arXiv:2111.00396): a HiPPO state space for every channel, diagonal plus low rank.

    x' = (Lambda - P P^*) x + B u        bilinear steps of length dt, N / 2 conjugate pairs
    y_t = W_o GELU(2 Re(C x_t) + skip * u_t), gated (GLU)

Initial values: the measure's matrix in the eigenvectors of its normal part, exactly; C complex
normal, log dt uniform between the logs of 1e-3 and 1e-1. Lambda, P and B are trained, per channel.
-P P^* for the paper's -P Q^* keeps it stable (Sashimi, arXiv:2202.09729); C is trained as it is,
not as C (1 - A^L), so that no length is built in. The paper's kernel, Cauchy sums and a transform,
is the form "fft" of `ops/dplr_conv.py`, causal to rounding; here chunks serve, exactly causal.
State: B x D x N floats (N / 2 complex), constant in T.   Cost: O(T D N) and O(D N^3) for powers.
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
from stepscan.ops.dplr_conv import System, dplr_conv
from stepscan.ops.hippo import LEAST_DECAY, MEASURES, normal_part


@dataclass(frozen=True, kw_only=True)
class S4Config(MixerConfig):
    """Config of S4."""

    name: ClassVar[str] = "s4"
    equation: ClassVar[str] = "x' = (Lambda - P P^*) x + B u, bilinear;  y = 2 Re(C x) + D u"
    source: ClassVar[str] = "Gu et al. 2021, arXiv:2111.00396"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="state space",
        transition="dense",
        gate="fixed",
        eigenvalues="disc",
        ops=("dplr_conv",),
    )

    state_size: int = 64
    """Real numbers of state per channel: half as many complex ones, each with its conjugate."""
    step_min: float = 1e-3
    """Shortest initial time step dt of a channel."""
    step_max: float = 1e-1
    """Longest initial time step dt of a channel."""
    init: str = "legs"
    """Initial system: a HiPPO measure."""
    step_rescale: float = 1.0
    """A factor for all dt: 2 to run a trained model on half the sampling rate."""

    def build(self, width: int) -> "S4":
        """Build the module for a model of this width."""
        if self.state_size < 2 or self.state_size % 2:
            raise ValueError(f"s4: want an even state_size, 2 or more, got {self.state_size}")
        check_steps(self.name, self.step_min, self.step_max, self.step_rescale)
        lookup(MEASURES, self.init, kind="init of s4")
        return S4(self, width)


class S4State(NamedTuple):
    """What `S4` carries from one stretch to the next: real and imaginary parts."""

    memory: Float[Tensor, "B D N 2"]


class S4(Mixer[S4State]):
    """See the module docstring."""

    no_decay = ("log_step", "log_decay", "frequency", "low_rank", "write")
    slow = ("log_step", "log_decay", "frequency", "low_rank", "write")

    def __init__(self, config: S4Config, width: int) -> None:
        super().__init__()
        self.config = config
        pairs = config.state_size // 2
        rank = MEASURES[config.init].low_rank(config.state_size).shape[1]
        self.log_step = nn.Parameter(torch.empty(width))
        self.log_decay = nn.Parameter(torch.empty(width, pairs))
        self.frequency = nn.Parameter(torch.empty(width, pairs))
        self.low_rank = nn.Parameter(torch.empty(width, rank, pairs, 2))
        self.write = nn.Parameter(torch.empty(width, pairs, 2))
        self.readout = nn.Parameter(torch.empty(width, pairs, 2))
        self.skip = nn.Parameter(torch.empty(width))
        self.out = Linear(width, 2 * width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values of the state space."""
        config = self.config
        fill_log_step(self.log_step, config.step_min, config.step_max)
        values, P, B, _ = normal_part(config.init, config.state_size)
        with torch.no_grad():
            self.log_decay.copy_(
                (-values.real).clamp(min=LEAST_DECAY).log().expand_as(self.log_decay)
            )
            self.frequency.copy_(values.imag.expand_as(self.frequency))
            self.low_rank.copy_(torch.view_as_real(P).expand_as(self.low_rank))
            self.write.copy_(torch.view_as_real(B).expand_as(self.write))
        nn.init.normal_(self.readout, std=0.5**0.5)  # a complex normal of variance 1
        nn.init.normal_(self.skip)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> S4State:
        """Empty memory."""
        weight = self.readout
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        return S4State(
            torch.zeros(batch, *weight.shape, device=device or weight.device, dtype=dtype)
        )

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: S4State | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], S4State]:
        """Mix along T."""
        memory = None if state is None else torch.view_as_complex(state.memory.contiguous())
        y, memory = dplr_conv(x, self.system(), state=memory, resets=resets)
        y = F.glu(self.out(F.gelu(y + self.skip * x)), dim=-1)
        return y, S4State(torch.view_as_real(memory))

    def system(self) -> System:
        """The continuous system that is run, float32 or wider."""
        wide = torch.promote_types(self.log_step.dtype, torch.float32)
        values = torch.complex(-self.log_decay.to(wide).exp(), self.frequency.to(wide))
        weights = (self.low_rank, self.write, self.readout)
        P, b, c = (torch.view_as_complex(w.to(wide)) for w in weights)
        dt = self.config.step_rescale * self.log_step.to(wide).exp()
        return System(values, P, b, 2 * c, dt)
