"""Comba (arXiv:2506.02475): a delta rule that erases and reads with control of its own.

    S_t = alpha_t S_{t-1} + beta_t k_t (v_t - b S_{t-1}^T k_t)^T          b = sigmoid(erase), a head
    y_t = W_o (RMSNorm(S_t^T (q_t - d b k_t) / sqrt(K)) * sigmoid(W_g x_t))      the norm per head

What is erased is read off the memory before its decay, b of it (feedback of the state); the query
is corrected by the key (feedback of the output). log alpha_t = -exp(A) softplus(W_a x_t + c) is
mamba's decay (`layers/decay_gate.py`); q, k, v and beta as in Gated DeltaNet
(`layers/delta_inputs.py`). As published: 3/4 of the width for keys, 3/2 of it for values, erase
and d start at 1; the authors find d = 0.02 better in small models. Deviation: q and k have unit
length before the correction, and b scales what is erased; in the authors' code both are normalised
again after it, which would cancel b.
State: B x H x K x V floats and the window's last inputs, constant in T.
Cost: O(T K V) per head, as products of matrices of 32 tokens.
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
from stepscan.ops.dplr import dplr


@dataclass(frozen=True, kw_only=True)
class CombaConfig(MixerConfig):
    """Config of Comba."""

    name: ClassVar[str] = "comba"
    equation: ClassVar[str] = "S = a_t S + b_t k_t (v_t - b S^T k_t)^T;  y = S^T (q_t - d b k_t)"
    source: ClassVar[str] = "Hu et al. 2025, arXiv:2506.02475"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="delta rule",
        transition="householder",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("dplr", "short_conv"),
    )

    heads: int = 4
    """Number of heads H; must divide the widths of keys and values."""
    key_ratio: float = 0.75
    """Width of all keys together, as a multiple of the model width."""
    value_ratio: float = 1.5
    """Width of all values together, as a multiple of the model width."""
    window: int = 4
    """Tokens seen by the convolution of queries, keys and values."""
    correction: float = 1.0
    """Initial d: how much of the key a query gives up."""

    def build(self, width: int) -> "Comba":
        """Build the module for a model of this width."""
        return Comba(self, width)


class CombaState(NamedTuple):
    """What `Comba` carries from one stretch to the next."""

    memory: Float[Tensor, "B H K V"]
    window: Float[Tensor, "B window E"]


class Comba(Mixer[CombaState]):
    """See the module docstring."""

    no_decay = ("decay.log_rate", "decay.step_bias", "correction")

    def __init__(self, config: CombaConfig, width: int) -> None:
        super().__init__()
        self.config = config
        keys, values = round(width * config.key_ratio), round(width * config.value_ratio)
        self.inputs = DeltaInputs(
            width, heads=config.heads, keys=keys, values=values, window=config.window
        )
        self.memory = config.heads, keys // config.heads, values // config.heads
        self.decay = DecayGate(width, config.heads)
        self.erase = nn.Parameter(torch.empty(config.heads))
        self.correction = nn.Parameter(torch.empty(config.heads))
        self.norm = nn.RMSNorm(values // config.heads, eps=1e-5)
        self.gate = Linear(width, values, bias=False)
        self.out = Linear(values, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values of the two feedbacks."""
        nn.init.ones_(self.erase)
        nn.init.constant_(self.correction, self.config.correction)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> CombaState:
        """Empty memory, no inputs yet."""
        window = self.inputs.init_state(batch, device=device, dtype=dtype)
        return CombaState(window.new_zeros(batch, *self.memory), window)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: CombaState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], CombaState]:
        """Mix along T."""
        memory, window = (None, None) if state is None else state
        (q, k, v, beta), window = self.inputs(x, window, resets)
        erased = torch.sigmoid(self.erase)[:, None] * k
        q = q - self.correction[:, None] * erased * k.shape[-1] ** -0.5
        write = beta[..., None] * k
        y, memory = dplr(
            q,
            write,
            v,
            a=-erased,
            b=write,
            log_decay=self.decay(x),
            undecayed=True,
            state=memory,
            resets=resets,
        )
        y = self.norm(y).flatten(-2) * torch.sigmoid(self.gate(x))
        return self.out(y), CombaState(memory, window)
