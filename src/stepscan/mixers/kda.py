"""Kimi Delta Attention (KDA, arXiv:2510.26692): Gated DeltaNet with a decay per key channel.

    S   = diag(alpha_t) S_{t-1}              log alpha_t = -exp(A) softplus(W_2 W_1 x_t + c)
    S_t = S + beta_t k_t (v_t - S^T k_t)^T
    y_t = W_o (RMSNorm(S_t^T q_t / sqrt(K)) * sigmoid(G_2 G_1 x_t + b))         the norm per head

q, k and v come through a causal window of 4 with SiLU, q and k have unit length, beta is a sigmoid:
`layers/delta_inputs.py`. As published: keys and values as wide as the model, one rate A per head,
both low ranks of the size of a head. Heads divide the width instead of having a fixed size of 128;
steps start log-uniform as in Mamba (`layers/decay_gate.py`): the paper gives no initial values.
State: B x H x K x K floats and the window's last inputs, constant in T.
Cost: O(T K^2) per head, as products of matrices of 32 tokens.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stepscan.layers.decay_gate import DecayGate
from stepscan.layers.delta_inputs import DeltaInputs
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.delta_rule import delta_rule


@dataclass(frozen=True, kw_only=True)
class KDAConfig(MixerConfig):
    """Config of Kimi Delta Attention."""

    name: ClassVar[str] = "kda"
    equation: ClassVar[str] = "S = diag(a_t) S;  S = S + b_t k_t (v_t - S^T k_t)^T;  y = S^T q_t"
    source: ClassVar[str] = "Kimi Team 2025, arXiv:2510.26692"
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

    def build(self, width: int) -> "KDA":
        """Build the module for a model of this width."""
        return KDA(self, width)


class KDAState(NamedTuple):
    """What `KDA` carries from one stretch to the next."""

    memory: Float[Tensor, "B H K K"]
    window: Float[Tensor, "B window E"]


class KDA(Mixer[KDAState]):
    """See the module docstring."""

    no_decay = ("decay.log_rate", "decay.step_bias")

    def __init__(self, config: KDAConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.inputs = DeltaInputs(
            width,
            heads=config.heads,
            keys=width,
            values=width,
            window=config.window,
            eig_range=config.eig_range,
        )
        head = width // config.heads
        self.decay = DecayGate(width, config.heads, head)
        self.norm = nn.RMSNorm(head, eps=1e-5)
        self.gate = nn.Sequential(Linear(width, head, bias=False), Linear(head, width))
        self.out = Linear(width, width, bias=False)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> KDAState:
        """Empty memory, no inputs yet."""
        head = self.norm.weight.shape[0]
        window = self.inputs.init_state(batch, device=device, dtype=dtype)
        return KDAState(window.new_zeros(batch, self.config.heads, head, head), window)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: KDAState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], KDAState]:
        """Mix along T."""
        memory, window = (None, None) if state is None else state
        inputs, window = self.inputs(x, window, resets)
        y, memory = delta_rule(
            **inputs._asdict(), log_decay=self.decay(x), state=memory, resets=resets
        )
        y = self.norm(y).flatten(-2) * torch.sigmoid(self.gate(x))
        return self.out(y), KDAState(memory, window)
