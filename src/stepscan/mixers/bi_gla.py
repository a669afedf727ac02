"""Bidirectional gated linear attention (ViG, arXiv:2405.18425), of a sequence or of images.

    u = silu(conv(x))                                  a window of 3, or 3 x 3, around each token
    alpha_t, beta_t = sigmoid(W2 W1 u_t + b)^(1/16)            a decay per direction
    S_t = diag(alpha_t) S_{t-1} + k_t v_t^T
    R_t = diag(beta_t)  R_{t+1} + k_t v_t^T                    q, k, v linear in u, for both
    g_t = sigmoid(W_g u_t + c)
    y_t = W_o (g_t RMSNorm((S_t + R_t)^T q_t / (2 sqrt(K))) + (1 - g_t) RMSNorm(u_t))

Both directions run as one scan. As published: half the width for keys, gated local injection of u,
initial values. With `columns` the tokens are patches of images, row after row (`layers/grid.py`):
the window lies in the plane, as published, and no state goes on from an image. Without, it lies
along T. Not causal: a stretch sees the past through the state, but not the stretch after.
State: B x H x K x V floats and one input of the window, constant in T.
Cost: O(T K V) per head and direction.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.bidirectional import CentredConv, both_ways
from stepscan.layers.grid import GridConv, as_grid, check_grid, from_grid
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.linear_attention import linear_attention


@dataclass(frozen=True, kw_only=True)
class BiGLAConfig(MixerConfig):
    """Config of bidirectional gated linear attention."""

    name: ClassVar[str] = "bi_gla"
    equation: ClassVar[str] = "S = diag(a_t) S + k_t v_t^T, R from the right;  y = (S + R)^T q_t"
    source: ClassVar[str] = "Liao et al. 2024, arXiv:2405.18425"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="linear attention",
        transition="diagonal",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("linear_attention", "short_conv"),
    )

    heads: int = 2
    """Number of heads H; must divide the width and the key width."""
    key_ratio: float = 0.5
    """Width of all keys together, as a part of the model width."""
    decay_rank: int = 16
    """Rank of the map from the input to the decays."""
    decay_power: float = 16.0
    """alpha = sigmoid(logit)^(1 / decay_power): the higher, the longer the memory."""
    window: int = 3
    """Tokens around each token that the convolution sees; odd. In a grid in both directions."""
    rows: int | None = None
    """Rows of a grid; None: one grid per stretch."""
    columns: int | None = None
    """Columns of a grid; None: a sequence."""

    def build(self, width: int) -> "BiGLA":
        """Build the module for a model of this width."""
        keys = round(width * self.key_ratio)
        check_grid("bi_gla", self.rows, self.columns)
        if self.heads < 1 or width % self.heads or keys % self.heads or not keys:
            raise ValueError(
                f"bi_gla: heads={self.heads} must divide width={width} and keys={keys}"
            )
        return BiGLA(self, width, keys)


class BiGLAState(NamedTuple):
    """What `BiGLA` carries from one stretch to the next."""

    memory: Float[Tensor, "B H K V"]
    window: Float[Tensor, "B W D"]


class Selection(NamedTuple):
    """What mixes the values: with it given, `BiGLA.mix` is linear in them."""

    query: Float[Tensor, "B T H K"]
    key: Float[Tensor, "B T H K"]
    forward: Float[Tensor, "B T H K"]
    """Log decays."""
    backward: Float[Tensor, "B T H K"]


class BiGLA(Mixer[BiGLAState]):
    """See the module docstring."""

    causal = False
    is_matrix = True

    def __init__(self, config: BiGLAConfig, width: int, keys: int) -> None:
        super().__init__()
        self.config = config
        self.sizes = (keys, keys, width)
        conv = CentredConv if config.columns is None else GridConv
        self.conv = conv(width, config.window, bias=False)
        self.qkv = Linear(width, sum(self.sizes), bias=False)
        self.decay = nn.Sequential(
            Linear(width, config.decay_rank, bias=False), Linear(config.decay_rank, 2 * keys)
        )
        self.norm = nn.RMSNorm(width // config.heads, eps=1e-5)
        self.local_norm = nn.RMSNorm(width // config.heads, eps=1e-5)
        self.gate = Linear(width, width)
        self.out = Linear(width, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values of the maps."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, gain=2**-2.5)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> BiGLAState:
        """Empty memory, no inputs yet."""
        weight, heads = self.out.weight, self.config.heads
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        past = self.config.window // 2, len(weight)
        window = torch.zeros(batch, *past, device=device or weight.device, dtype=dtype)
        shape = batch, heads, self.sizes[0] // heads, self.sizes[2] // heads
        return BiGLAState(window.new_zeros(shape), window)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: BiGLAState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], BiGLAState]:
        """Mix along T, both ways."""
        if self.config.columns is not None:
            grids = as_grid(x, self.config.rows, self.config.columns).flatten(1, 2)
            values, selection, local, _ = self.select(grids)
            y = self.finish(self.mix(values, selection)[0], local)
            return y.view_as(x), self.init_state(len(x), device=x.device)
        memory, window = (None, None) if state is None else state
        values, selection, local, window = self.select(x, window, resets)
        y, memory = self.mix(values, selection, memory, resets)
        return self.finish(y, local), BiGLAState(memory, window)

    def select(
        self,
        x: Float[Tensor, "B T D"],
        window: Float[Tensor, "B W D"] | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T H V"], Selection, Float[Tensor, "B T D"], Tensor]:
        """Values, what mixes them, the local features, and the window's inputs."""
        if isinstance(self.conv, GridConv):
            assert self.config.columns is not None
            nodes = as_grid(x, self.config.rows, self.config.columns)
            local, window = from_grid(self.conv(nodes), len(x)), x.new_zeros(0)
        else:
            local, window = self.conv(x, window, resets)
        local = F.silu(local)
        q, k, v = map(self._heads, self.qkv(local).split(self.sizes, -1))
        decays = F.logsigmoid(self.decay(local)) / self.config.decay_power
        ahead, back = map(self._heads, decays.chunk(2, -1))
        return v, Selection(q * q.shape[-1] ** -0.5, k, ahead, back), local, window

    def mix(
        self,
        values: Float[Tensor, "B T H V"],
        selection: Selection,
        state: Float[Tensor, "B H K V"] | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
        """Both directions in one scan."""
        q, k, ahead, back = selection
        forward, backward, state = both_ways(
            _scan, (q, k, values, ahead), (q, k, values, back), state, resets
        )
        return (forward + backward) / 2, state

    def finish(
        self, y: Float[Tensor, "B T H V"], local: Float[Tensor, "B T D"]
    ) -> Float[Tensor, "B T D"]:
        """Norms, gate and output map, each token on its own."""
        gate = self._heads(torch.sigmoid(self.gate(local)))
        y = gate * self.norm(y) + (1 - gate) * self.local_norm(self._heads(local))
        return self.out(y.flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b t (h k) -> b t h k", h=self.config.heads)


def _scan(
    inputs: tuple[Tensor, ...], state: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor]:
    q, k, v, log_decay = inputs
    return linear_attention(q, k, v, log_decay=log_decay, state=state, resets=resets)
