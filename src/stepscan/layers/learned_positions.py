"""A learned vector for each position of a sequence, counted from its last reset.

    x_t = x_t + P[min(t, L - 1)]        t = 0, 1, ... since the reset, L positions

As in the first BERT and GPT (arXiv:1810.04805); later steps share the last vector, so that a
sequence may go on beyond what was learned. State: the steps since the reset, one number a row.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stepscan.ops.positions import positions


class LearnedPositions(nn.Module):
    """A table of `length` positions; its initial values are those of a table of tokens."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(length, width)
        nn.init.normal_(self.table.weight, std=width**-0.5)

    def init_state(self, batch: int, *, device: torch.device | None = None) -> Int[Tensor, "B"]:
        """No steps yet."""
        place = self.table.weight.device if device is None else device
        return torch.zeros(batch, dtype=torch.int64, device=place)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: Int[Tensor, "B"] | None = None,
        resets: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T D"], Int[Tensor, "B"]]:
        """Add the vectors; the steps since the last reset go on to the next stretch."""
        before = self.init_state(len(x), device=x.device) if state is None else state
        if not x.shape[1]:
            return x, before
        if resets is None:
            place = before[:, None] + torch.arange(x.shape[1], device=x.device)
        else:
            place = positions(before, resets)
        vectors = self.table(place.clamp(max=self.table.num_embeddings - 1))
        return x + vectors.to(x.dtype), place[:, -1] + 1
