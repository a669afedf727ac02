"""Mixture of memories (MoM, arXiv:2502.13685): a router sends each token to k of M memories.

    p_t = softmax(W_r x_t);  w_t = p_t on its k largest entries, zero elsewhere, summing to one
    memory m sees the tokens with w_tm > 0 only, as if there were no others:
        q = unit(conv(W_q x)),  k = unit(conv(W_k^m x)),  v = conv(W_v^m x)         conv with SiLU
        S^m = alpha S^m;  S^m = S^m + beta k (v - S^m^T k)^T                   gated delta rule
    y_t = W_o (RMSNorm(sum_m w_tm S^m^T q_t / sqrt(K) + S'^T q_t / sqrt(K)) * silu(W_g x_t))

S' is a shared memory that sees every token. As published with Gated DeltaNet for a memory: queries
and the convolution's filters are shared, keys, values, alpha and beta each memory's own. With one
memory and no shared one this is `gated_delta_net`. `balance_loss` is the auxiliary loss of the
paper (Switch Transformer's, arXiv:2101.03961): who trains adds 0.01 of it to the loss.
Deviations: the decay's rates are each memory's own too; heads divide the width.
The published training code lets the convolution see tokens of other memories and rows; here it
never does.
State: (M + 1) x H x K x V floats and each memory's last inputs, constant in T.
Cost: O(T K V (k + 1)) per head; inside `torch.compile` O(T K V (M + 1)).
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.convolution import ShortConv
from stepscan.layers.decay_gate import DecayGate
from stepscan.layers.delta_inputs import unit
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.compress_select import (
    Selection,
    compress,
    compress_each,
    expand,
    last_inputs,
    select,
)
from stepscan.ops.delta_rule import delta_rule


@dataclass(frozen=True, kw_only=True)
class MixtureOfMemoriesConfig(MixerConfig):
    """Config of a mixture of memories."""

    name: ClassVar[str] = "mixture_of_memories"
    equation: ClassVar[str] = "S_m = a_t S_m + b_t k_t (v_t - S_m^T k_t)^T, m in top(W x_t)"
    source: ClassVar[str] = "Du et al. 2025, arXiv:2502.13685"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="several memories",
        transition="householder",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("delta_rule", "short_conv"),
    )

    memories: int = 4
    """Number of routed memories M."""
    top_k: int = 2
    """How many of them a token goes to."""
    shared: bool = True
    """One more memory, which sees every token."""
    heads: int = 4
    """Number of heads H; must divide the widths of keys and values."""
    key_ratio: float = 0.75
    """Width of all keys together, as a multiple of the model width."""
    value_ratio: float = 1.5
    """Width of all values together, as a multiple of the model width."""
    window: int = 4
    """Tokens of a memory seen by the convolution of queries, keys and values."""

    def build(self, width: int) -> "MixtureOfMemories":
        """Build the module for a model of this width."""
        keys, values = round(width * self.key_ratio), round(width * self.value_ratio)
        if self.heads < 1 or not keys or not values or keys % self.heads or values % self.heads:
            raise ValueError(
                f"{self.name}: heads={self.heads} must divide keys={keys} and values={values}"
            )
        if not 1 <= self.top_k <= self.memories:
            raise ValueError(
                f"{self.name}: want 1 <= top_k <= memories, got top_k={self.top_k} and "
                f"memories={self.memories}"
            )
        return MixtureOfMemories(self, width, keys, values)


class MixtureOfMemoriesState(NamedTuple):
    """What `MixtureOfMemories` carries; M counts the shared memory too, as the last one."""

    memory: Float[Tensor, "B M H K V"]
    window: Float[Tensor, "B M window E"]


class MixtureOfMemories(Mixer[MixtureOfMemoriesState]):
    """See the module docstring."""

    no_decay = ("decay.log_rate", "decay.step_bias")

    def __init__(self, config: MixtureOfMemoriesConfig, width: int, keys: int, values: int) -> None:
        super().__init__()
        self.config = config
        count, heads = config.memories + config.shared, config.heads
        self.sizes = keys, keys, values
        self.router = Linear(width, config.memories, bias=False)
        self.query = Linear(width, keys, bias=False)
        self.key_value = nn.Parameter(torch.empty(count, width, keys + values))
        self.conv = ShortConv(sum(self.sizes), config.window, bias=False)
        self.strength = Linear(width, count * heads, bias=False)
        self.decay = DecayGate(width, count * heads)
        self.norm = nn.RMSNorm(values // heads, eps=1e-5)
        self.gate = Linear(width, values, bias=False)
        self.out = Linear(values, width, bias=False)
        nn.init.uniform_(self.key_value, -(width**-0.5), width**-0.5)  # as nn.Linear

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> MixtureOfMemoriesState:
        """Empty memories, no inputs yet."""
        window = self.conv.init_state(batch, device=device, dtype=dtype)
        keys, _, values = (size // self.config.heads for size in self.sizes)
        count = len(self.key_value)
        return MixtureOfMemoriesState(
            window.new_zeros(batch, count, self.config.heads, keys, values),
            window[:, None].repeat(1, count, 1, 1),
        )

    def route(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T M"]:
        """How much of each routed memory a token reads; it writes where that is not zero."""
        weight, chosen = self._probabilities(x).topk(self.config.top_k, -1)
        weight = weight / weight.sum(-1, keepdim=True)
        none = weight.new_zeros(*x.shape[:2], self.config.memories)
        return none.scatter(-1, chosen, weight)

    def balance_loss(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, ""]:
        """M sum_m (part of the tokens sent to m) (mean p_m): 1 where all are used alike."""
        sent = (self.route(x) > 0).to(x.dtype).mean((0, 1)) / self.config.top_k
        return self.config.memories * (sent * self._probabilities(x).mean((0, 1))).sum()

    def _probabilities(self, x: Tensor) -> Tensor:
        return self.router(x).to(torch.promote_types(x.dtype, torch.float32)).softmax(-1)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: MixtureOfMemoriesState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], MixtureOfMemoriesState]:
        """Mix along T."""
        state = self.init_state(len(x)) if state is None else state
        weight, M = self.route(x), self.config.memories
        gates = (torch.sigmoid(self.strength(x)), self.decay(x))
        beta, g = (rearrange(z, "b t (m h) -> b t m h", h=self.config.heads) for z in gates)
        groups = [(slice(0, M), weight)]
        if self.config.shared:  # apart from the others: it has more tokens
            groups.append((slice(M, M + 1), torch.ones_like(weight[..., :1])))
        y, ends = x.new_zeros(()), []
        for those, part in groups:
            selection = select(part > 0, resets)
            memory = MixtureOfMemoriesState(*(tensor[:, those] for tensor in state))
            read, end = self._run(x, beta[:, :, those], g[:, :, those], those, selection, memory)
            read = read * compress_each(part, selection)[..., None, None].to(read.dtype)
            y = y + expand(read, selection, x.shape[1])
            ends.append(end)
        y = self.norm(y).flatten(-2) * F.silu(self.gate(x))
        return self.out(y), MixtureOfMemoriesState(*map(_join, zip(*ends, strict=True)))

    def _run(
        self,
        x: Tensor,
        beta: Float[Tensor, "B T M H"],
        g: Float[Tensor, "B T M H"],
        those: slice,
        selection: Selection,
        state: MixtureOfMemoriesState,
    ) -> tuple[Float[Tensor, "B M S H V"], MixtureOfMemoriesState]:
        """These memories, each over its own tokens, as rows of one batch."""
        B, M = selection.gone.shape
        rows = lambda z: z.flatten(0, 1)  # noqa: E731
        empty = rows(~selection.used)[..., None]  # beta = 0 and g = 0 leave a memory as it is
        beta, g = (rows(compress_each(z, selection)).masked_fill(empty, 0.0) for z in (beta, g))
        k_v = torch.einsum("bmsd,mde->bmse", compress(x, selection), self.key_value[those])
        qkv = torch.cat([compress(self.query(x), selection), k_v], -1)
        window = last_inputs(state.window, qkv, selection)
        resets = rows(selection.resets)
        qkv, _ = self.conv(rows(qkv), rows(state.window), resets)
        q, k, v = (
            rearrange(z, "b t (h k) -> b t h k", h=self.config.heads)
            for z in qkv.split(self.sizes, -1)
        )
        q = unit(q) * q.shape[-1] ** -0.5
        y, memory = delta_rule(
            q, unit(k), v, beta=beta, log_decay=g, state=rows(state.memory), resets=resets
        )
        memory = memory.unflatten(0, (B, M)).masked_fill(selection.gone[..., None, None, None], 0.0)
        return y.unflatten(0, (B, M)), MixtureOfMemoriesState(memory, window)


def _join(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat(parts, 1)
