"""S5 (arXiv:2208.04933): one diagonal state space for all channels together, with a scan.

    h_t = exp(dt Lambda) h_{t-1} + Lambda^-1 (exp(dt Lambda) - 1) B u_t       h: N / 2 pairs
    y_t = GELU(2 Re(C h_t) + skip * u_t),  out_t = y_t * sigmoid(W y_t)

Initial values: Lambda and its eigenvectors V from `blocks` HiPPO-LegS matrices without their low
rank, B as V^* times a normal matrix of variance 1 / D, C as a complex normal one of variance 1 / N
times V, one dt per pair, log-uniform between 1e-3 and 1e-1, skip normal. The real part of Lambda
is -exp(log_decay): it stays stable, where the paper trains it freely or clips it.
Irregular sampling: `intervals` multiplies dt token by token; `step_rescale` does for all.
State: B x N floats (N / 2 complex), constant in T.   Cost: O(T D N).
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
from stepscan.ops.discretize import discretize_diagonal
from stepscan.ops.hippo import LEAST_DECAY, MEASURES, normal_part
from stepscan.ops.linear_scan import linear_scan
from stepscan.ops.projection import project


@dataclass(frozen=True, kw_only=True)
class S5Config(MixerConfig):
    """Config of S5."""

    name: ClassVar[str] = "s5"
    equation: ClassVar[str] = "h = e^(dt L) h + (e^(dt L) - 1)/L B x_t;  y = 2 Re(C h) + D x_t"
    source: ClassVar[str] = "Smith et al. 2022, arXiv:2208.04933"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="state space",
        transition="diagonal",
        gate="fixed",
        eigenvalues="disc",
        ops=("linear_scan",),
    )

    state_size: int = 64
    """Real numbers N of state: half as many complex ones, each with its conjugate."""
    blocks: int = 1
    """Equal HiPPO matrices that the initial Lambda is made of."""
    step_min: float = 1e-3
    """Shortest initial time step dt of a state."""
    step_max: float = 1e-1
    """Longest initial time step dt of a state."""
    init: str = "legs"
    """The HiPPO measure of the blocks."""
    step_rescale: float = 1.0
    """A factor for all dt: 2 to run a trained model on half the sampling rate."""

    def build(self, width: int) -> "S5":
        """Build the module for a model of this width."""
        if self.blocks < 1 or self.state_size < 2 or self.state_size % (2 * self.blocks):
            raise ValueError(
                "s5: want state_size to be an even number for each of the blocks, "
                f"got {self.state_size} for {self.blocks}"
            )
        check_steps(self.name, self.step_min, self.step_max, self.step_rescale)
        lookup(MEASURES, self.init, kind="init of s5")
        return S5(self, width)


class S5State(NamedTuple):
    """What `S5` carries from one stretch to the next: real and imaginary parts."""

    memory: Float[Tensor, "B N 2"]


class S5(Mixer[S5State]):
    """See the module docstring."""

    no_decay = ("log_step", "log_decay", "frequency")
    slow = ("log_step", "log_decay", "frequency", "write")

    def __init__(self, config: S5Config, width: int) -> None:
        super().__init__()
        self.config = config
        pairs = config.state_size // 2
        self.log_step = nn.Parameter(torch.empty(pairs))
        self.log_decay = nn.Parameter(torch.empty(pairs))
        self.frequency = nn.Parameter(torch.empty(pairs))
        self.write = nn.Parameter(torch.empty(2, pairs, width))  # real and imaginary part of B
        self.read = nn.Parameter(torch.empty(2, width, pairs))  # real and imaginary part of C
        self.skip = nn.Parameter(torch.empty(width))
        self.gate = Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values of the state space."""
        config, width = self.config, self.write.shape[2]
        N, blocks = config.state_size, config.blocks
        fill_log_step(self.log_step, config.step_min, config.step_max)
        values, _, _, V = normal_part(config.init, N // blocks)
        V = torch.block_diag(*[V] * blocks)  # [N pairs]
        B = V.mH @ (torch.randn(N, width) / width**0.5).to(V.dtype)
        C = torch.complex(*torch.randn(2, width, N).double() / N**0.5) @ V
        with torch.no_grad():
            self.log_decay.copy_((-values.real).clamp(min=LEAST_DECAY).log().repeat(blocks))
            self.frequency.copy_(values.imag.repeat(blocks))
            for weight, value in ((self.write, B), (self.read, C)):
                weight.copy_(torch.stack([value.real, value.imag]))
        nn.init.normal_(self.skip)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> S5State:
        """Empty memory."""
        weight = self.log_step
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        shape = batch, len(weight), 2
        return S5State(torch.zeros(shape, device=device or weight.device, dtype=dtype))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: S5State | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
        *,
        intervals: Float[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], S5State]:
        """Mix along T; `intervals` are the times since the token before, 1 where none are given."""
        wide = torch.promote_types(self.log_step.dtype, torch.float32)
        Lambda = torch.complex(-self.log_decay.to(wide).exp(), self.frequency.to(wide))
        dt = self.config.step_rescale * self.log_step.to(wide).exp()
        if intervals is not None:
            dt = dt * intervals.to(wide)[..., None]  # [B T N]
        log_a, gain = discretize_diagonal(Lambda, dt)
        written = torch.complex(*(project(x, part).to(wide) for part in self.write)) * gain
        memory = None if state is None else torch.view_as_complex(state.memory.contiguous())
        h, memory = linear_scan(
            log_a.exp().expand_as(written), written, state=memory, resets=resets
        )
        real, imaginary = (2 * part.to(x.dtype) for part in (h.real, h.imag))
        y = project(real, self.read[0]) - project(imaginary, self.read[1]) + self.skip * x
        y = F.gelu(y)
        return y * torch.sigmoid(self.gate(y)), S5State(torch.view_as_real(memory))
