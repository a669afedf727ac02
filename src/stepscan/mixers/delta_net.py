"""DeltaNet (arXiv:2406.06484): a memory that corrects what it holds at a key, and never decays.

    S_t = S_{t-1} + beta_t k_t (v_t - S_{t-1}^T k_t)^T
    y_t = W_o RMSNorm(S_t^T q_t / sqrt(K))                      the norm per head

q, k and v come through a causal window of 4 with SiLU, q and k have unit length, beta is a sigmoid:
`layers/delta_inputs.py`, where the options are: `eig_range`, `n_householder` (DeltaProduct without
its decay, arXiv:2502.10297), `step_size`.
As published, without the optional output gate.
State: B x H x K x V floats and the window's last inputs, constant in T.
Cost: O(T K V n) per head, as products of matrices of 32 tokens.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepscan.layers.delta_inputs import DeltaInputs
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.delta_rule import delta_rule


@dataclass(frozen=True, kw_only=True)
class DeltaNetConfig(MixerConfig):
    """Config of DeltaNet."""

    name: ClassVar[str] = "delta_net"
    equation: ClassVar[str] = "S = S + b_t k_t (v_t - S^T k_t)^T;  y = S^T q_t"
    source: ClassVar[str] = "Yang et al. 2024, arXiv:2406.06484"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="delta rule",
        transition="householder",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("delta_rule", "short_conv"),
    )

    heads: int = 4
    """Number of heads H; must divide the width."""
    window: int = 4
    """Tokens seen by the convolution of queries, keys and values."""
    eig_range: tuple[float, float] = (0.0, 1.0)
    """By what a write may multiply what was there; (-1, 1) lets a memory track states."""
    n_householder: int = 1
    """Writes per token, each with a key, a value and a strength of its own (DeltaProduct)."""
    step_size: str = "learned"
    """"learned": unit keys; "kaczmarz": keys of any length, the step over their square."""

    def build(self, width: int) -> "DeltaNet":
        """Build the module for a model of this width."""
        return DeltaNet(self, width)


class DeltaNetState(NamedTuple):
    """What `DeltaNet` carries from one stretch to the next."""

    memory: Float[Tensor, "B H K V"]
    window: Float[Tensor, "B window E"]


class DeltaNet(Mixer[DeltaNetState]):
    """See the module docstring."""

    def __init__(self, config: DeltaNetConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.inputs = DeltaInputs(
            width,
            heads=config.heads,
            keys=width,
            values=width,
            window=config.window,
            eig_range=config.eig_range,
            n_householder=config.n_householder,
            step_size=config.step_size,
        )
        self.norm = nn.RMSNorm(width // config.heads, eps=1e-5)
        self.out = Linear(width, width, bias=False)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> DeltaNetState:
        """Empty memory, no inputs yet."""
        head = self.norm.weight.shape[0]
        window = self.inputs.init_state(batch, device=device, dtype=dtype)
        return DeltaNetState(window.new_zeros(batch, self.config.heads, head, head), window)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: DeltaNetState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], DeltaNetState]:
        """Mix along T."""
        memory, window = (None, None) if state is None else state
        inputs, window = self.inputs(x, window, resets)
        y, memory = delta_rule(**inputs._asdict(), state=memory, resets=resets)
        return self.out(self.norm(y).flatten(-2)), DeltaNetState(memory, window)
