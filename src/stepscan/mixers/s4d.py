"""S4D (arXiv:2206.11893): a diagonal state space model for every channel, the same at all times.

    h_t = exp(dt A) h_{t-1} + (exp(dt A) - 1) / A * x_t       A = -exp(log_decay) + i * frequency
    y_t = W_o GELU(2 Re(C . h_t) + skip * x_t), gated (GLU)   N / 2 conjugate pairs per channel

Initial values of S4D-Lin: A_n = -1/2 + i pi n, or others (`init`); C complex normal, log dt uniform
between the logs of 1e-3 and 1e-1; zero-order hold as above, or bilinear; B = 1, its gain lies in C.
`liquid` makes it Liquid-S4's recurrence (arXiv:2209.12951), whose input also says how it goes on,

    h_t = (exp(dt A) + b x_t) h_{t-1} + b x_t                 b = (exp(dt A) - 1) / A

as a whole, where the authors compute the terms of its kernel that have few factors, discretise
bilinearly and begin with HiPPO's A (`init="legs"`, `discretization="bilinear"`). Nothing bounds it.
As published, without dropout.
State: B x D x N floats (N / 2 complex), constant in T.
Cost: O(T D N), as products with a kernel of 32 tokens.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.projection import Linear
from stepscan.layers.step_size import check_steps, fill_log_step
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.names import lookup
from stepscan.ops.discretize import METHODS, discretize_diagonal
from stepscan.ops.hippo import LEAST_DECAY, diagonal
from stepscan.ops.linear_scan import linear_scan
from stepscan.ops.ssm_conv import ssm_conv


@dataclass(frozen=True, kw_only=True)
class S4DConfig(MixerConfig):
    """Config of S4D."""

    name: ClassVar[str] = "s4d"
    equation: ClassVar[str] = "h = e^(dt A) h + (e^(dt A) - 1)/A x_t;  y = 2 Re(C h) + D x_t"
    source: ClassVar[str] = "Gu et al. 2022, arXiv:2206.11893"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="state space",
        transition="diagonal",
        gate="fixed",
        eigenvalues="disc",
        ops=("ssm_conv",),
    )

    state_size: int = 64
    """Real numbers of state per channel: half as many complex ones, each with its conjugate."""
    step_min: float = 1e-3
    """Shortest initial time step dt of a channel."""
    step_max: float = 1e-1
    """Longest initial time step dt of a channel."""
    init: str = "lin"
    """Initial A: "lin", "inv", or the normal part of a HiPPO measure, "legs", "fout" and so on."""
    discretization: str = "zoh"
    """"zoh", "bilinear" or "euler"."""
    step_rescale: float = 1.0
    """A factor for all dt: 2 to run a trained model on half the sampling rate."""
    liquid: bool = False
    """Let the input change the transition, as in Liquid-S4; memory of training grows by N."""

    def build(self, width: int) -> "S4D":
        """Build the module for a model of this width."""
        if self.state_size < 2 or self.state_size % 2:
            raise ValueError(f"s4d: want an even state_size, 2 or more, got {self.state_size}")
        check_steps(self.name, self.step_min, self.step_max, self.step_rescale)
        lookup(METHODS, self.discretization, kind="discretization of s4d")
        return S4D(self, width)


class S4DState(NamedTuple):
    """What `S4D` carries from one stretch to the next: real and imaginary parts."""

    memory: Float[Tensor, "B D N 2"]


class S4D(Mixer[S4DState]):
    """See the module docstring."""

    no_decay = ("log_step", "log_decay", "frequency")
    slow = ("log_step", "log_decay", "frequency")

    def __init__(self, config: S4DConfig, width: int) -> None:
        super().__init__()
        self.config = config
        pairs = config.state_size // 2
        self.log_step = nn.Parameter(torch.empty(width))
        self.log_decay = nn.Parameter(torch.empty(width, pairs))
        self.frequency = nn.Parameter(torch.empty(width, pairs))
        self.readout = nn.Parameter(torch.empty(width, pairs, 2))
        self.skip = nn.Parameter(torch.empty(width))
        self.out = Linear(width, 2 * width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values of the state space model."""
        config, A = self.config, diagonal(self.config.init, self.frequency.shape[1])
        fill_log_step(self.log_step, config.step_min, config.step_max)
        with torch.no_grad():
            self.log_decay.copy_((-A.real).clamp(min=LEAST_DECAY).log().expand_as(self.log_decay))
            self.frequency.copy_(A.imag.expand_as(self.frequency))
        nn.init.normal_(self.readout, std=0.5**0.5)  # a complex normal of variance 1
        nn.init.normal_(self.skip)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> S4DState:
        """Empty memory."""
        weight = self.readout
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        return S4DState(
            torch.zeros(batch, *weight.shape, device=device or weight.device, dtype=dtype)
        )

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: S4DState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], S4DState]:
        """Mix along T."""
        wide = torch.promote_types(self.log_step.dtype, torch.float32)  # bf16 knows no pi n dt
        A = torch.complex(-self.log_decay.to(wide).exp(), self.frequency.to(wide))
        dt = self.config.step_rescale * self.log_step.to(wide).exp()[:, None]
        log_a, b = discretize_diagonal(A, dt, self.config.discretization)
        c = 2 * torch.view_as_complex(self.readout.to(wide))
        before = None if state is None else torch.view_as_complex(state.memory.contiguous())
        run = _liquid if self.config.liquid else ssm_conv
        y, memory = run(x, log_a=log_a, b=b, c=c, state=before, resets=resets)
        y = F.glu(self.out(F.gelu(y + self.skip * x)), dim=-1)
        return y, S4DState(torch.view_as_real(memory))


def _liquid(
    x: Float[Tensor, "B T D"],
    *,
    log_a: Complex[Tensor, "D N"],
    b: Complex[Tensor, "D N"],
    c: Complex[Tensor, "D N"],
    state: Complex[Tensor, "B D N"] | None,
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T D"], Complex[Tensor, "B D N"]]:
    """The arguments and results of `ssm_conv`, with b x in the transition."""
    write = b * x[..., None]
    h, last = linear_scan(
        (log_a.exp() + write).flatten(2),
        write.flatten(2),
        state=None if state is None else state.flatten(1),
        resets=resets,
    )
    y = (c * h.unflatten(2, c.shape)).real.sum(-1)
    return y.to(x.dtype), last.unflatten(1, c.shape)
