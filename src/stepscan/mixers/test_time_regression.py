"""Test-time regression (arXiv:2501.12352): a layer is a regression of the values on the keys.

    y_t = W_o RMSNorm(M_t(q_t)),    M_t = argmin sum_{i <= t} w_i |M(k_i) - v_i|^2   norm per head

    solver         M_t                                                    is
    gradient       one step from zero: M_t = sum w_i k_i v_i^T            linear attention
    sgd            one step per token, of length w_t                      the delta rule
    ridge          the exact solution, with a learned ridge per channel   mesa layer, least squares
    nadaraya       locally constant, under exp(q_t . k_i / sqrt(K))       softmax attention
    local_linear   locally linear, under the same weights                 -

    weights        w_i = 1, learned: sigmoid(W_w x_i), gated: that and mamba's decay of older tokens
    features       none; elu: elu(.) + 1; polynomial: all monomials up to degree 2, of q and k

q, k and v come through a causal window of 4 with SiLU; q and k have unit length but for the last
two solvers, which take no weights and no features. `PRESETS` names the layers above.
Deviations: local regression of degree 2 and more is left out; the skeleton around the solver is
DeltaNet's for all.
State: K x V floats per head (ridge: K x (K + V)), or all keys and values; the window's inputs.
Cost: O(T K V) per head; ridge O(T K^3); the last two O(T S K), local_linear O(T S K^2).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.decay_gate import DecayGate
from stepscan.layers.memory import MemoryInputs
from stepscan.layers.polynomial import Polynomial
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.names import lookup
from stepscan.ops.attention import AttentionState
from stepscan.ops.delta_rule import delta_rule
from stepscan.ops.linear_attention import linear_attention
from stepscan.ops.local_regression import local_regression
from stepscan.ops.ridge_regression import ridge_regression

LOCAL = {"nadaraya": 0, "local_linear": 1}
"""Degree of the local fit."""
SOLVERS = ("gradient", "sgd", "ridge", *LOCAL)
WEIGHTS = ("none", "learned", "gated")
FEATURES = ("none", "elu", "polynomial")


@dataclass(frozen=True, kw_only=True)
class RegressionConfig(MixerConfig):
    """Config of test-time regression."""

    name: ClassVar[str] = "test_time_regression"
    equation: ClassVar[str] = "y = M_t(q_t),  M_t = argmin sum_i w_i |M(k_i) - v_i|^2"
    source: ClassVar[str] = "Wang et al. 2025, arXiv:2501.12352"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="test-time memory",
        transition="scalar",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("ridge_regression", "short_conv"),
    )

    solver: str = "ridge"
    """"gradient", "sgd", "ridge", "nadaraya" or "local_linear"."""
    weights: str = "gated"
    """"none", "learned" or "gated": how much a token counts, and whether that fades."""
    features: str = "none"
    """"none", "elu" or "polynomial": of queries and keys."""
    heads: int = 4
    """Number of heads H; must divide the width."""
    window: int | None = 4
    """Tokens seen by the convolution of queries, keys and values. None: no convolution."""

    def build(self, width: int) -> "Regression":
        """Build the module for a model of this width."""
        for kind, table in (("solver", SOLVERS), ("weights", WEIGHTS), ("features", FEATURES)):
            lookup(dict.fromkeys(table), getattr(self, kind), kind=f"{kind} of {self.name}")
        if self.solver in LOCAL and (self.weights, self.features) != ("none", "none"):
            raise ValueError(
                f'{self.name}: solver={self.solver!r} wants weights="none" and features="none", '
                f"got {self.weights!r} and {self.features!r}"
            )
        return Regression(self, width)


PRESETS: Mapping[str, RegressionConfig] = MappingProxyType(
    {
        "linear_attention": RegressionConfig(solver="gradient", weights="none"),
        "gated_linear_attention": RegressionConfig(solver="gradient", weights="gated"),
        "delta_net": RegressionConfig(solver="sgd", weights="learned"),
        "gated_delta_net": RegressionConfig(solver="sgd", weights="gated"),
        "mesa": RegressionConfig(solver="ridge", weights="gated"),
        "least_squares": RegressionConfig(solver="ridge", weights="none"),
        "softmax": RegressionConfig(solver="nadaraya", weights="none", window=None),
        "local_linear": RegressionConfig(solver="local_linear", weights="none"),
    }
)


class RegressionState(NamedTuple):
    """What `Regression` carries from one stretch to the next."""

    memory: Float[Tensor, "B H K _"] | AttentionState
    """The local solvers keep every key and value."""
    window: Float[Tensor, "B window E"]


class Regression(Mixer[RegressionState]):
    """See the module docstring."""

    no_decay = ("decay.log_rate", "decay.step_bias")

    def __init__(self, config: RegressionConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.local = config.solver in LOCAL
        self.inputs = MemoryInputs(
            width,
            heads=config.heads,
            window=config.window,
            normalize=not self.local,
        )
        size = width // config.heads
        self.features = Polynomial(size, 2 if config.features == "polynomial" else 1)
        self.keys = self.features.size
        weighed, gated = config.weights != "none", config.weights == "gated"
        self.strength = Linear(width, config.heads, bias=False) if weighed else None
        self.decay = DecayGate(width, config.heads) if gated else None
        self.ridge = None
        if config.solver == "ridge":  # softplus of it starts at 1, as in MesaNet
            self.ridge = nn.Parameter(torch.full((config.heads, self.keys), 1.0).expm1().log())
        self.norm = nn.RMSNorm(size, eps=1e-5)
        self.out = Linear(width, width, bias=False)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> RegressionState:
        """Nothing to fit yet, no inputs yet."""
        window = self.inputs.init_state(batch, device=device, dtype=dtype)
        heads, size = self.config.heads, self.norm.weight.shape[0]
        if self.local:
            none = window.new_zeros(batch, 0, heads, size)
            length = torch.zeros(batch, device=window.device, dtype=torch.int64)
            return RegressionState(AttentionState(none, none.clone(), length), window)
        columns = size + self.keys if self.ridge is not None else size
        return RegressionState(window.new_zeros(batch, heads, self.keys, columns), window)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: RegressionState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], RegressionState]:
        """Mix along T."""
        memory, window = self.init_state(len(x)) if state is None else state
        (q, k, v), _, window = self.inputs(x, window, resets)
        if isinstance(memory, AttentionState):
            y, memory = local_regression(
                q * q.shape[-1] ** -0.5, k, v, x=q, degree=LOCAL[self.config.solver],
                state=memory, resets=resets,
            )  # fmt: skip
        else:
            y, memory = self._solve(x, q, k, v, memory, resets)
        return self.out(self.norm(y).flatten(-2)), RegressionState(memory, window)

    def _solve(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, memory: Tensor, resets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.config.features == "elu":
            q, k = F.elu(q) + 1, F.elu(k) + 1
        q, k = self.features(q) * q.shape[-1] ** -0.5, self.features(k)
        beta = torch.ones_like(q[..., 0])
        if self.strength is not None:
            beta = torch.sigmoid(self.strength(x))
        g = None if self.decay is None else self.decay(x)
        if self.ridge is not None:
            return ridge_regression(
                q, k, v, ridge=F.softplus(self.ridge), weight=beta, log_decay=g, state=memory,
                resets=resets,
            )  # fmt: skip
        if self.config.solver == "gradient":
            return linear_attention(
                q, beta[..., None] * k, v, log_decay=g, state=memory, resets=resets
            )
        if self.config.features != "none":  # a step of full length is then 1 / |k|^2
            beta = beta / k.square().sum(-1)
        return delta_rule(q, k, v, beta=beta, log_decay=g, state=memory, resets=resets)
