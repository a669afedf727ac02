"""Dense channel mixers: what a block does to each token alone, between two sequence mixers.

    gated     y = W_o (f(W_g x) * W_v x)        SwiGLU: f = silu, GEGLU: f = gelu (arXiv:2002.05202)
    ungated   y = W_o gelu(W_i x + b) + c       GELU, of the first GPT and BERT

`ratio` is the hidden width over the model width: 8/3 in a gated layer costs as much as 4 in an
ungated one. The hidden width is rounded to a multiple of 8, at least 8.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.projection import Linear


def hidden_width(name: str, width: int, ratio: float) -> int:
    """The nearest multiple of 8."""
    if not ratio > 0:
        raise ValueError(f"{name}: want ratio above 0, got {ratio}")
    return max(8, 8 * round(width * ratio / 8))


class Gated(nn.Module):
    """A gated layer; biases are optional."""

    def __init__(self, width: int, ratio: float = 8 / 3, *, bias: bool = False) -> None:
        super().__init__()
        hidden = hidden_width(type(self).__name__, width, ratio)
        self.gate = Linear(width, hidden, bias=bias)
        self.value = Linear(width, hidden, bias=bias)
        self.out = Linear(hidden, width, bias=bias)

    def activation(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """f."""
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Each token on its own."""
        return self.out(self.activation(self.gate(x)) * self.value(x))


class SwiGLU(Gated):
    """Gated by silu."""

    def activation(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Silu."""
        return F.silu(x)


class GEGLU(Gated):
    """Gated by gelu; with `approximate="tanh"` by its approximation, as in Gemma's models."""

    def __init__(
        self, width: int, ratio: float = 8 / 3, *, bias: bool = False, approximate: str = "none"
    ) -> None:
        super().__init__(width, ratio, bias=bias)
        if approximate not in ("none", "tanh"):
            raise ValueError(f"GEGLU: want approximate none or tanh, got {approximate!r}")
        self.approximate = approximate

    def activation(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Gelu."""
        return F.gelu(x, approximate=self.approximate)


class GELU(nn.Module):
    """An ungated layer with biases."""

    def __init__(self, width: int, ratio: float = 4.0) -> None:
        super().__init__()
        hidden = hidden_width("GELU", width, ratio)
        self.inner = Linear(width, hidden)
        self.out = Linear(hidden, width)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Each token on its own."""
        return self.out(F.gelu(self.inner(x)))
