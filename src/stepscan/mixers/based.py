"""Based (arXiv:2402.18668): linear attention whose features imitate softmax's exponential.

    S_t = S_{t-1} + phi(k_t) v_t^T;  n_t = n_{t-1} + phi(k_t)      phi(q) . phi(k) = 1 + s + s^2 / 2
    y_t = W_o (S_t^T phi(q_t) / (phi(q_t) . n_t))                  s = q . k / sqrt(K)

As published: keys of 16 numbers, no decay, no positions, no biases; the paper alternates it with
attention over a short window, which a layer pattern does here (`(based attention[window=64])*2`).

`prefix_len` makes it JRT-RNN (arXiv:2407.05483): the first tokens of a segment, up to that many,
have keys and values of another projection too, which every token of the segment sees, also those
before them. A segment begins where a row begins and at each reset. Inside its prefix the mixer is
not causal: the tokens of a prefix see each other only if they come in one call, so cut no sequence
there. Behind the prefix all laws hold. The paper's additional loss on the prefix is left out.
State: B x H x F x (V + 1) floats, F = C(K + 2, 2), and a counter; constant in T.
Cost: O(T F V) per head, three times that with a prefix.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from stepscan.layers.linear_reads import prefix_read
from stepscan.layers.projection import Linear
from stepscan.layers.taylor import TaylorFeatures
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.arguments import as_resets
from stepscan.ops.linear_attention import linear_attention
from stepscan.ops.positions import positions


@dataclass(frozen=True, kw_only=True)
class BasedConfig(MixerConfig):
    """Config of Based."""

    name: ClassVar[str] = "based"
    equation: ClassVar[str] = "S = S + f(k_t) v_t^T;  n = n + f(k_t);  y = S^T f(q_t) / n.f(q_t)"
    source: ClassVar[str] = "Arora et al. 2024, arXiv:2402.18668"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="linear attention",
        transition="scalar",
        gate="fixed",
        eigenvalues="1",
        ops=("linear_attention",),
    )

    heads: int = 4
    """Number of heads H; must divide the width."""
    key_size: int = 16
    """Numbers K in a query or a key, before the features."""
    prefix_len: int = 0
    """Tokens at the start of a segment that all its tokens see; 0: causal."""

    def build(self, width: int) -> "Based":
        """Build the module for a model of this width."""
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"based: heads={self.heads} must divide width={width}")
        if self.key_size < 1 or self.prefix_len < 0:
            raise ValueError(
                f"based: want key_size at least 1 and prefix_len at least 0, got {self.key_size} "
                f"and {self.prefix_len}"
            )
        return Based(self, width)


class BasedState(NamedTuple):
    """What `Based` carries from one stretch to the next."""

    memory: Float[Tensor, "B H F V+1"]
    length: Int[Tensor, "B"]
    """Tokens since the row's last reset."""


class Based(Mixer[BasedState]):
    """See the module docstring."""

    def __init__(self, config: BasedConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.causal = not config.prefix_len
        keys = config.heads * config.key_size
        self.sizes = (keys, keys, width)
        self.features = TaylorFeatures(config.key_size, 2)
        self.qkv = Linear(width, sum(self.sizes), bias=False)
        self.prefix = Linear(width, keys + width, bias=False) if config.prefix_len else None
        self.out = Linear(width, width, bias=False)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> BasedState:
        """Empty memory, no tokens yet."""
        weight, heads = self.out.weight, self.config.heads
        shape = batch, heads, self.features.size, len(weight) // heads + 1
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        memory = torch.zeros(shape, device=device or weight.device, dtype=dtype)
        return BasedState(memory, torch.zeros(batch, device=memory.device, dtype=torch.int64))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: BasedState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], BasedState]:
        """Mix along T."""
        memory, length = self.init_state(len(x)) if state is None else state
        place = positions(length, as_resets(resets, x))
        last = torch.cat([length[:, None] - 1, place], 1)[:, -1] + 1
        q, k, v = map(self._heads, self.qkv(x).split(self.sizes, -1))
        q, k = self.features(q * q.shape[-1] ** -0.5), self.features(k)
        if self.prefix is None:
            y, memory = linear_attention(q, k, v, normalize=True, state=memory, resets=resets)
        else:
            prefix = self.prefix(x).split(self.sizes[1:], -1)
            prefix_k, prefix_v = map(self._heads, prefix)
            y, memory = prefix_read(
                q,
                k,
                F.pad(v, (0, 1), value=1.0),
                prefix_k=self.features(prefix_k),
                prefix_v=F.pad(prefix_v, (0, 1), value=1.0),
                inside=place < self.config.prefix_len,
                state=memory,
                resets=resets,
            )
            y = y[..., :-1] / (y[..., -1:] + 1e-10)
        return self.out(y.flatten(2)), BasedState(memory, last)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.config.heads, -1))
