"""Features whose product is the Taylor polynomial of exp.

    phi(q) . phi(k) = sum_n (q . k)^n / n!          n = 0 .. order

Each monomial once: x_i^m x_j^n ... has the weight 1 / sqrt(m! n! ...), the constant 1 comes first.
C(K + order, order) features. Sources: Based (arXiv:2402.18668) for order 2, where both of x_i x_j
and x_j x_i are kept, and the series of softmax (arXiv:2507.23632).
"""

import math
from itertools import combinations_with_replacement

import torch
from jaxtyping import Float
from torch import Tensor, nn


class TaylorFeatures(nn.Module):
    """See the module docstring."""

    def __init__(self, size: int, order: int) -> None:
        super().__init__()
        if size < 1 or order < 1:
            raise ValueError(f"TaylorFeatures: want size, order at least 1, got {size}, {order}")
        self.order, self.size = order, math.comb(size + order, order)
        for power in range(2, order + 1):
            picks = list(combinations_with_replacement(range(size), power))
            weights = [math.prod(math.factorial(p.count(i)) for i in set(p)) for p in picks]
            weight = torch.tensor(weights, dtype=torch.float64).rsqrt()
            self.register_buffer(f"index{power}", torch.tensor(picks), persistent=False)
            self.register_buffer(f"weight{power}", weight, persistent=False)

    def forward(self, x: Float[Tensor, "*N K"]) -> Float[Tensor, "*N P"]:
        """The features."""
        parts = [torch.ones_like(x[..., :1]), x]
        for power in range(2, self.order + 1):
            index: Tensor = getattr(self, f"index{power}")
            product = x[..., index[:, 0]]
            for n in range(1, power):
                product = product * x[..., index[:, n]]
            parts.append(product * getattr(self, f"weight{power}").to(x.dtype))
        return torch.cat(parts, -1)
