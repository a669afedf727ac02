"""SeqBoat (arXiv:2306.11197): sparse modular activation, attention for the tokens that ask for it.

    u_t = SiLU(EMA(x)_t)                                    MEGA's moving average
    p_t = softmax(W_p u_t / tau);  token t is active if p_t1 > p_t0
    among the active tokens only, each with the `window` last of them (itself included):
        z = SiLU(W_z u),  q = a_q z + b_q,  k = a_k z + b_k,  v = SiLU(W_v x),  r = SiLU(W_r u)
        h_t = p_t1 W_h (r_t * sum_j softmax_j(q_t^T k_j / sqrt(Z) + bias_(t - j)) v_j)
    y_t = SiLU(W_x u_t + h_t + x_t)                         h_t = 0 where t is not active

The gate's gradient comes through p_t1, as published. tau is learned and starts at 0.3 sqrt(D).
Distances count active tokens, so the attention span has no bound in time. `temperature` and the
learned bias by distance are read from descriptions of the code, not the paper: less certain. Here
the attention is a softmax; the paper also uses squared ReLUs.
State: B x D x N floats, keys and values of the last window - 1 active tokens; constant in T.
Cost: O(T D^2) and O(A window Z) for A active tokens; inside `torch.compile` A = T.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.moving_average import MovingAverage
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.attention import AttentionState, attention
from stepscan.ops.compress_select import Selection, compress, expand, last_inputs, select
from stepscan.ops.positions import positions


@dataclass(frozen=True, kw_only=True)
class SeqBoatConfig(MixerConfig):
    """Config of SeqBoat."""

    name: ClassVar[str] = "seqboat"
    equation: ClassVar[str] = (
        "u = silu(EMA(x));  y = silu(W u + [p_t1 > p_t0] p_t1 attend(u, x) + x)"
    )
    source: ClassVar[str] = "Ren et al. 2023, arXiv:2306.11197"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="hybrid",
        transition="diagonal",
        gate="fixed",
        eigenvalues="[0, 1]",
        ops=("linear_scan", "attention"),
    )

    states: int = 16
    """Numbers N of the moving average per channel."""
    shared_size: int = 32
    """Size Z of queries and keys."""
    value_ratio: float = 2.0
    """Width of the values, as a multiple of the model width."""
    window: int = 128
    """How many active tokens a token sees, its own included."""
    temperature: float = 0.3
    """Initial temperature of the activation, as a multiple of the root of the model width."""

    def build(self, width: int) -> "SeqBoat":
        """Build the module for a model of this width."""
        values = round(width * self.value_ratio)
        if values < 1 or self.shared_size < 1:
            raise ValueError(
                f"seqboat: want values and shared_size at least 1, got {values} (value_ratio="
                f"{self.value_ratio}) and {self.shared_size}"
            )
        if self.window < 2 or not self.temperature > 0:
            raise ValueError(
                "seqboat: want window at least 2 and temperature above 0, got "
                f"{self.window} and {self.temperature}"
            )
        return SeqBoat(self, width, values)


class SeqBoatState(NamedTuple):
    """What `SeqBoat` carries from one stretch to the next."""

    average: Float[Tensor, "B D N"]
    keys: Float[Tensor, "B P Z"]
    """Of the last P = window - 1 active tokens, newest last; zeros if there were fewer."""
    values: Float[Tensor, "B P E"]
    length: Int[Tensor, "B"]
    """Active tokens since the row's last reset."""


class SeqBoat(Mixer[SeqBoatState]):
    """See the module docstring."""

    def __init__(self, config: SeqBoatConfig, width: int, values: int) -> None:
        super().__init__()
        self.config = config
        size = config.shared_size
        self.average = MovingAverage(width, config.states)
        self.router = Linear(width, 2)
        self.log_temperature = nn.Parameter(torch.tensor([config.temperature * width**0.5]).log())
        self.shared = Linear(width, size)
        self.scale = nn.Parameter(torch.empty(2, size))
        self.offset = nn.Parameter(torch.zeros(2, size))
        self.value = Linear(width, values)
        self.gate = Linear(width, values)
        self.bias = nn.Parameter(torch.empty(1, config.window))
        self.attended = Linear(values, width, bias=False)
        self.out = Linear(width, width)
        nn.init.normal_(self.scale, 1.0, 0.02)
        nn.init.normal_(self.bias, std=0.02)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> SeqBoatState:
        """No inputs yet."""
        average = self.average.init_state(batch, device=device, dtype=dtype)
        past = self.config.window - 1
        return SeqBoatState(
            average,
            average.new_zeros(batch, past, self.config.shared_size),
            average.new_zeros(batch, past, self.value.out_features),
            torch.zeros(batch, device=average.device, dtype=torch.int64),
        )

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: SeqBoatState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], SeqBoatState]:
        """Mix along T."""
        state = self.init_state(len(x)) if state is None else state
        u, average = self.average(x, state.average, resets)
        u = F.silu(u)
        p = self.activation(u)
        selection = select(p > 0.5, resets)
        h, state = self._attend(compress(x, selection), compress(u, selection), selection, state)
        h = expand(self.attended(h)[:, None], selection, x.shape[1]) * p.to(x.dtype)
        return F.silu(self.out(u) + h + x), state._replace(average=average)

    def activation(self, u: Float[Tensor, "B T D"]) -> Float[Tensor, "B T 1"]:
        """p_t1; the token is active above 1/2."""
        logits = self.router(u).to(torch.promote_types(u.dtype, torch.float32))
        return (logits / self.log_temperature.exp()).softmax(-1)[..., 1:]

    def _attend(
        self,
        x: Float[Tensor, "B 1 A D"],
        u: Float[Tensor, "B 1 A D"],
        selection: Selection,
        state: SeqBoatState,
    ) -> tuple[Float[Tensor, "B A E"], SeqBoatState]:
        """The active tokens, as a sequence of their own."""
        z = F.silu(self.shared(u))
        q, k = (z * scale + offset for scale, offset in zip(self.scale, self.offset, strict=True))
        v = F.silu(self.value(x))
        resets, used = selection.resets[:, 0], selection.used[:, 0]
        past = AttentionState(state.keys[:, :, None], state.values[:, :, None], state.length)
        y, _ = attention(
            *(part.movedim(1, 2) for part in (q * q.shape[-1] ** -0.5, k, v)),
            window=self.config.window, bias=self.bias, state=past, resets=resets,
        )  # fmt: skip
        keys = last_inputs(state.keys[:, None], k, selection)[:, 0]
        values = last_inputs(state.values[:, None], v, selection)[:, 0]
        place = torch.cat([state.length[:, None], positions(state.length, resets) + 1], 1)
        length = place.gather(1, used.sum(1, keepdim=True)).squeeze(1)
        length = length.masked_fill(selection.gone[:, 0], 0)
        return y.squeeze(2) * F.silu(self.gate(u[:, 0])), SeqBoatState(
            state.average, keys, values, length
        )
