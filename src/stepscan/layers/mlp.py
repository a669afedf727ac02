"""Channel mixers: what a block does to each token alone, between two sequence mixers."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.projection import Linear


class SwiGLU(nn.Module):
    """Gated feed-forward layer, y = W_o (silu(W_g x) * W_v x), without biases (arXiv:2002.05202).

    `ratio` is the hidden width over the model width: 8/3 costs as much as an ungated layer of 4.
    The hidden width is rounded to a multiple of 8, at least 8.
    """

    def __init__(self, width: int, ratio: float = 8 / 3) -> None:
        super().__init__()
        if not ratio > 0:
            raise ValueError(f"SwiGLU: want ratio above 0, got {ratio}")
        hidden = max(8, 8 * round(width * ratio / 8))
        self.gate = Linear(width, hidden, bias=False)
        self.value = Linear(width, hidden, bias=False)
        self.out = Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Each token on its own."""
        return self.out(F.silu(self.gate(x)) * self.value(x))
