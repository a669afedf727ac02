"""Review and assess: the last tokens are read both ways, and the newest one attends over them.

    f_j = GRU(f_{j-1}, x_j)           forwards over the window t - W < j <= t
    b_j = GRU(b_{j+1}, x_j)           backwards over the same window
    h_j = [f_j; b_j]
    y_t = W_o sum_j softmax_j(q_t^T W_k h_j / sqrt(2 E)) h_j,   q_t = W_q x_t

The neural pedagogical agent (Lee et al. 2019, arXiv:1906.10910): x holds question-response pairs,
x_t also the question that is asked now; what is attended to is what to review. Published are a
bidirectional recurrent network over the pairs, attention by the asked question, and dense layers
after it (here the channel mixer of the block); that the cells are LSTMs and the exact form of the
score are uncertain, GRUs and a scaled product are ours. A window that moves with t makes it causal
and an answer a step of constant cost: what stands before t is read again, in the light of t.
State: W - 1 tokens and a counter, constant in T.
Cost: O(W E (D + E)) per token, W steps one after the other.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.gate_weights import GateWeights
from stepscan.layers.projection import Linear
from stepscan.mixers.base import Mixer, MixerConfig
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.arguments import as_resets
from stepscan.ops.cells import GRU, cell_scan
from stepscan.ops.positions import positions


@dataclass(frozen=True, kw_only=True)
class ReviewConfig(MixerConfig):
    """Config of review and assess."""

    name: ClassVar[str] = "review"
    equation: ClassVar[str] = "h = BiGRU(x of the window);  y = sum_j softmax_j(q_t^T W_k h_j) h_j"
    source: ClassVar[str] = "Lee et al. 2019, arXiv:1906.10910"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(family="softmax attention", ops=("cell_scan",))

    window: int = 16
    """How many of the last tokens W are reviewed, the newest included."""
    expansion: float = 0.5
    """Width E of the hidden state of either direction, as a multiple of the model width."""

    def build(self, width: int) -> "Review":
        """Build the module for a model of this width."""
        inner = round(width * self.expansion)
        if self.window < 2 or inner < 1:
            raise ValueError(
                f"review: want window at least 2 and an expansion that leaves a hidden state, got "
                f"window={self.window}, expansion={self.expansion} of width {width}"
            )
        return Review(self, width, inner)


class ReviewState(NamedTuple):
    """The last tokens, newest last; zeros where there were none since the last reset."""

    inputs: Float[Tensor, "B W-1 D"]
    length: Int[Tensor, "B"]
    """How many of them count."""


class Review(Mixer[ReviewState]):
    """See the module docstring."""

    def __init__(self, config: ReviewConfig, width: int, inner: int) -> None:
        super().__init__()
        self.config = config
        self.ahead = GateWeights(width, inner, 3)
        self.back = GateWeights(width, inner, 3)
        self.query = Linear(width, 2 * inner, bias=False)
        self.key = Linear(2 * inner, 2 * inner, bias=False)
        self.out = Linear(2 * inner, width, bias=False)
        for module in (self.query, self.key, self.out):
            nn.init.xavier_uniform_(module.weight)

    def init_state(
        self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> ReviewState:
        """No past yet."""
        weight = self.out.weight
        dtype = torch.promote_types(dtype or weight.dtype, torch.float32)
        shape = batch, self.config.window - 1, self.query.in_features
        inputs = torch.zeros(shape, device=device or weight.device, dtype=dtype)
        return ReviewState(inputs, torch.zeros(batch, device=inputs.device, dtype=torch.int64))

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: ReviewState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], ReviewState]:
        """Mix along T."""
        y, state, _ = self.attend(x, state, resets)
        return y, state

    def attend(
        self,
        x: Float[Tensor, "B T D"],
        state: ReviewState | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], ReviewState, Float[Tensor, "B T W"]]:
        """The same, and what each token attends to: the last weight of a window is its own."""
        state = self.init_state(len(x)) if state is None else state
        window, (batch, T, _) = self.config.window, x.shape
        if not T:
            return x, state, x.new_zeros(batch, 0, window)
        resets = as_resets(resets, x)
        place = positions(state.length, resets)
        age = torch.arange(window - 1, -1, -1, device=x.device)
        seen = (age <= place[..., None]).flatten(0, 1)
        inputs = torch.cat([state.inputs, x.to(state.inputs.dtype)], 1)
        windows = inputs.unfold(1, window, 1).transpose(2, 3).flatten(0, 1)
        h = self._both_ways(windows.masked_fill(~seen[..., None], 0.0), seen)
        query = self.query(x).flatten(0, 1).to(h.dtype)
        keys = self.key(h.to(x.dtype)).to(h.dtype)
        scores = torch.einsum("ne,nwe->nw", query, keys) * query.shape[-1] ** -0.5
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        read = torch.einsum("nw,nwe->ne", weights, h).unflatten(0, (batch, T))
        length = (place[:, -1] + 1).clamp(max=window - 1)
        kept = age[1:] < length[:, None]  # of the last window - 1 tokens, for the next one
        after = inputs[:, inputs.shape[1] - window + 1 :].masked_fill(~kept[..., None], 0.0)
        return (
            self.out(read.to(x.dtype)),
            ReviewState(after, length),
            weights.unflatten(0, (batch, T)),
        )

    def _both_ways(
        self, windows: Float[Tensor, "N W D"], seen: Bool[Tensor, "N W"]
    ) -> Float[Tensor, "N W E2"]:
        """Every window by itself; what is not seen stands before its first token."""
        first = seen & ~F.pad(seen[:, :-1], (1, 0), value=False)
        ahead, _ = cell_scan(GRU(*self.ahead()), windows, resets=first)
        back, _ = cell_scan(GRU(*self.back()), windows.flip(1))
        return torch.cat([ahead, back.flip(1)], -1)
