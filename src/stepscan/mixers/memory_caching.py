"""Memory caching (arXiv:2602.24281): a memory that keeps copies of itself, and reads them all.

    S    = gated delta rule (`gated_delta_net`), a copy S_i kept after every segment of C tokens
    m_i  = mean of the inputs x of segment i; of the running one, up to now
    g_ti = softmax_i (W_u x_t) . m_i         over the copies i, and the running memory
    y_t  = W_o (RMSNorm((sum_i g_ti S_i + g_t S)^T q_t / sqrt(K)) * silu(W_g x_t))

    read       g                                                            parameters
    residual   1 for all                                                    none
    mean       equal, summing to one                                        none
    gated      as above (gated residual memory)                             W_u
    soup       the same, the memories summed before they are read           W_u
    sparse     as above over the `top_k` best copies only                   W_u

For a memory that is one matrix `soup` equals `gated`. `residual` and `mean` have the parameters of
`gated_delta_net`, so that a trained one can be given a cache afterwards. With `restart` each
segment begins with an empty memory, else where the one before ended.
Not said in the paper, and chosen here: the mean of the running segment goes up to the token itself;
the running memory is always among those of `sparse`; the `mean` for use after training. As
published segments have 256 tokens or grow with the logarithm of the length; here all have C.
State: as `gated_delta_net`, and for every full segment K x V floats per head and a mean of D: it
grows.
Cost: O(T K V (1 + T / C)) per head; a step of `sparse` O(K V (1 + top_k)).
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.decay_gate import DecayGate
from stepscan.layers.delta_inputs import DeltaInputs
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.names import lookup
from stepscan.ops.arguments import as_resets
from stepscan.ops.checkpoints import Checkpoints, checkpoints
from stepscan.ops.delta_rule import delta_rule
from stepscan.ops.linear_scan import linear_scan
from stepscan.ops.positions import positions

LEARNED = ("gated", "soup", "sparse")
READS = ("residual", "mean", *LEARNED)


@dataclass(frozen=True, kw_only=True)
class MemoryCachingConfig(MixerConfig):
    """Config of a memory with a cache of itself."""

    name: ClassVar[str] = "memory_caching"
    equation: ClassVar[str] = "S = a_t S + b_t k_t (v_t - S^T k_t)^T;  y = sum_i g_ti S_i^T q_t"
    source: ClassVar[str] = "Behrouz et al. 2026, arXiv:2602.24281"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="several memories",
        transition="householder",
        gate="input",
        eigenvalues="[0, 1]",
        ops=("delta_rule", "linear_scan", "short_conv"),
    )

    segment: int | None = 16
    """Tokens C between two copies. None: no copies."""
    read: str = "gated"
    """"residual", "mean", "gated", "soup" or "sparse"."""
    top_k: int = 2
    """How many copies a token reads with "sparse"."""
    restart: bool = False
    """Begin each segment with an empty memory."""
    heads: int = 4
    """Number of heads H; must divide the widths of keys and values."""
    key_ratio: float = 0.75
    """Width of all keys together, as a multiple of the model width."""
    value_ratio: float = 1.5
    """Width of all values together, as a multiple of the model width."""
    window: int = 4
    """Tokens seen by the convolution of queries, keys and values."""

    def build(self, width: int) -> "MemoryCaching":
        """Build the module for a model of this width."""
        lookup(dict.fromkeys(READS), self.read, kind=f"read of {self.name}")
        for field in ("segment", "top_k"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{self.name}: want {field} at least 1, got {value}")
        return MemoryCaching(self, width)


class MemoryCachingState(NamedTuple):
    """What `MemoryCaching` carries from one stretch to the next."""

    memory: Float[Tensor, "B H K V"]
    window: Float[Tensor, "B window E"]
    length: Int[Tensor, "B"]
    """Tokens since the row's last reset."""
    total: Float[Tensor, "B D"]
    """Sum of the inputs of the running segment."""
    copies: Float[Tensor, "B S H K V"]
    means: Float[Tensor, "B S D"]
    ticks: Int[Tensor, "B _"]
    """Zeros, one per token since the number of slots last grew, C - 1 at most: sizes, unlike
    `length`, are known to a compiled graph. Over S C + this many tokens no row fills more than S
    segments, wherever it was reset."""

    GROWS = ("copies", "means", "ticks")  # unannotated: a NamedTuple allows no class variables


class MemoryCaching(Mixer[MemoryCachingState]):
    """See the module docstring."""

    no_decay = ("decay.log_rate", "decay.step_bias")

    def __init__(self, config: MemoryCachingConfig, width: int) -> None:
        super().__init__()
        self.config = config
        keys, values = round(width * config.key_ratio), round(width * config.value_ratio)
        self.inputs = DeltaInputs(
            width,
            heads=config.heads,
            keys=keys,
            values=values,
            window=config.window,
            eig_range=(0.0, 1.0),
            n_householder=1,
            step_size="learned",
        )
        self.memory = config.heads, keys // config.heads, values // config.heads
        self.decay = DecayGate(width, config.heads)
        self.asks = Linear(width, width, bias=False) if config.read in LEARNED else None
        self.norm = nn.RMSNorm(values // config.heads, eps=1e-5)
        self.gate = Linear(width, values, bias=False)
        self.out = Linear(values, width, bias=False)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> MemoryCachingState:
        """Empty memory, no inputs and no copies yet."""
        window = self.inputs.init_state(batch, device=device, dtype=dtype)
        width, zeros = len(self.out.weight), window.new_zeros
        return MemoryCachingState(
            memory=zeros(batch, *self.memory),
            window=window,
            length=torch.zeros(batch, device=window.device, dtype=torch.int64),
            total=zeros(batch, width),
            copies=zeros(batch, 0, *self.memory),
            means=zeros(batch, 0, width),
            ticks=torch.zeros(batch, 0, device=window.device, dtype=torch.int64),
        )

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: MemoryCachingState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], MemoryCachingState]:
        """Mix along T."""
        state = self.init_state(len(x)) if state is None else state
        inputs, window = self.inputs(x, state.window, resets)
        tensors = inputs._asdict() | {"log_decay": self.decay(x)}
        if self.config.segment is None:
            y, memory = delta_rule(**tensors, state=state.memory, resets=resets)
            state = state._replace(memory=memory, window=window)
        else:
            y, state = self._cached(x, tensors, state._replace(window=window), resets)
        y = self.norm(y).flatten(-2) * F.silu(self.gate(x))
        return self.out(y), state

    def _cached(
        self,
        x: Tensor,
        tensors: dict[str, Tensor],
        state: MemoryCachingState,
        resets: Tensor | None,
    ) -> tuple[Float[Tensor, "B T H V"], MemoryCachingState]:
        C = self.config.segment
        assert C is not None
        resets = as_resets(resets, x)
        place = positions(state.length, resets)
        y, memory, new = checkpoints(
            delta_rule, tensors, place=place, length=C, state=state.memory, resets=resets,
            restart=self.config.restart,
        )  # fmt: skip
        wide = x.to(state.total.dtype)
        sums, total = linear_scan(
            torch.ones_like(wide), wide, state=state.total, resets=place % C == 0
        )
        running = sums / (place % C + 1)[..., None]
        ends = running.gather(1, new.token[..., None].expand(-1, -1, running.shape[-1]))
        means = torch.cat([state.means, ends], 1)
        copies = torch.cat([state.copies, new.states], 1)
        visible, kept = _slots(state, new, resets, C)
        weight, own = self._weights(x, means, running, visible)
        y = own[..., None, None].to(y.dtype) * y
        y = y + self._read(tensors["q"].to(copies.dtype), copies, weight).to(y.dtype)
        if x.shape[1]:
            state = state._replace(length=place[:, -1] + 1)
        grown, rest = divmod(state.ticks.shape[1] + x.shape[1], C)
        copies, means = _newest(kept, state.means.shape[1] + grown, copies, means)
        return y, state._replace(
            memory=memory, total=total, copies=copies, means=means,
            ticks=state.ticks.new_zeros(len(x), rest),
        )  # fmt: skip

    def _weights(
        self, x: Tensor, means: Tensor, running: Tensor, visible: Bool[Tensor, "B T S"]
    ) -> tuple[Float[Tensor, "B T S"], Float[Tensor, "B T"]]:
        """g of each copy and of the running memory."""
        if self.asks is None:
            weight = visible.to(means.dtype)
            own = torch.ones_like(running[..., 0])
            if self.config.read == "mean":
                own = own / (1 + weight.sum(-1))
            return weight * own[..., None], own
        asks = self.asks(x).to(means.dtype)
        scores = torch.einsum("btd,bsd->bts", asks, means).masked_fill(~visible, -torch.inf)
        if self.config.read == "sparse":
            best = scores.topk(min(self.config.top_k, scores.shape[-1]), -1).indices
            chosen = torch.zeros_like(visible).scatter(-1, best, True)
            scores = scores.masked_fill(~chosen, -torch.inf)
        own = (asks * running).sum(-1, keepdim=True)
        weight = torch.cat([scores, own], -1).softmax(-1)
        return weight[..., :-1], weight[..., -1]

    def _read(
        self,
        q: Float[Tensor, "B T H K"],
        copies: Float[Tensor, "B S H K V"],
        weight: Float[Tensor, "B T S"],
    ) -> Float[Tensor, "B T H V"]:
        """The copies, weighed: in the order of products that reads and multiplies least."""
        T, S, k = q.shape[1], copies.shape[1], self.config.top_k
        if self.config.read == "soup":
            return torch.einsum(
                "bthk,bthkv->bthv", q, torch.einsum("bts,bshkv->bthkv", weight, copies)
            )
        if self.config.read == "sparse" and T * k < S:
            weight, best = weight.topk(k, -1)
            index = best.flatten(1)[..., None, None, None].expand(-1, -1, *copies.shape[2:])
            few = copies.gather(1, index).unflatten(1, (T, k))
            return torch.einsum("bts,bthk,btshkv->bthv", weight, q, few)
        asked = weight[:, :, None, :, None] * q[:, :, :, None]  # [B T H S K]
        memories = copies.movedim(1, 2).flatten(2, 3)  # [B H SK V]
        return (asked.flatten(3).transpose(1, 2) @ memories).transpose(1, 2)


def _slots(
    state: MemoryCachingState, new: Checkpoints, resets: Bool[Tensor, "B T"], C: int
) -> tuple[Bool[Tensor, "B T S"], Bool[Tensor, "B S"]]:
    """Which copies each token sees, and which are kept for the tokens to come."""
    T, before = resets.shape[1], state.copies.shape[1]
    index = torch.arange(max(T, before), device=resets.device)
    old = index[:before].flip(0) < (state.length // C)[:, None]
    segment = resets.cumsum(1)
    born = F.pad(new.token, (before, 0), value=-1)
    during = F.pad(segment.gather(1, new.token), (before, 0))
    there = torch.cat([old, new.whole], 1)
    same = during[:, None] == segment[..., None]
    visible = there[:, None] & same & (born[:, None] < index[:T, None])
    return visible, there & same[:, -1] if T else there


def _newest(kept: Bool[Tensor, "B S"], slots: int, *tensors: Tensor) -> list[Tensor]:
    """The kept slots, last and in order; zeros before them where a row has fewer."""
    order = kept.to(torch.uint8).argsort(dim=1, stable=True)
    order = order[:, order.shape[1] - slots :]
    gone = ~kept.gather(1, order)
    moved = []
    for x in tensors:
        index, mask = (z.reshape(*z.shape, *(1,) * (x.ndim - 2)) for z in (order, gone))
        moved.append(x.gather(1, index.expand(-1, -1, *x.shape[2:])).masked_fill(mask, 0.0))
    return moved
