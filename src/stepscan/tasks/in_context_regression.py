"""Linear regression in context (Garg et al. 2022; Akyurek et al. 2022): find w from examples.

    read   x1  y1  x2  y2 ... x16 y16     y = w.x; w is drawn for each sequence
    ask     .   .   .   . ... y16   .     after an x, from the first that the past determines

A step has a column for each coordinate of x and one for y; the other kind's are 0.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from stepscan.tasks.base import Batch, RealTask

SIZE = 4
"""Coordinates of x."""


@dataclass(frozen=True, kw_only=True)
class InContextRegression(RealTask):
    """Config of regression in context."""

    name: ClassVar[str] = "in_context_regression"
    ability: ClassVar[str] = "in context"
    source: ClassVar[str] = "Garg et al. 2022, arXiv:2208.01066; Akyurek et al., arXiv:2211.15661"
    channels: ClassVar[int] = SIZE + 1

    pairs: int = 16
    """Examples (x, y) in a sequence."""
    noise: float = 0.0
    """Standard deviation of what is added to each y; w.x has a variance of 4."""

    def __post_init__(self) -> None:
        """Reject what is never determined."""
        if self.pairs <= SIZE or self.noise < 0:
            raise ValueError(
                f"in_context_regression: want pairs > {SIZE} and noise >= 0, "
                f"got {self.pairs} and {self.noise}"
            )

    def longer(self, factor: int) -> "InContextRegression":
        """More examples."""
        return replace(self, pairs=self.pairs * factor)

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples; w and x are standard normal."""
        w = torch.randn(n, SIZE, generator=rng, dtype=torch.float64)
        x = torch.randn(n, self.pairs, SIZE, generator=rng, dtype=torch.float64)
        y = torch.einsum("nd,npd->np", w, x)
        y = y + self.noise * torch.randn(n, self.pairs, generator=rng, dtype=torch.float64)
        input = torch.zeros(n, self.pairs, 2, SIZE + 1)
        input[:, :, 0, :SIZE] = x.float()
        input[:, :, 1, SIZE] = y.float()
        target, asked = torch.zeros(n, self.pairs, 2), torch.zeros(self.pairs, 2).bool()
        target[:, :, 0] = y.float()
        asked[SIZE:, 0] = True
        flat = asked.flatten().expand(n, -1).contiguous()
        return Batch(input.flatten(1, 2), target.flatten(1)[..., None], flat)

    def solve(self, input: Float[Tensor, "B T 5"]) -> Float[Tensor, "B T 1"]:
        """Least squares over the pairs so far; with noise ridge regression, by Bayes' rule."""
        answer = torch.zeros(*input.shape[:2], 1)
        for row, out in zip(input.double(), answer, strict=True):
            xs, ys = row[::2, :SIZE], row[1::2, SIZE:]
            for t in range(2 * SIZE, len(row), 2):
                seen = t // 2
                x, y = xs[:seen], ys[:seen]
                if self.noise:
                    ridge = x.T @ x + self.noise**2 * torch.eye(SIZE, dtype=x.dtype)
                    w = torch.linalg.solve(ridge, x.T @ y)
                else:
                    w = torch.linalg.lstsq(x, y).solution
                out[t] = xs[seen] @ w
        return answer
