"""Gated DeltaNet (arXiv:2412.06464): a decay, then the delta rule.

    S   = alpha_t S_{t-1}                                  log alpha_t = -exp(A) softplus(W_a x + c)
    S_t = S + beta_t k_t (v_t - S^T k_t)^T
    y_t = W_o (RMSNorm(S_t^T q_t / sqrt(K)) * silu(W_g x_t))            the norm per head

q, k and v come through a causal window of 4 with SiLU, q and k have unit length, beta is a sigmoid:
`layers/delta_inputs.py`, where the options are: `eig_range`, `n_householder` (with (-1, 1) and 2 or
more this is Gated DeltaProduct, arXiv:2502.10297), `step_size` ("kaczmarz": KLA), `key_heads`
(Qwen3-Next has fewer of them than value heads).
As published: 3/4 of the width for keys, 3/2 of it for values, mamba's decay
(`layers/decay_gate.py`). Heads divide the width instead of having a fixed size of 256.
State: B x H x K x V floats and the window's last inputs, constant in T.
Cost: O(T K V n) per head, as products of matrices of 32 tokens.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.decay_gate import DecayGate
from stepscan.layers.delta_inputs import DeltaInputs
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.delta_rule import delta_rule


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNetConfig(MixerConfig):
    """Config of Gated DeltaNet."""

    name: ClassVar[str] = "gated_delta_net"
    equation: ClassVar[str] = "S = a_t S;  S = S + b_t k_t (v_t - S^T k_t)^T;  y = S^T q_t"
    source: ClassVar[str] = "Yang et al. 2024, arXiv:2412.06464"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="delta rule",
        transition="householder",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("delta_rule", "short_conv"),
    )

    heads: int = 4
    """Number of heads H; must divide the widths of keys and values."""
    key_heads: int | None = None
    """Number of query and key heads; must divide `heads`, and the keys in its place. None: H."""
    key_ratio: float = 0.75
    """Width of all keys together, as a multiple of the model width."""
    value_ratio: float = 1.5
    """Width of all values together, as a multiple of the model width."""
    window: int = 4
    """Tokens seen by the convolution of queries, keys and values."""
    eig_range: tuple[float, float] = (0.0, 1.0)
    """By what a write may multiply what was there; (-1, 1) lets a memory track states."""
    n_householder: int = 1
    """Writes per token, each with a key, a value and a strength of its own (DeltaProduct)."""
    step_size: str = "learned"
    """"learned": unit keys; "kaczmarz": keys of any length, the step over their square (KLA)."""
    norm_eps: float = 1e-5
    """Added to the mean square in the norm of what a head reads."""

    def build(self, width: int) -> "GatedDeltaNet":
        """Build the module for a model of this width."""
        return GatedDeltaNet(self, width)


class GatedDeltaNetState(NamedTuple):
    """What `GatedDeltaNet` carries from one stretch to the next."""

    memory: Float[Tensor, "B H K V"]
    window: Float[Tensor, "B window E"]


class GatedDeltaNet(Mixer[GatedDeltaNetState]):
    """See the module docstring."""

    no_decay = ("decay.log_rate", "decay.step_bias")

    def __init__(self, config: GatedDeltaNetConfig, width: int) -> None:
        super().__init__()
        self.config = config
        keys, values = round(width * config.key_ratio), round(width * config.value_ratio)
        self.inputs = DeltaInputs(
            width,
            heads=config.heads,
            keys=keys,
            values=values,
            window=config.window,
            eig_range=config.eig_range,
            n_householder=config.n_householder,
            step_size=config.step_size,
            key_heads=config.key_heads,
        )
        self.memory = config.heads, keys // self.inputs.key_heads, values // config.heads
        self.decay = DecayGate(width, config.heads)
        self.norm = nn.RMSNorm(values // config.heads, eps=config.norm_eps)
        self.gate = Linear(width, values, bias=False)
        self.out = Linear(values, width, bias=False)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> GatedDeltaNetState:
        """Empty memory, no inputs yet."""
        window = self.inputs.init_state(batch, device=device, dtype=dtype)
        return GatedDeltaNetState(window.new_zeros(batch, *self.memory), window)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: GatedDeltaNetState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], GatedDeltaNetState]:
        """Mix along T."""
        memory, window = (None, None) if state is None else state
        inputs, window = self.inputs(x, window, resets)
        y, memory = delta_rule(
            **inputs._asdict(), log_decay=self.decay(x), state=memory, resets=resets
        )
        y = self.norm(y).flatten(-2) * F.silu(self.gate(x))
        return self.out(y), GatedDeltaNetState(memory, window)
