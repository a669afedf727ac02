"""State-regularised RNNs (arXiv:1901.08817): after each step the hidden state snaps to centroids.

    h'_t = cell(x_t, h_{t-1});   alpha = softmax(S h'_t / tau);   h_t = S^T alpha;   y = h

Around any mixer of one nonlinear cell. With a small temperature tau the hidden state is always one
of the k centroids S, and can be read as the state of a finite automaton; what an LSTM keeps in its
cell state is its stack. The soft transition of the paper, in training and in use. First values of
the centroids, ours: uniform in (-1, 1), where the hidden states of gated cells lie. From there
automata of more than two states are hardly learned: `place` puts the centroids where the states of
a cell lie that was trained without them (`cell` alone as the mixer), and training goes on.
State and cost: those of the inner mixer, and O(T k E).
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stepscan.mixers.base import MixerConfig
from stepscan.mixers.gru import GRUConfig
from stepscan.mixers.recurrent import OneCell, Recurrent
from stepscan.mixers.taxonomy import Taxonomy
from stepscan.ops.composed_cells import Snapped


@dataclass(frozen=True, kw_only=True)
class StateRegularizedConfig(MixerConfig):
    """Config of state regularisation."""

    name: ClassVar[str] = "state_regularized"
    equation: ClassVar[str] = "h = S^T softmax(S h' / tau);  h' = cell(x_t, h)"
    source: ClassVar[str] = "Wang & Niepert 2019, arXiv:1901.08817"
    taxonomy: ClassVar[Taxonomy] = Taxonomy(
        family="nonlinear RNN",
        transition="nonlinear",
        gate="state",
        eigenvalues="any",
        ops=("cell_scan",),
    )

    cell: MixerConfig = field(default_factory=GRUConfig)
    """The mixer whose hidden state is snapped: gru, lstm, elman or another one of one cell."""
    centroids: int = 10
    """Number k of centroids."""
    temperature: float = 1.0
    """tau: the lower, the nearer h is to one of them."""

    def build(self, width: int) -> "StateRegularized":
        """Build the module for a model of this width."""
        if self.centroids < 2 or not self.temperature > 0:
            raise ValueError(
                "state_regularized: want at least 2 centroids and a temperature above 0, "
                f"got {self.centroids} and {self.temperature}"
            )
        inner: Any = self.cell.build(width)
        if not isinstance(inner, OneCell):
            raise ValueError(
                "state_regularized: want a mixer of one nonlinear cell (gru, lstm, elman, "
                f"leaky_rnn, para_gru, ...), got {self.cell.name}"
            )
        return StateRegularized(self, width, inner)


class StateRegularized(Recurrent):
    """See the module docstring."""

    def __init__(self, config: StateRegularizedConfig, width: int, inner: OneCell) -> None:
        size = inner.cell().sizes[1]
        super().__init__(width, width)
        self.config = config
        self.inner: Any = inner
        self.out, inner.out = inner.out, None  # one module must not be in two places of a file
        self.centroids = nn.Parameter(torch.empty(config.centroids, size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh centroids."""
        nn.init.uniform_(self.centroids, -1, 1)

    def place(self, hidden: Float[Tensor, "*n E"], rng: torch.Generator) -> None:
        """Centroids at the centres of these hidden states: k-means, begun at points far apart."""
        h = hidden.detach().flatten(0, -2)
        found = h[torch.randint(len(h), (1,), generator=rng)]
        for _ in range(self.config.centroids - 1):
            far = torch.cdist(h, found).amin(1).argmax()
            found = torch.cat([found, h[far][None]])
        for _ in range(10):
            at = torch.cdist(h, found).argmin(1)
            count = torch.bincount(at, minlength=len(found)).clamp(min=1)
            found = torch.zeros_like(found).index_add_(0, at, h) / count[:, None]
        with torch.no_grad():
            self.centroids.copy_(found)

    def nearest(self, hidden: Float[Tensor, "*n E"]) -> Int[Tensor, "*n"]:
        """Which centroid a hidden state is at: the state of the automaton."""
        return (hidden[..., None, :] - self.centroids).square().sum(-1).argmin(-1)

    def cell(self) -> Snapped:
        """The inner weights and the centroids as one cell."""
        return Snapped(self.inner.cell(), self.centroids, self.config.temperature)
