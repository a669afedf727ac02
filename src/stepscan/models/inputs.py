"""What a model reads at each step: categorical columns, real columns, or both."""

import math
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from stepscan.layers.projection import Linear
from stepscan.layers.time_encoding import TimeEncoding


class Inputs(NamedTuple):
    """A stretch of sequence. A bare [B T] or [B T F] integer tensor, or a [B T C] real one, is also
    understood by every model.
    """

    tokens: Int[Tensor, "B T F"] | None = None
    reals: Float[Tensor, "B T C"] | None = None


def as_inputs(inputs: Tensor | Inputs, tokens: tuple[int, ...], reals: int) -> Inputs:
    """`inputs` as a pair, checked against what the model was built for."""
    if isinstance(inputs, Tensor):
        whole = not (inputs.is_floating_point() or inputs.is_complex())
        if whole and inputs.ndim == 2:
            inputs = inputs[..., None]
        inputs = Inputs(tokens=inputs) if whole else Inputs(reals=inputs)
    got_tokens, got_reals = (None if x is None else tuple(x.shape) for x in inputs)
    fits = (got_tokens is None or len(got_tokens) == 3) and (
        got_reals is None or len(got_reals) == 3
    )
    columns = (
        got_tokens[2] if fits and got_tokens else 0,
        got_reals[2] if fits and got_reals else 0,
    )
    same = not (got_tokens and got_reals) or got_tokens[:2] == got_reals[:2]
    if not fits or columns != (len(tokens), reals) or not same:
        raise ValueError(
            f"model: want tokens [B T {len(tokens)}] and reals [B T {reals}]; "
            f"got tokens {got_tokens}, reals {got_reals}"
        )
    return inputs


class Embed(nn.Module):
    """The sum of an embedding per categorical column and a linear map of the real columns; with a
    clock, what `layers.time_encoding` makes of both."""

    def __init__(
        self,
        tokens: tuple[int, ...],
        reals: int,
        width: int,
        scale: float | None = None,
        *,
        clock: bool = False,
    ) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in tokens)
        self.reals: Linear | TimeEncoding | None = Linear(reals, width) if reals else None
        if clock:
            self.reals = TimeEncoding(reals, width, scale)
        # Of unit size where they enter the stack, and of a size that a tied output map wants.
        self.scale = math.sqrt(width) if scale is None else scale
        for table in self.tables:
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight, std=width**-0.5)

    def forward(self, inputs: Inputs) -> Float[Tensor, "B T D"]:
        """Embed every step alone."""
        parts: list[Tensor] = []
        if inputs.tokens is not None:
            columns = inputs.tokens.unbind(-1)
            parts += [
                self.scale * table(column)
                for table, column in zip(self.tables, columns, strict=True)
            ]
        if isinstance(self.reals, Linear) and inputs.reals is not None:
            parts.append(self.reals(inputs.reals.to(self.reals.weight.dtype)))
        x = sum(parts[1:], start=parts[0])
        if isinstance(self.reals, TimeEncoding) and inputs.reals is not None:
            return self.reals(x, inputs.reals)
        return x
