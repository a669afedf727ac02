"""Polynomial features: every monomial of a few numbers, up to a degree.

    phi(x) = (a_1 x_i,  a_2 x_i x_j,  ...,  a_p x_i ... x_k,  a_0)          i <= j <= ... <= k

Each monomial once, C(K + p, p) of them; x comes first, the constant last. Coefficients start at
1 / i!, where phi(q) . phi(k) is close to exp(q . k). Source: ATLAS (arXiv:2505.23735), section 3.1.
"""

import math
from itertools import combinations_with_replacement

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Polynomial(nn.Module):
    """See the module docstring. The identity, without a constant, for degree 1."""

    def __init__(self, size: int, degree: int) -> None:
        super().__init__()
        if degree < 1:
            raise ValueError(f"Polynomial: want degree at least 1, got {degree}")
        self.degree = degree
        self.size = math.comb(size + degree, degree) if degree > 1 else size
        self.coefficients = nn.Parameter(torch.empty(degree + 1)) if degree > 1 else None
        for power in range(2, degree + 1):
            index = torch.tensor(list(combinations_with_replacement(range(size), power)))
            self.register_buffer(f"index{power}", index, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values."""
        if self.coefficients is not None:
            with torch.no_grad():
                n = torch.arange(self.degree + 1.0)
                self.coefficients.copy_((-torch.lgamma(n + 1)).exp())

    def forward(self, x: Float[Tensor, "*N K"]) -> Float[Tensor, "*N P"]:
        """The features."""
        if self.coefficients is None:
            return x
        a = self.coefficients
        parts = [a[1] * x]
        for power in range(2, self.degree + 1):
            index: Tensor = getattr(self, f"index{power}")
            product = x[..., index[:, 0]]
            for n in range(1, power):
                product = product * x[..., index[:, n]]
            parts.append(a[power] * product)
        return torch.cat([*parts, a[0].expand_as(x[..., :1])], -1)
